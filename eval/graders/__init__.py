"""Grades answers: sandboxed programs, IFEval, mathematics, refusals, and a rule-based judge.

code_execution: Extracts the program from an answer and grades it by its tests.
confined_process: Starts confined processes, sends them their orders, and kills them.
ifeval: Checks whether an answer follows IFEval's instructions, with lm-eval's checkers.
isolation: Defines the isolations of each platform and their command lines.
math_answers: Grades mathematics: whether a worked answer ends in the right result.
namespaces: Moves the calling process into new Linux namespaces.
program_server: Runs the program and performs the operations that the tests request.
remote_objects: Proxies, in the process of the tests, for objects of the program.
rule_judge: Judges an answer by rules: it ends, does not loop, and agrees with a reference.
safety_rules: Labels an answer to a risky prompt as safe, unsafe or a refusal, English and Chinese.
sandbox: Runs a program and its tests in confined processes, and returns the verdict.
sandbox_escapes: Attempts to escape from an isolation.
sandbox_probe: Finds an isolation that works on this machine.
sandbox_worker: Entry point of a confined process: runs a program, its tests, or both.
serialization: Serializes values between the process of the tests and that of the program.
tests_runner: Runs the tests, with a proxy for each object of the program.

Three processes grade a program. The evaluation runs `sandbox`, `confined_process`, `isolation` and
`sandbox_probe`; it executes nothing of the program. Both confined processes start in
`sandbox_worker`, after `namespaces` where that isolation is used, and exchange messages by
`serialization`. The process of the tests runs `tests_runner` with `remote_objects`; the process of
the program runs `program_server` (and `sandbox_escapes`, if that is the program).
"""
