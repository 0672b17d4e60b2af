"""Programs that a model wrote: program and tests -> passed or failed, and why.

The program runs in one confined process and its tests in another (`eval.graders.sandbox_worker`),
so that the verdict comes from where the program cannot reach: the tests call the program, and what
it returns reaches them as copies of plain values. Where tests pass other objects to the program,
both run in one process, `ProgramResult.together` is True, and a program could forge the verdict.

Both processes are confined by what the platform has (`eval.graders.isolation`, chosen by
`eval.graders.sandbox_probe`), under limits on time, memory, processes and files. Memory is watched
every few hundredths of a second, so that it can exceed its limit for that long.
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

from eval.graders import value_copies
from eval.graders.confined_process import Process, end_of, give_order, pipe, started
from eval.graders.isolation import Isolation, SandboxLimits

PAUSE = 0.05  # seconds between looks at what a program uses
LIMITS = SandboxLimits()
VERDICT = 1 << 16  # bytes of what the tests may say
FILES = 4096  # in a program's folder


@dataclass(frozen=True)
class Submission:
    """A program and what judges it.

    Attributes:
        program: Python, run as a module that is not `__main__`, with the standard library alone.
        tests: Python that fails by raising; its names are those of `start` and of the program.
        start: what the task puts in front of the answer, which the tests may use as well.
        entry: the function or class that the answer defines.
    """

    program: str
    tests: str
    start: str = ""
    entry: str = ""


@dataclass(frozen=True)
class ProgramResult:
    """Whether the tests passed; why not; whether they ran in the program's own process."""

    passed: bool
    reason: str
    together: bool = False


def run_program(
    submission: Submission, *, isolation: Isolation, limits: SandboxLimits = LIMITS
) -> ProgramResult:
    """Run a program and its tests; it passes if the tests end without an error.

    Raises:
        OSError: the isolation cannot be set up; nothing of the program has run.
    """
    start, classes = _start(submission)
    helpers = [name for name in classes if name != submission.entry]
    order = asdict(submission) | {"start": start, "classes": helpers}
    order["class"] = submission.entry in classes
    verdict = _apart(order, isolation=isolation, limits=limits)
    together = "unsendable" in verdict
    if together:
        verdict = _together(order, isolation=isolation, limits=limits)
    passed = verdict["passed"] is True
    return ProgramResult(passed, str(verdict["reason"]), together)


def _start(submission: Submission) -> tuple[str, list[str]]:
    """The task's part of the program as a program of its own, and the classes that it defines.

    Its last function may be open: `pass` fills the body, and does nothing otherwise. Where that is
    no program, the tests have the answer's names alone.
    """
    for indentation in ("", " " * 8):  # a last line may end after its indentation or before
        start = f"{submission.start}{indentation}pass\n"
        try:
            tree = ast.parse(start)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            continue
        return start, [node.name for node in tree.body if isinstance(node, ast.ClassDef)]
    return "", []


def _apart(
    order: Mapping[str, Any], *, isolation: Isolation, limits: SandboxLimits
) -> dict[str, Any]:
    """The verdict of tests that run in a process of their own.

    The tests have their order before the program is given out: what comes to them after it is all
    that a program can send.
    """
    with (
        pipe() as to_tests,
        pipe() as to_program,
        started(to_tests, to_program, isolation=isolation, limits=limits) as tests,
        started(to_program, to_tests, isolation=isolation, limits=limits) as program,
    ):
        to_tests.close(to_tests.reads)
        to_program.close(to_program.reads)
        own = {key: order[key] for key in ("tests", "start", "entry", "class", "classes")}
        give_order(tests, to_tests, own | {"role": "tests"})
        own = {key: order[key] for key in ("program", "classes")}
        give_order(program, to_program, own | {"role": "program"})
        verdict = _verdict((tests, program), limits=limits)
        if verdict.get("reason") == value_copies.ENDED:
            verdict["reason"] = end_of(program)
        return verdict


def _together(
    order: Mapping[str, Any], *, isolation: Isolation, limits: SandboxLimits
) -> dict[str, Any]:
    """The verdict of a process that runs the program and its tests."""
    with (
        pipe() as orders,
        pipe() as unused,
        started(orders, unused, isolation=isolation, limits=limits) as both,
    ):
        orders.close(orders.reads)
        own = {key: order[key] for key in ("program", "tests")}
        give_order(both, orders, own | {"role": "together"})
        return _verdict((both,), limits=limits)


def _verdict(processes: Sequence[Process], *, limits: SandboxLimits) -> dict[str, Any]:
    """What the first process says of the tests, or why it says nothing."""
    judge = processes[0]
    end = time.monotonic() + limits.wall_seconds
    look = time.monotonic() + PAUSE
    while True:
        if select.select([judge.control], [], [], PAUSE)[0]:
            more = os.read(judge.control, 1 << 16)
            judge.written += more
            if not more or len(judge.written) > VERDICT:
                break
        if time.monotonic() > look:
            if exceeded := _exceeded(processes, limits, end=end):
                return _failed(exceeded)
            look = time.monotonic() + PAUSE
    # A process that runs the tests as well has one line of each process that it has forked.
    try:
        verdicts = [json.loads(line) for line in judge.written.splitlines()]
        verdicts.sort(key=lambda verdict: verdict.get("passed") is True)
    except (ValueError, AttributeError):
        return _failed("its process wrote what is no verdict")
    return verdicts[0] if verdicts else _failed(end_of(judge))


def _failed(reason: str) -> dict[str, Any]:
    return {"passed": False, "reason": reason}


def _exceeded(processes: Sequence[Process], limits: SandboxLimits, *, end: float) -> str | None:
    """The limit that a process has passed and that no kernel keeps."""
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
    """Resident bytes of a process and all below it."""
    total = 0
    with suppress(psutil.Error):
        top = psutil.Process(pid)
        for process in [top, *top.children(recursive=True)]:
            with suppress(psutil.Error):
                total += process.memory_info().rss
    return total


def _disk(folder: str) -> tuple[int, int]:
    """Bytes and number of what lies in a folder, as far as FILES of them.

    A folder too deep for a path could hide any number: it counts as more than FILES.
    """
    size = files = 0
    folders = [folder]
    while folders:
        try:
            entries = os.scandir(folders.pop())
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:
                return size, FILES + 1
            continue  # removed meanwhile, or closed to this user
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
