"""Programs that a model wrote: program and tests -> passed or failed, and why.

The program runs in one confined process and its tests in another (`eval.cell`), so that the verdict
comes from where the program cannot reach: the tests call the program, and what it returns reaches
them as copies of plain values. Where tests pass other objects to the program, both run in one
process and `Outcome.together` says so; there a program could forge the verdict.

Both processes are confined by what the platform has (`eval.isolation`, chosen by `eval.probe`),
under limits on time, memory, processes and files. Memory is watched every few hundredths of a
second, so that it can exceed its limit for that long.
"""

import ast
import functools
import json
import os
import secrets
import select
import signal
import subprocess
import tempfile
import time
import types
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import psutil

from eval import cell, namespaces, program_side, tests_side, wire
from eval.isolation import Isolation, Limits, Place, environment, free_user

# Seconds: between looks at what a program uses, and for its processes to get ready and to be gone,
# which on a busy machine is no fault of the program's.
PAUSE = 0.05
PATIENCE = 120
LIMITS = Limits()
VERDICT = 1 << 16  # bytes of what the tests may say
FILES = 4096  # in a program's folder
# Modules of the confined process, which has no files of ours: each after those that it imports.
MODULES = (wire, program_side, tests_side, cell)
STARTED = """
import json, sys, types
sys.path[:] = [path for path in sys.path if path]
modules, enters = map(json.loads, sys.argv[1:])
for name, text in modules:
    sys.modules[name] = types.ModuleType(name)
    exec(compile(text, name, "exec"), vars(sys.modules[name]))
if enters:
    sys.modules["eval.namespaces"].enter(**enters)
sys.modules["eval.cell"].main()
"""


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
class Outcome:
    """Whether the tests passed; why not; whether they ran in the program's own process."""

    passed: bool
    reason: str
    together: bool = False


@dataclass
class _Process:
    """A confined process, and what it has written to standard error since it was ready."""

    popen: subprocess.Popen[bytes]
    control: int
    place: Place
    isolation: Isolation
    user: int | None
    written: bytes = b""


class _Pipe:
    """Both ends of a pipe."""

    def __init__(self) -> None:
        self.reads, self.writes = os.pipe()
        self.open = {self.reads, self.writes}

    def close(self, *ends: int) -> None:
        for end in self.open.intersection(ends):
            self.open.remove(end)
            os.close(end)


def run_program(
    submission: Submission, *, isolation: Isolation, limits: Limits = LIMITS
) -> Outcome:
    """Run a program and its tests; it passes if the tests end without an error.

    Raises:
        OSError: the isolation cannot be set up; nothing of the program has run.
    """
    start, classes = _start(submission)
    order = asdict(submission) | {"start": start, "classes": classes}
    verdict = _apart(order, isolation=isolation, limits=limits)
    together = "unsendable" in verdict
    if together:
        verdict = _together(order, isolation=isolation, limits=limits)
    passed = verdict["passed"] is True
    return Outcome(passed, str(verdict["reason"]), together)


def _start(submission: Submission) -> tuple[str, list[str]]:
    """The task's part of the program as a program of its own, and the classes that it defines.

    Its last function may be open: `pass` fills the body, and does nothing otherwise. Where that is
    no program, the tests have the answer's names alone.
    """
    start = f"{submission.start}pass\n"
    try:
        tree = ast.parse(start)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return "", []
    classes = [node.name for node in tree.body if isinstance(node, ast.ClassDef)]
    return start, [name for name in classes if name != submission.entry]


def _apart(order: Mapping[str, Any], *, isolation: Isolation, limits: Limits) -> dict[str, Any]:
    """The verdict of tests that run in a process of their own.

    The tests have their order before the program is given out: what comes to them after it is all
    that a program can send.
    """
    with (
        _pipe() as to_tests,
        _pipe() as to_program,
        _started(to_tests, to_program, isolation=isolation, limits=limits) as tests,
        _started(to_program, to_tests, isolation=isolation, limits=limits) as program,
    ):
        to_tests.close(to_tests.reads)
        to_program.close(to_program.reads)
        own = {key: order[key] for key in ("tests", "start", "entry", "classes")}
        _give_order(tests, to_tests, own | {"role": "tests"})
        own = {key: order[key] for key in ("program", "classes")}
        _give_order(program, to_program, own | {"role": "program"})
        verdict = _verdict((tests, program), limits=limits)
        if verdict.get("reason") == wire.ENDED:
            verdict["reason"] = _end_of(program)
        return verdict


def _together(order: Mapping[str, Any], *, isolation: Isolation, limits: Limits) -> dict[str, Any]:
    """The verdict of a process that runs the program and its tests."""
    with (
        _pipe() as pipe,
        _pipe() as unused,
        _started(pipe, unused, isolation=isolation, limits=limits) as both,
    ):
        pipe.close(pipe.reads)
        own = {key: order[key] for key in ("program", "tests")}
        _give_order(both, pipe, own | {"role": "together"})
        return _verdict((both,), limits=limits)


@contextmanager
def _pipe() -> Iterator[_Pipe]:
    pipe = _Pipe()
    try:
        yield pipe
    finally:
        pipe.close(pipe.reads, pipe.writes)


