"""Whether an answer is right: programs, IFEval, mathematics, refusals and a rule-based judge.

code_execution: Extracts the program from an answer and grades it by its tests.
confined_process: Starts confined processes, sends them their orders, and kills them with their
    children.
ifeval: Checks whether an answer follows IFEval's instructions, with lm-eval's checkers.
isolation: Defines the isolations of each platform and the command line that starts a process in
    them.
math_answers: Grades mathematics: whether a worked answer ends in the right result.
namespaces: Moves the calling process into new Linux namespaces.
program_server: Runs the program in its own process and performs the operations that the tests
    request.
remote_objects: Proxies, in the process of the tests, for objects of the program.
rule_judge: Judges an answer by rules: it ends, does not loop, and agrees with a reference.
safety_rules: Labels an answer to a risky prompt as safe, unsafe or a refusal, English and
    Chinese.
sandbox: Runs a program that a model wrote and its tests in confined processes, and returns the
    verdict.
sandbox_escapes: Attempts to escape from an isolation, run confined by
    `eval.graders.sandbox_probe`.
sandbox_probe: Finds an isolation that works on this machine: `eval.graders.sandbox_escapes`
    tries to escape.
sandbox_worker: Entry point of a confined process: runs a program, its tests, or both.
serialization: Serializes values between the process of the tests and the process of the
    program.
tests_runner: Runs the tests in the process of the tests, with a proxy for each object of the
    program.
"""
