"""Whether an answer is right: programs, IFEval, mathematics, refusals and a rule-based judge.

code_execution: Tasks whose answers are programs: the program that an answer stands for, and its
    verdict.
confined_process: Starts confined processes, gives them their orders, and ends them with all
    that they started.
ifeval: IFEval: whether an answer follows instructions that a program can check, by lm-eval's
    checkers.
isolation: Ways to confine a process with what the platform has: the command line of each.
language_id: The language of a text, by langdetect with a fixed seed
    (github.com/Mimino666/langdetect).
math_answers: Grading of mathematics: whether a worked answer ends in the right result.
namespaces: Puts a process into new Linux namespaces.
program_side: The program's end of the connection: runs the program, then does what the tests
    ask of it.
remote_objects: Proxies, in the process of the tests, for objects of the program.
rule_judge: A judge made of rules: does an answer end, without looping, and say what is known to
    be right.
safety_rules: Rules that read an answer to a risky prompt as safe, unsafe or a refusal, English
    and Chinese.
sandbox: Programs that a model wrote: program and tests -> passed or failed, and why.
sandbox_escapes: Tries to get out: what `eval.graders.sandbox_probe` runs in a confinement
    before any program of a model.
sandbox_probe: Finds what confines programs on this machine, by trying to get out of it
    (`eval.graders.sandbox_escapes`).
sandbox_worker: The confined process: holds a program and answers calls to it, or runs the tests
    that call it.
tests_side: Run the tests of a task in their own process, with a `Remote` for each object of the
    program.
value_copies: Copies values between the process that runs the tests and the process that holds
    the program.
"""
