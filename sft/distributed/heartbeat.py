"""The processes of one run watch each other: one that dies or hangs ends the others, with a reason.

Each writes a small record into `.processes/` of the run directory, which they share anyway, and
reads those of the others. Nothing goes through the collectives, which are what hangs.
"""

import json
import logging
import os
import platform
import re
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import psutil

from sft.system.atomic_files import read_file
from sft.system.signals import requested

log = logging.getLogger(__name__)

FOLDER = ".processes"
SILENT = 30.0  # seconds without a sign of life
SLOWER = 5.0  # a step may take so many times the longest before it (but `SILENT` at least)


@dataclass
class _Progress:
    """What the main thread is at: `begun` is when its step began, None between steps."""

    step: int = 0
    begun: float | None = None
    longest: float = 0.0
    counted: int = 0


_progress = _Progress()
_watch: "_Watch | None" = None


def step_begins(step: int) -> None:
    """Called by the trainer before it fetches the rows of a step."""
    _progress.step, _progress.begun = step, time.monotonic()


def step_ends() -> None:
    """Called by the trainer behind the step, before it logs or saves."""
    if _progress.begun is not None:
        _progress.longest = max(_progress.longest, time.monotonic() - _progress.begun)
        _progress.counted += 1
        _progress.begun = None


def lost_peer() -> str | None:
    """After a collective failed: which process is gone and why, or None if all are there."""
    if _watch is None or _watch.count == 1:
        return None
    for _ in range(20):
        if (sentence := _watch.gone()) is not None:
            return sentence
        time.sleep(0.25)
    return None


@contextmanager
def watching(folder: Path, *, rank: int, count: int) -> Iterator[None]:
    """Be watched by, and watch, the `count` processes of this run.

    All of them enter together, behind a barrier before which the first has called `clear`.
    """
    global _watch
    if count == 1:
        yield
        return
    _watch = watch = _Watch(folder / FOLDER, rank=rank, count=count)
    watch._write()
    watch.start()
    try:
        yield
    except BaseException as error:
        # A failed collective is the echo of another process's end; that one is the reason.
        echo = lost_peer() if isinstance(error, RuntimeError) else None
        watch.end(echo or f"{type(error).__name__}: {error}".splitlines()[0][:300])
        raise
    else:
        watch.end("")


@contextmanager
def ending_with_launcher() -> Iterator[None]:
    """Within, SIGTERM ends this process once the launcher that started it is gone.

    The processes of a start meet at a store that the launcher holds, before any of them opens the
    run: without it each would wait there for `sft.distributed.sharding.PATIENCE`.
    """
    if not _launched():
        yield
        return
    ended = threading.Event()
    given = {"launcher": os.getppid(), "ended": ended}
    threading.Thread(target=_follow, kwargs=given, name="launcher", daemon=True).start()
    try:
        yield
    finally:
        ended.set()


def _follow(*, launcher: int, ended: threading.Event) -> None:
    while os.getppid() == launcher and not (launcher == 1 and _is_system()):
        if ended.wait(1.0):
            return
    if not requested():
        with suppress(OSError):  # the launcher may have been what read this
            print("\nthe launcher is gone; ending with it", file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGTERM)


def clear(folder: Path) -> None:
    """Remove the records of an earlier start; of a link in their place the link alone."""
    records = folder / FOLDER
    if records.is_symlink():
        records.unlink()
    shutil.rmtree(records, ignore_errors=True)


