"""Check that a program that is isolated from its tests passes them as in one plain process."""

import contextlib
import io
import sys
import types

from eval.graders.isolation import RunCode
from eval.graders.sandbox import Submission, run_program
from eval.graders.sandbox_probe import find_isolation

CONFINED = find_isolation(RunCode.CONFINED)


def assert_passes_as_in_one_process(program, tests, monkeypatch, *, start="", entry="f"):
    """Run the tests in this process, then isolated from the program: both pass."""
    module = types.ModuleType("program")
    monkeypatch.setitem(sys.modules, "program", module)
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        exec(compile(program, "program.py", "exec", dont_inherit=True), vars(module))
        exec(compile(tests, "tests.py", "exec", dont_inherit=True), vars(module))
    submission = Submission(program, tests, start=start, entry=entry)
    outcome = run_program(submission, isolation=CONFINED)
    assert (outcome.passed, outcome.reason, outcome.together) == (True, "passed", False)
