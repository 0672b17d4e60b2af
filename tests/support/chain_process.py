"""Start commands in separate processes and kill them, by fork or by `accelerate launch`.

The forking process has already imported everything. A forked child can be killed, or fail, at its
k-th access to a file in the run directory (Python's audit events: before an open, a rename, a
removal), or be killed from outside.
"""

import errno
import importlib
import mmap
import os
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import prepare_multi_gpu_env

TOUCHES = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate"}
FAULTS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)
LEFT = 120.0  # seconds within which processes end after their launcher, on a busy machine
OWN = (".lock", ".processes")  # accessed by threads at irregular times


def launcher_environment(config: Path) -> dict[str, str]:
    """Return the environment by which `accelerate launch --config_file` configures sharding."""
    parser = launch_command_parser()
    given, _, _ = _validate_launch_command(
        parser.parse_args(["--config_file", str(config), "x.py"])
    )
    environment = prepare_multi_gpu_env(given)
    return {k: v for k, v in environment.items() if os.environ.get(k) != v}


@dataclass(frozen=True)
class Trap:
    """SIGKILL, or a call that fails with `fault`, at the `at`-th access to a path that contains
    `within`.

    Every access and fsync takes `pause` more seconds (a slow disk). In the folders of `full` no new
    file can be written; in their sub-folders it can.
    """

    at: int = 0
    fault: int = 0
    within: str = ""
    pause: float = 0.0
    full: tuple[str, ...] = ()


@dataclass(frozen=True)
class Ended:
    """Result of a start: exit codes by rank (-9: killed), accesses, the last path, the output."""

    codes: tuple[int, ...]
    touches: int
    last: str
    said: str


class Chain:
    """Starts of one command: `main` of `recipe` gets `argv`; `environment` is added to that of each
    process, as a launcher does (see `launcher_environment`).

    Signals except SIGKILL also reach forked processes, as from a terminal."""

    def __init__(
        self,
        folder: Path,
        argv: Sequence[str],
        *,
        run: Path,
        processes: int = 1,
        environment: Mapping[str, str] | None = None,
        recipe: str = "sft_then_dpo",
    ) -> None:
        self.recipe = recipe
        self.folder, self.argv, self.run, self.processes = folder, list(argv), run, processes
        self.environment = dict(environment or {})

    def start(
        self,
        trap: Trap | None = None,
        *,
        after: float | None = None,
        signum: int = signal.SIGKILL,
        all_ranks: bool = True,
    ) -> Ended:
        """Run one start to its end. The first process gets `trap`, or `signum` `after` that many
        seconds; with `all_ranks` the others get the signal too and are killed with it."""
        board = mmap.mmap(-1, 4096)
        said = self.folder / "said.txt"
        port = _free_port()
        pids = []
        for rank in range(self.processes):
            pid = os.fork()
            if pid == 0:
                self._child(rank, port, board, said, trap if rank == 0 else None)
            pids.append(pid)
        codes = self._wait(pids, after, signum, all_ranks)
        touches, length = struct.unpack("II", board[:8])
        return Ended(codes, touches, board[8 : 8 + length].decode(), said.read_text())

    def _wait(
        self, pids: list[int], after: float | None, signum: int, all_ranks: bool
    ) -> tuple[int, ...]:
        begun = time.monotonic()
        codes: dict[int, int | None] = dict.fromkeys(pids)
        while None in codes.values():
            for pid in [pid for pid in pids if codes[pid] is None]:
                done, status = os.waitpid(pid, os.WNOHANG)
                if done:
                    codes[pid] = os.waitstatus_to_exitcode(status)
            if after is not None and time.monotonic() - begun > after:
                after = None
                self._signal(pids if all_ranks else pids[:1], codes, signum)
            if all_ranks and codes[pids[0]] == -signal.SIGKILL:
                self._signal(pids, codes, signal.SIGKILL)
            time.sleep(0.005)
        return tuple(code for code in codes.values() if code is not None)

    def _signal(self, pids: list[int], codes: dict[int, int | None], signum: int) -> None:
        for pid in pids:
            if codes[pid] is None:
                send = os.kill if signum == signal.SIGKILL else os.killpg
                with suppress(ProcessLookupError):  # not yet a separate process group
                    send(pid, signum)

    def _child(self, rank: int, port: int, board: mmap.mmap, said: Path, trap: Trap | None) -> None:
        os.setpgid(0, 0)
        flags = os.O_WRONLY | os.O_CREAT | (os.O_TRUNC if rank == 0 else os.O_APPEND)
        handle = os.open(said if rank == 0 else os.devnull, flags)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        if self.processes > 1:
            os.environ |= {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(self.processes),
                "LOCAL_WORLD_SIZE": str(self.processes),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
                "ACCELERATE_USE_CPU": "true",
            }
        os.environ |= self.environment
        if rank == 0:
            _set_trap(self.run, board, trap)
        code = 70
        try:
            code = importlib.import_module(f"recipes.{self.recipe}").main(self.argv)
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)


