"""Runs a program that a model wrote and its tests in confined processes, and returns the verdict.

The program runs in one process and its tests in another, which the program cannot reach: the tests
call the program and get copies of plain values. If tests pass other objects to the program, both
run in one process, `ProgramResult.together` is True, and the program could forge the verdict.

Each process is confined (`eval.graders.sandbox_command`) and limited in time, memory, processes and
files. Memory is sampled every PAUSE seconds and can exceed its limit for that long.
"""

import ast
import errno
import json
import os
import select
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

import psutil

from eval.graders import sandbox_messages
from eval.graders.sandbox_command import Isolation, SandboxLimits
from eval.graders.sandbox_process import Process, end_of, give_order, pipe, started
from eval.graders.tests_runner import Verdict

PAUSE = 0.05  # seconds between two checks of the limits
LIMITS = SandboxLimits()
VERDICT = 1 << 16  # bytes of a verdict, which a program run with its tests could write, too
FILES = 4096  # in a program's folder, as many as inodes in `eval.graders.sandbox_namespaces`


@dataclass(frozen=True)
class Submission:
    """A program and its tests.

    Attributes:
        program: Python source, run as a module that is not `__main__`, without third-party modules.
        tests: Python source that raises on failure; it sees the names of `start` and the program.
        start: source that the task places before the answer.
        entry: name of the function or class that the answer defines.
    """

    program: str
    tests: str
    start: str = ""
    entry: str = ""


@dataclass(frozen=True)
class ProgramResult:
    """Whether the tests passed, the reason, and whether they ran in the program's process."""

    passed: bool
    reason: str
    together: bool = False


def run_program(
    submission: Submission, *, isolation: Isolation, limits: SandboxLimits = LIMITS
) -> ProgramResult:
    """Run a program and its tests; it passes if the tests end without an error.

    Raises:
        OSError: the isolation cannot be set up; the program has not run.
    """
    start, classes = _start(submission)
    helpers = [name for name in classes if name != submission.entry]
    order = asdict(submission) | {"start": start, "classes": helpers}
    order["class"] = submission.entry in classes
    verdict = _run_separately(order, isolation=isolation, limits=limits)
    together = "unsendable" in verdict
    if together:
        verdict = _run_in_one_process(order, isolation=isolation, limits=limits)
    passed = verdict["passed"] is True
    return ProgramResult(passed, str(verdict["reason"]), together)


def _start(submission: Submission) -> tuple[str, list[str]]:
    """Return the task's start as a complete program, "" if there is none, and its classes."""
    # `pass` completes a last function without a body; its indentation may be there or not.
    for indentation in ("", " " * 8):
        start = f"{submission.start}{indentation}pass\n"
        try:
            tree = ast.parse(start)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            continue
        return start, [node.name for node in tree.body if isinstance(node, ast.ClassDef)]
    return "", []


def _run_separately(
    order: Mapping[str, Any], *, isolation: Isolation, limits: SandboxLimits
) -> Verdict:
    """Run the tests and the program in two processes; return the verdict of the tests."""
    with (
        pipe() as to_tests,
        pipe() as to_program,
        started(to_tests, to_program, isolation=isolation, limits=limits) as tests,
        started(to_program, to_tests, isolation=isolation, limits=limits) as program,
    ):
        to_tests.close(to_tests.reads)
        to_program.close(to_program.reads)
        # The tests get their order first, so that the program cannot send one in its place.
        own = {key: order[key] for key in ("tests", "start", "entry", "class", "classes")}
        give_order(tests, to_tests, own | {"role": "tests"})
        own = {key: order[key] for key in ("program", "classes")}
        give_order(program, to_program, own | {"role": "program"})
        verdict = _verdict((tests, program), limits=limits)
        if verdict.get("reason") == sandbox_messages.ENDED:
            verdict["reason"] = end_of(program)
        return verdict


def _run_in_one_process(
    order: Mapping[str, Any], *, isolation: Isolation, limits: SandboxLimits
) -> Verdict:
    """Run the program and its tests in one process; return its verdict."""
    with (
        pipe() as orders,
        pipe() as unused,
        started(orders, unused, isolation=isolation, limits=limits) as both,
    ):
        orders.close(orders.reads)
        own = {key: order[key] for key in ("program", "tests")}
        give_order(both, orders, own | {"role": "together"})
        return _verdict((both,), limits=limits)


def _verdict(processes: Sequence[Process], *, limits: SandboxLimits) -> Verdict:
    """Return the verdict that the first process writes, or why it wrote none."""
    judge = processes[0]
    end = time.monotonic() + limits.wall_seconds
    next_check = time.monotonic() + PAUSE
    while True:
        if select.select([judge.control], [], [], PAUSE)[0]:
            more = os.read(judge.control, 1 << 16)
            judge.written += more
            if not more or len(judge.written) > VERDICT:
                break
        if time.monotonic() > next_check:
            if exceeded := _exceeded(processes, limits, end=end):
                return _failed(exceeded)
            next_check = time.monotonic() + PAUSE
    # A program run with its tests may fork, and each fork writes a line: one failure decides.
    try:
        verdicts: list[Verdict] = [json.loads(line) for line in judge.written.splitlines()]
        verdicts.sort(key=lambda verdict: verdict.get("passed") is True)
    except (ValueError, AttributeError):
        return _failed("its process wrote an invalid verdict")
    return verdicts[0] if verdicts else _failed(end_of(judge))


def _failed(reason: str) -> Verdict:
    return {"passed": False, "reason": reason}


def _exceeded(processes: Sequence[Process], limits: SandboxLimits, *, end: float) -> str | None:
    """Return the exceeded limit, of those that the kernel does not enforce."""
    if time.monotonic() > end:
        return f"not done after {limits.wall_seconds} s"
    for process in processes:
        if _memory(process.popen.pid) > limits.memory_bytes:
            return f"more than {limits.memory_bytes >> 20} MiB of memory"
        if not process.isolation.own_files:
            size, files = _disk(process.place.folder)
            if size > limits.disk_bytes or files > FILES:
                return f"more than {limits.disk_bytes >> 20} MiB of files, or than {FILES} files"
    return None


def _memory(pid: int) -> int:
    """Return the resident bytes of a process and its descendants."""
    total = 0
    with suppress(psutil.Error):
        top = psutil.Process(pid)
        for process in [top, *top.children(recursive=True)]:
            with suppress(psutil.Error):
                total += process.memory_info().rss
    return total


def _disk(folder: str) -> tuple[int, int]:
    """Return bytes and number of the files in a folder; counting stops above FILES."""
    size = files = 0
    folders = [folder]
    while folders:
        try:
            entries = os.scandir(folders.pop())
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:  # such a folder could hide any number of files
                return size, FILES + 1
            continue  # deleted since, or not readable for this user
        with entries, suppress(OSError):
            for entry in entries:
                files += 1
                if files > FILES:
                    return size, files
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.path)
                with suppress(OSError):
                    size += entry.stat(follow_symlinks=False).st_blocks * 512
    return size, files
