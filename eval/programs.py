"""Programs that a model wrote, run apart: program text -> passed or failed, and why.

Each program has a process of its own (eval/cell.py) with a clean environment, limits on time,
memory, processes and files, and a temporary folder that is gone afterwards; its process group is
killed at the end. Where the system allows it, namespaces take network, files and other processes
out of its sight. `find_isolation` tries that and says by name what is active.

Program and tests share one process, as in HumanEval's own harness. A program that ends early does
not pass, but one that searches the interpreter for the mark of success could forge it; and memory
is watched every few hundredths of a second, so that it can exceed its limit for that long.
"""

import functools
import json
import logging
import os
import secrets
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from eval import cell
from sft.config import UserError

log = logging.getLogger(__name__)

# Seconds: between looks at what a program uses, and for its processes to get ready and to be gone,
# which on a busy machine is no fault of the program's.
PAUSE = 0.05
PATIENCE = 120
# A line that a confined program must be able to run: it imports, allocates and writes.
PROBE = "import heapq, json, typing\nopen('a', 'w').write('b')\n"
# Ids that systemd's table of user ids leaves to nobody, so that limits count one program alone.
USERS = range(60706, 61184)


@dataclass(frozen=True)
class Limits:
    """What one program may use; memory is address space a process and resident size together.

    CPU time decides; the clock is for programs that wait, and ample so that a busy machine changes
    no verdict.
    """

    cpu_seconds: int = 10
    wall_seconds: int = 60
    memory_bytes: int = 1 << 30
    processes: int = 16
    file_bytes: int = 16 << 20
    disk_bytes: int = 64 << 20


@dataclass(frozen=True)
class Isolation:
    """How programs are kept apart: by namespaces or without, and in words for the report."""

    namespaces: bool
    name: str


@dataclass(frozen=True)
class Outcome:
    """Whether a program ran to its end without an error; why not; the isolation that was active."""

    passed: bool
    reason: str
    isolation: str


@functools.cache
def find_isolation() -> Isolation:
    """The best isolation that this system allows, by running a program in it.

    Raises:
        UserError: not even limits and a user id of one's own can be set.
    """
    lacking = "macOS has none"
    if sys.platform == "linux":
        full = Isolation(
            True,
            "namespaces: no network, own processes, read-only system files and an empty /tmp; "
            "limits on CPU, memory, processes and files",
        )
        try:
            _probe(full)
        except OSError as error:
            lacking = str(error)
        else:
            return full
    partial = Isolation(
        False,
        f"no namespaces ({lacking}); an audit hook against network, files, processes and signals; "
        "limits on CPU, memory, processes and files",
    )
    log.warning("programs run with weak isolation: %s", partial.name)
    try:
        _probe(partial)
    except OSError as error:
        raise UserError(
            f"model-written programs cannot be confined on this system ({error}); leave out the "
            "tasks that run them, or run as an ordinary user"
        ) from None
    return partial


def _probe(isolation: Isolation) -> None:
    outcome = run_program(PROBE, isolation=isolation)
    if not outcome.passed:
        raise OSError(outcome.reason)


def run_program(source: str, *, isolation: Isolation, limits: Limits = Limits()) -> Outcome:
    """Run a program with the tests at its end; it passes if its last line is reached.

    Args:
        source: Python, run as a module that is not `__main__`, with the standard library alone.

    Raises:
        OSError: the isolation cannot be set up; nothing of the program has run.
    """
    mark = secrets.token_hex(16)
    with tempfile.TemporaryDirectory(prefix="truing-program-") as folder:
        # A confined program may belong to another user, and works in a folder of its own.
        user = USERS[os.getpid() % len(USERS)] if os.geteuid() == 0 else None
        if user is not None and not isolation.namespaces:
            os.chown(folder, user, user)
        order = {
            "source": source,
            "mark": mark,
            "folder": os.path.realpath(folder),
            "namespaces": isolation.namespaces,
            "user": user,
            "limits": asdict(limits),
        }
        with _started(order) as (process, result):
            report = _first_words(result)
            exceeded = _wait(process, Path(folder), limits)
            _kill(process)
            report += _last_words(result)
    reason = exceeded or _reason(report, mark.encode(), code=process.returncode)
    return Outcome(reason == "passed", reason, isolation.name)


