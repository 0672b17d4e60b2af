"""Check that a program passes its tests isolated as it does in one process."""

import contextlib
import io
import sys
import types

from eval.graders.sandbox import Submission, run_program
from eval.graders.sandbox_command import RunCode
from eval.graders.sandbox_probe import find_isolation

CONFINED = find_isolation(RunCode.CONFINED)


def assert_passes_as_in_one_process(program, tests, monkeypatch, *, start="", entry="f"):
    """Assert that the tests pass in this process and isolated from the program."""
    module = types.ModuleType("program")
    monkeypatch.setitem(sys.modules, "program", module)
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        exec(compile(program, "program.py", "exec", dont_inherit=True), vars(module))
        exec(compile(tests, "tests.py", "exec", dont_inherit=True), vars(module))
    submission = Submission(program, tests, start=start, entry=entry)
    outcome = run_program(submission, isolation=CONFINED)
    assert (outcome.passed, outcome.reason, outcome.together) == (True, "passed", False)