@contextmanager
def _started(
    incoming: _Pipe, outgoing: _Pipe, *, isolation: Isolation, limits: Limits
) -> Iterator[_Process]:
    """A process that waits for its order; killed on the way out, with all that it started."""
    if not isolation.own_processes:
        limits = replace(limits, processes=0)
    if not isolation.own_files:  # deleted files that are still open are seen by no look at a folder
        limits = replace(limits, file_bytes=limits.disk_bytes // cell.FILES)
    with _folder() as folder:
        place = Place(str(folder), f"truing-{secrets.token_hex(8)}", limits)
        home = str(folder) if not isolation.own_files else "/tmp"
        user = free_user() if isolation.drops_root and os.geteuid() == 0 else None
        if user is not None:
            os.chown(folder, user, user)
        control, theirs = os.pipe()
        enters = isolation.enters(place) if isolation.enters else None
        modules = _sources(*MODULES, *([namespaces] if enters else []))
        arguments = ["-s", "-S", "-B", "-c", STARTED, modules, json.dumps(enters)]
        try:
            popen = subprocess.Popen(
                [*isolation.command(place), *arguments],
                stdin=incoming.reads,
                stdout=outgoing.writes,
                stderr=theirs,
                cwd=folder,
                env=environment(home),
                start_new_session=True,
            )
        except BaseException:
            os.close(control)
            raise
        finally:
            os.close(theirs)
        process = _Process(popen, control, place, isolation, user)
        try:
            yield process
        finally:
            _kill(process)
            if isolation.stop is not None:
                subprocess.run(isolation.stop(place.name), capture_output=True, timeout=PATIENCE)
            os.close(control)


@functools.cache
def _sources(*modules: types.ModuleType) -> str:
    return json.dumps([(m.__name__, Path(m.__file__ or "").read_text("utf-8")) for m in modules])


@contextmanager
def _folder() -> Iterator[Path]:
    """An empty folder, removed with all that a program has made of it: any depth, any mode."""
    folder = Path(os.path.realpath(tempfile.mkdtemp(prefix="truing-program-")))
    try:
        yield folder
    finally:
        try:
            folder.rmdir()
        except OSError:
            for command in (["chmod", "-R", "u+rwx"], ["rm", "-rf"]):
                subprocess.run([*command, str(folder)], capture_output=True)


def _give_order(process: _Process, pipe: _Pipe, order: Mapping[str, Any]) -> None:
    """Write the order, close the pipe here, and wait until the process is ready.

    Raises:
        OSError: it is not; with what it said.
    """
    rest = {"limits": asdict(process.place.limits), "user": process.user}
    line = json.dumps({**order, **rest}).encode() + b"\n"
    with suppress(BrokenPipeError):  # it has ended, and says why
        for i in range(0, len(line), select.PIPE_BUF):  # so much is taken at once, or nothing
            if not select.select([], [pipe.writes], [], PATIENCE)[1]:
                raise OSError(f"a confined process did not take its order within {PATIENCE} s")
            os.write(pipe.writes, line[i : i + select.PIPE_BUF])
    pipe.close(pipe.writes)
    while cell.READY not in process.written:
        if not select.select([process.control], [], [], PATIENCE)[0]:
            raise OSError(f"a confined process did not answer within {PATIENCE} s")
        if not (more := os.read(process.control, 1 << 16)):
            said = process.written.decode("utf-8", "replace").strip().splitlines()
            raise OSError(said[-1] if said else "its process ended as it began")
        process.written += more
    process.written = process.written.partition(cell.READY)[2]


def _verdict(processes: Sequence[_Process], *, limits: Limits) -> dict[str, Any]:
    """What the first process says of the tests, or why it says nothing."""
    judge = processes[0]
    end = time.monotonic() + limits.wall_seconds
    look = 0.0
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
    return verdicts[0] if verdicts else _failed(_end_of(judge))


def _failed(reason: str) -> dict[str, Any]:
    return {"passed": False, "reason": reason}


def _exceeded(processes: Sequence[_Process], limits: Limits, *, end: float) -> str | None:
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
    """Bytes and number of what lies in a folder, as far as FILES of them."""
    size = files = 0
    folders = [folder]
    while folders and files <= FILES:
        with suppress(OSError):
            for entry in os.scandir(folders.pop()):
                files += 1
                with suppress(OSError):
                    size += entry.stat(follow_symlinks=False).st_blocks * 512
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(entry.path)
    return size, files


def _kill(process: _Process) -> None:
    """Kill and reap; what is in the process's namespace dies with it."""
    if process.popen.returncode is None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.popen.pid, signal.SIGKILL)
        process.popen.wait()


def _end_of(process: _Process) -> str:
    """How a process ended before there was a verdict."""
    try:
        code = process.popen.wait(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        return wire.ENDED
    number = code - 128 if code > 128 else -code
    if number == signal.SIGXCPU:
        return "CPU time used up"
    if number > 0 and number in set(signal.Signals):
        return f"killed by {signal.Signals(number).name}"
    return f"ended before its tests did (exit code {code})"