@contextmanager
def _started(order: dict) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """The confined process, and the pipe that its verdict comes through; killed on the way out."""
    result, theirs = os.pipe()
    home = order["folder"] if not order["namespaces"] else "/tmp"
    with tempfile.TemporaryFile() as stdin:
        stdin.write(json.dumps(order | {"result": theirs}).encode())
        stdin.seek(0)
        try:
            process = subprocess.Popen(
                [sys.executable, "-s", "-S", "-B", cell.__file__],
                stdin=stdin,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd=order["folder"],
                # Sets of strings have one order, so that a verdict can be repeated.
                env={"PATH": "/usr/bin:/bin", "HOME": home, "TMPDIR": home, "PYTHONHASHSEED": "0"},
                pass_fds=(theirs,),
                start_new_session=True,
            )
        finally:
            os.close(theirs)
        try:
            yield process, result
        finally:
            _kill(process)
            os.close(result)


def _first_words(result: int) -> bytes:
    """Wait until the process is confined; returns what the program has written already."""
    written = _read(result)
    if not written.startswith(cell.READY):
        raise OSError(written.decode("utf-8", "replace") or "its process ended as it began")
    return written.removeprefix(cell.READY)


def _last_words(result: int) -> bytes:
    """What was written, when all processes of the program are gone and the pipe is at its end."""
    written = b""
    while more := _read(result):
        written += more
    return written


def _read(result: int) -> bytes:
    readable, _, _ = select.select([result], [], [], PATIENCE)
    if not readable:
        raise OSError(f"a confined process did not answer within {PATIENCE} s")
    return os.read(result, 1 << 16)


def _wait(process: subprocess.Popen[bytes], folder: Path, limits: Limits) -> str | None:
    """Wait for the end, or for a limit that no kernel keeps; returns which."""
    end = time.monotonic() + limits.wall_seconds
    while True:
        try:
            process.wait(timeout=PAUSE)
            return None
        except subprocess.TimeoutExpired:
            pass
        if time.monotonic() > end:
            return f"not done after {limits.wall_seconds} s"
        if _memory(process.pid) > limits.memory_bytes:
            return f"more than {limits.memory_bytes >> 20} MiB of memory"
        if _disk(folder) > limits.disk_bytes:
            return f"more than {limits.disk_bytes >> 20} MiB of files"


def _memory(pid: int) -> int:
    """Resident bytes of a process and all below it."""
    total = 0
    with suppress(psutil.Error):
        top = psutil.Process(pid)
        for process in [top, *top.children(recursive=True)]:
            with suppress(psutil.Error):
                total += process.memory_info().rss
    return total


def _disk(folder: Path) -> int:
    """Bytes of the files of a folder; with namespaces they are elsewhere, and the kernel counts."""
    total = 0
    with suppress(OSError):
        for entry in os.scandir(folder):
            with suppress(OSError):
                total += entry.stat(follow_symlinks=False).st_blocks * 512
    return total


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill and reap; what is in the process's namespace dies with it."""
    if process.returncode is None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _reason(report: bytes, mark: bytes, *, code: int) -> str:
    before, *errors = report.split(mark)  # one of each process that the program has forked
    if errors and not before:
        error = next(filter(None, errors), b"")
        return " ".join(error.decode("utf-8", "replace").split()) or "passed"
    number = code - 128 if code > 128 else -code
    if number == signal.SIGXCPU:
        return "CPU time used up"
    if number > 0 and number in set(signal.Signals):
        return f"killed by {signal.Signals(number).name}"
    return f"ended before its last line (exit code {code})"