class Launched:
    """Start the chain by `accelerate launch` with the given options, as a user does."""

    def __init__(self, folder: Path, argv: Sequence[str], *, options: Sequence[str] = ()) -> None:
        self.folder, self.argv, self.options = folder, list(argv), list(options)

    def start(
        self,
        *,
        after: float | None = None,
        signum: int = signal.SIGKILL,
        launcher_alone: bool = False,
    ) -> Ended:
        """Run one start until all its processes have ended; `signum` is sent `after` that many
        seconds to all processes, or only to the launcher."""
        root = Path(__file__).parents[1]
        command = [sys.executable, "-m", "accelerate.commands.launch", "--quiet", *self.options]
        said = self.folder / "said.txt"
        with said.open("wb") as out:
            launcher = subprocess.Popen(
                [*command, root / "recipes" / "sft_then_dpo.py", *self.argv],
                stdout=out,
                stderr=out,
                cwd=root,
                start_new_session=True,
            )
            started = psutil.Process(launcher.pid)
            try:
                launcher.wait(after)
                below = []
            except subprocess.TimeoutExpired:
                below = started.children(recursive=True)
                for process in [started] if launcher_alone else [started, *below]:
                    with suppress(psutil.NoSuchProcess):
                        process.send_signal(signum)
                launcher.wait()
            _, left = psutil.wait_procs(below, timeout=LEFT)
            for process in left:
                process.kill()
            assert not left, f"{len(left)} processes outlived their launcher by {LEFT} s"
        return Ended((launcher.returncode,), 0, "launched", said.read_text(errors="replace"))


def _set_trap(run: Path, board: mmap.mmap, trap: Trap | None) -> None:
    """Count the accesses in shared memory and trigger the trap."""
    root, count = os.path.abspath(run), 0
    if trap is not None and trap.full:
        tempfile.tempdir = None  # searched again
    if trap is not None and trap.pause:
        os.fsync = _slowly(os.fsync, trap.pause)

    def hook(event: str, args: tuple) -> None:
        nonlocal count
        if event not in TOUCHES or not isinstance(args[0], str | os.PathLike):
            return
        path = os.path.abspath(os.fspath(args[0]))
        new = event == "os.mkdir" or (event == "open" and args[2] & os.O_CREAT)
        if new and trap is not None and os.path.dirname(path) in trap.full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
        if not isinstance(path, str) or not path.startswith(root):
            return
        place = path[len(root) + 1 :]
        if place.startswith(OWN) or (trap is not None and trap.within not in place):
            return
        if trap is not None:
            time.sleep(trap.pause)
        reading = event == "open" and not args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        # Files that a successful write failed to remove may stay: the next write removes them.
        cleaning = event == "os.remove" and path.endswith(".tmp")
        if trap is not None and trap.fault and (reading or cleaning):
            return
        count += 1
        label = place.encode()[:4000]
        board[: 8 + len(label)] = struct.pack("II", count, len(label)) + label
        if trap is not None and count == trap.at:
            if trap.fault:
                raise OSError(trap.fault, os.strerror(trap.fault), path)
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def _slowly(call: Callable[..., None], pause: float) -> Callable[..., None]:
    def slow(*given: object) -> None:
        time.sleep(pause)
        call(*given)

    return slow


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