class _Watch(threading.Thread):
    """Writes this process's record and reads the others', once a second."""

    def __init__(self, folder: Path, *, rank: int, count: int) -> None:
        super().__init__(name="watch", daemon=True)
        self.folder, self.rank, self.count = folder, rank, count
        self.beat = 0
        self.begun = time.monotonic()
        self.seen: dict[int, tuple[int, float]] = {}  # rank: last beat, and when it came
        self.peers: dict[int, dict[str, Any]] = {}
        self.ended = threading.Event()
        self.reason: str | None = None

    def run(self) -> None:
        last = time.monotonic()
        while not self.ended.wait(1.0):
            now = time.monotonic()
            if now - last > 5:  # this process itself stood still: nobody else is to blame
                self.seen = {rank: (beat, now) for rank, (beat, _) in self.seen.items()}
                self.begun = now
                if _progress.begun is not None:
                    _progress.begun = now
            last = now
            self._write()
            sentence = self._silent() or self._stuck()
            if sentence is not None:
                self.end(sentence)
                print(f"\nerror: {sentence}", file=sys.stderr, flush=True)
                os._exit(1)

    def end(self, reason: str) -> None:
        """Leave the last record: empty if all went well, else why this process ends."""
        self.ended.set()
        self.reason = reason
        self._write()

    def gone(self) -> str | None:
        """The process that ended or is no longer there, in words."""
        self._read()
        for rank, record in self.peers.items():
            if record["ended"] is None and not _alive(record):
                return (
                    f"{_name(rank, record)} is gone without a word: killed, or out of memory; "
                    "start the same command again"
                )
        for rank, record in self.peers.items():
            if record["ended"]:
                return f"{_name(rank, record)} ended: {record['ended']}"
        return None

    def _silent(self) -> str | None:
        self._read()
        for rank, record in self.peers.items():
            silent = time.monotonic() - self.seen[rank][1]
            if record["ended"] is None and (silent > SILENT or (silent > 3 and not _alive(record))):
                return (
                    f"{_name(rank, record)} has given no sign of life for {silent:.0f} s; it was "
                    f"in {record['at']}"
                )
            if record["ended"] and silent > 5:
                return f"{_name(rank, record)} ended: {record['ended']}"
        waited = time.monotonic() - self.begun
        for rank in range(self.count):
            if rank != self.rank and rank not in self.peers and waited > SILENT:
                return f"process {rank} has given no sign of life since it began ({waited:.0f} s)"
        return None

    def _stuck(self) -> str | None:
        """A step that takes far too long on all processes, with the place where each one is."""
        if _progress.begun is None or not _progress.counted:
            return None
        if any(record["ended"] for record in self.peers.values()):
            return None  # which is the reason, and about to be said
        taken, limit = time.monotonic() - _progress.begun, max(SILENT, SLOWER * _progress.longest)
        if taken < limit:
            return None
        places = {rank: record for rank, record in self.peers.items() if not record["ended"]}
        places[self.rank] = self._record()
        # Those that wait for another are inside torch; the one that they wait for is not.
        outside = {r: p for r, p in places.items() if "/torch/" not in p["at"]} or places
        where = "; ".join(f"{_name(rank, p)} is in {p['at']}" for rank, p in outside.items())
        return (
            f"step {_progress.step} has taken {taken:.0f} s, the longest before it "
            f"{_progress.longest:.1f} s: a process hangs; {where}"
        )

    def _record(self) -> dict[str, Any]:
        return {
            "beat": self.beat,
            "process": os.getpid(),
            "host": platform.node(),
            "at": _place(),
            "ended": self.reason,
        }

    def _write(self) -> None:
        self.beat += 1
        path = self.folder / f"{self.rank}.json"
        temporary = path.with_suffix(".tmp")
        try:
            self.folder.mkdir(exist_ok=True)
            temporary.write_text(json.dumps(self._record()), encoding="utf-8")
            temporary.replace(path)
        except OSError as error:  # a full disk: the others see silence, and this says why
            log.warning("%s cannot be written (%s)", path, error.strerror)

    def _read(self) -> None:
        for rank in range(self.count):
            try:
                record = json.loads(read_file(self.folder / f"{rank}.json"))
            except (OSError, ValueError):
                continue
            if rank == self.rank:
                continue
            if rank not in self.seen or self.seen[rank][0] != record["beat"]:
                self.seen[rank] = record["beat"], time.monotonic()
            self.peers[rank] = record


def _launched() -> bool:
    """Whether accelerate or torchrun started this process, and is to be outlived by nobody."""
    return "ACCELERATE_MIXED_PRECISION" in os.environ or "TORCHELASTIC_RUN_ID" in os.environ


def _is_system() -> bool:
    """Whether process 1, which takes over processes whose parent has ended, is surely no launcher:
    in a container it may be one, or the shell of one."""
    try:
        words = " ".join(psutil.Process(1).cmdline())
    except psutil.Error:  # it is not shown to this user
        return False
    return not re.search("python|accelerate|torchrun|sh\\b", words, re.IGNORECASE)


def _name(rank: int, record: dict[str, Any]) -> str:
    return f"process {rank} (pid {record['process']} on {record['host']})"


def _alive(record: dict[str, Any]) -> bool:
    """Whether the process exists, as far as it can be seen from here."""
    if record["host"] != platform.node():
        return True
    try:
        return bool(psutil.Process(record["process"]).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _place() -> str:
    """File, line and function of the innermost Python frame of the main thread."""
    frame: FrameType | None = sys._current_frames().get(threading.main_thread().ident or 0)
    if frame is None:
        return "its end"
    return f"{frame.f_code.co_filename}:{frame.f_lineno} {frame.f_code.co_name}"
