"""Whether an answer is right: programs, IFEval, mathematics, refusals and a rule-based judge.

code_execution: Extracts the program from an answer and grades it by its tests.
ifeval: Checks whether an answer follows IFEval's instructions, with lm-eval's checkers.
math_answers: Grades mathematics: whether a worked answer ends in the right result.
program_server: Runs the program in its own process and performs the operations that the tests
    request.
rule_judge: Judges an answer by rules: it ends, does not loop, and agrees with a reference.
safety_rules: Labels an answer to a risky prompt as safe, unsafe or a refusal, English and
    Chinese.
sandbox: Runs a program that a model wrote and its tests in confined processes, and returns the
    verdict.
sandbox_command: Defines the sandboxes of each platform: the command line that starts a process
    in one.
sandbox_escapes: Attempts to escape from an isolation, run confined by
    `eval.graders.sandbox_probe`.
sandbox_messages: Serializes values between the process of the tests and the process of the
    program.
sandbox_namespaces: Moves the calling process into new Linux namespaces.
sandbox_probe: Finds an isolation that works on this machine: `eval.graders.sandbox_escapes`
    tries to escape.
sandbox_process: Starts confined processes, sends them their orders, and kills them with their
    children.
sandbox_proxies: Proxies, in the process of the tests, for objects of the program.
sandbox_worker: Entry point of a confined process: runs a program, its tests, or both.
tests_runner: Runs the tests in the process of the tests, with a proxy for each object of the
    program.
"""
