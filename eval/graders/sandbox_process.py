"""Starts confined processes, sends them their orders, and kills them with their children."""

import functools
import json
import os
import secrets
import select
import signal
import subprocess
import tempfile
import types
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from eval.graders import (
    program_server,
    sandbox_messages,
    sandbox_namespaces,
    sandbox_proxies,
    sandbox_worker,
    tests_runner,
)
from eval.graders.sandbox_command import Isolation, Place, SandboxLimits, environment, free_user

# Seconds for a process to start and to exit: ample, so that a busy machine fails no program.
PATIENCE = 120
# Modules of the confined process, which cannot read our files: each after those that it imports.
MODULES = (sandbox_messages, program_server, sandbox_proxies, tests_runner, sandbox_worker)
STARTED = """
import json, sys, types
sys.path[:] = [path for path in sys.path if path]
for name, source in json.loads(sys.argv[1]):
    sys.modules[name] = types.ModuleType(name)
    exec(compile(source, name, "exec"), vars(sys.modules[name]))
if enters := json.loads(sys.argv[2]):
    sys.modules["eval.graders.sandbox_namespaces"].enter(**enters)
sys.modules["eval.graders.sandbox_worker"].main()
"""


@dataclass
class Process:
    """A confined process, and what it wrote to standard error after READY."""

    popen: subprocess.Popen[bytes]
    control: int
    place: Place
    isolation: Isolation
    user: int | None
    written: bytes = b""


class Pipe:
    """Both ends of a pipe."""

    def __init__(self) -> None:
        self.reads, self.writes = os.pipe()
        self.open = {self.reads, self.writes}

    def close(self, *ends: int) -> None:
        for end in self.open.intersection(ends):
            self.open.remove(end)
            os.close(end)


@contextmanager
def pipe() -> Iterator[Pipe]:
    both = Pipe()
    try:
        yield both
    finally:
        both.close(both.reads, both.writes)


@contextmanager
def started(
    incoming: Pipe, outgoing: Pipe, *, isolation: Isolation, limits: SandboxLimits
) -> Iterator[Process]:
    """A process that waits for its order; killed on the way out, with all that it started."""
    if not isolation.own_processes:
        limits = replace(limits, processes=0)
    if not isolation.own_files:
        # Open deleted files are in no folder, so the sizes of all open files together are bounded.
        limits = replace(limits, file_bytes=limits.disk_bytes // sandbox_worker.FILES)
    with nullcontext(Path("/")) if isolation.own_files else _folder() as folder:
        place = Place(str(folder), f"truing-{secrets.token_hex(8)}", limits)
        home = str(folder) if not isolation.own_files else "/tmp"
        user = free_user() if isolation.drops_root and os.geteuid() == 0 else None
        if user is not None:
            os.chown(folder, user, user)
        control, theirs = os.pipe()
        enters = isolation.enters(place) if isolation.enters else None
        modules = _sources(*MODULES, *([sandbox_namespaces] if enters else []))
        arguments = ["-s", "-S", "-B", "-c", STARTED, modules, json.dumps(enters)]
        try:
            popen = subprocess.Popen(
                [*isolation.command(place), *arguments],
                stdin=incoming.reads,
                stdout=outgoing.writes,
                stderr=theirs,
                cwd=folder,
                env=None if isolation.by_client else environment(home),
                start_new_session=True,
            )
        except BaseException:
            os.close(control)
            raise
        finally:
            os.close(theirs)
        process = Process(popen, control, place, isolation, user)
        try:
            yield process
        finally:
            _kill(process)
            if isolation.stop is not None:
                subprocess.run(isolation.stop(place.name), capture_output=True, timeout=PATIENCE)
            os.close(control)


@functools.cache
def _sources(*modules: types.ModuleType) -> str:
    """Return names and sources of modules as JSON."""
    files = {module.__name__: Path(module.__file__ or "") for module in modules}
    return json.dumps([(name, file.read_text("utf-8")) for name, file in files.items()])


@contextmanager
def _folder() -> Iterator[Path]:
    """Yield an empty folder; remove it with its content of any depth and mode."""
    folder = Path(os.path.realpath(tempfile.mkdtemp(prefix="truing-program-")))
    try:
        yield folder
    finally:
        with suppress(OSError):
            folder.rmdir()
        for command in (["rm", "-rf"], ["chmod", "-R", "u+rwx"], ["rm", "-rf"]):
            if folder.exists():  # `rm` fails in folders without permissions
                subprocess.run([*command, str(folder)], capture_output=True)


def give_order(process: Process, orders: Pipe, order: Mapping[str, Any]) -> None:
    """Write the order, close the pipe here, and wait until the process is ready.

    Raises:
        OSError: the process failed to start; the message is its own.
    """
    rest = {"limits": asdict(process.place.limits), "user": process.user}
    line = json.dumps({**order, **rest}).encode() + b"\n"
    with suppress(BrokenPipeError):  # it exited; the reason is read below
        # After select, a pipe takes PIPE_BUF bytes without blocking.
        for i in range(0, len(line), select.PIPE_BUF):
            if not select.select([], [orders.writes], [], PATIENCE)[1]:
                raise OSError(f"a confined process did not take its order within {PATIENCE} s")
            os.write(orders.writes, line[i : i + select.PIPE_BUF])
    orders.close(orders.writes)
    while sandbox_worker.READY not in process.written:
        if not select.select([process.control], [], [], PATIENCE)[0]:
            raise OSError(f"a confined process did not answer within {PATIENCE} s")
        if not (more := os.read(process.control, 1 << 16)):
            lines = process.written.decode("utf-8", "replace").strip().splitlines()
            raise OSError(lines[-1] if lines else "its process ended as it began")
        process.written += more
    process.written = process.written.partition(sandbox_worker.READY)[2]


def _kill(process: Process) -> None:
    """Kill and reap the process group; a PID namespace dies with its first process."""
    if process.popen.returncode is None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.popen.pid, signal.SIGKILL)
        process.popen.wait()


def end_of(process: Process) -> str:
    """Return how a process ended before it wrote a verdict."""
    try:
        code = process.popen.wait(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        return sandbox_messages.ENDED
    number = code - 128 if code > 128 else -code
    if number == signal.SIGXCPU:
        return "CPU time used up"
    if number > 0 and number in set(signal.Signals):
        return f"killed by {signal.Signals(number).name}"
    return f"ended before its tests did (exit code {code})"
