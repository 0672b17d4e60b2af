"""Watchdog of a run's processes: if one dies or hangs, the others exit and report which and why.

Each process writes a heartbeat to `.processes/` of the run directory and reads those of the others.
No collective is involved, since collectives are what hangs.
"""

import json
import logging
import os
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

from sft.system.heartbeat import Heartbeat, is_running, read_heartbeat
from sft.system.signals import requested

log = logging.getLogger(__name__)

FOLDER = ".processes"
SILENT = 30.0  # seconds without a heartbeat after which a process counts as dead
SLOWER = 5.0  # a step may take this many times the longest before it, and at least `SILENT`


@dataclass
class _Progress:
    """Progress of the main thread; `begun` is the start time of its step, None between steps."""

    step: int = 0
    begun: float | None = None
    longest: float = 0.0
    counted: int = 0


_progress = _Progress()
_watch: "_Watch | None" = None


def step_begins(step: int) -> None:
    """Record the start of a step, before its rows are fetched."""
    _progress.step, _progress.begun = step, time.monotonic()


def step_ends() -> None:
    """Record the end of a step, before the trainer logs or saves."""
    if _progress.begun is not None:
        _progress.longest = max(_progress.longest, time.monotonic() - _progress.begun)
        _progress.counted += 1
        _progress.begun = None


def lost_peer() -> str | None:
    """Return which process is gone and why, after a collective failed; None if all are running."""
    if _watch is None or _watch.count == 1:
        return None
    for _ in range(20):
        if (sentence := _watch.gone()) is not None:
            return sentence
        time.sleep(0.25)
    return None


@contextmanager
def watching(folder: Path, *, rank: int, count: int) -> Iterator[None]:
    """Watch, and be watched by, the `count` processes of this run.

    All enter together, after a barrier before which the first has called `clear`.
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
        # A collective fails after another process has ended; report that one.
        echo = lost_peer() if isinstance(error, RuntimeError) else None
        watch.finish(echo or f"{type(error).__name__}: {error}".splitlines()[0][:300])
        raise
    else:
        watch.finish("")


@contextmanager
def ending_with_launcher() -> Iterator[None]:
    """Send SIGTERM to this process once the launcher that started it is gone.

    The processes meet at a store of the launcher before any of them opens the run; without the
    launcher each would wait there for `sft.distributed.sharding.PATIENCE`.
    """
    if not _launched():
        yield
        return
    ended = threading.Event()
    launcher = os.getppid()
    threading.Thread(
        target=_watch_launcher, args=(launcher, ended), name="launcher", daemon=True
    ).start()
    try:
        yield
    finally:
        ended.set()


def _watch_launcher(launcher: int, ended: threading.Event) -> None:
    while os.getppid() == launcher and not (launcher == 1 and _is_system()):
        if ended.wait(1.0):
            return
    if not requested():
        with suppress(OSError):  # stderr may be a pipe that the launcher read
            print("\nthe launcher is gone; ending with it", file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGTERM)


def clear(folder: Path) -> None:
    """Remove the records of an earlier start; if a link is in their place, only the link."""
    records = folder / FOLDER
    if records.is_symlink():
        records.unlink()
    shutil.rmtree(records, ignore_errors=True)


class _Watch(Heartbeat):
    """Writes this process's record and reads the others', once a second."""

    def __init__(self, folder: Path, *, rank: int, count: int) -> None:
        super().__init__("watch", interval=1.0)
        self.folder, self.rank, self.count = folder, rank, count
        self.begun = self.last = time.monotonic()
        self.seen: dict[int, tuple[int, float]] = {}  # rank: last beat and its arrival time
        self.peers: dict[int, dict[str, Any]] = {}
        self.reason: str | None = None

    def beat(self) -> None:
        """Write the record, and end this process if another is silent or a step hangs."""
        now = time.monotonic()
        if now - self.last > 5:  # this process itself was suspended: restart all clocks
            self.seen = {rank: (beat, now) for rank, (beat, _) in self.seen.items()}
            self.begun = now
            if _progress.begun is not None:
                _progress.begun = now
        self.last = now
        self._write()
        sentence = self._silent() or self._stuck()
        if sentence is not None:
            self.finish(sentence)
            print(f"\nerror: {sentence}", file=sys.stderr, flush=True)
            os._exit(1)

    def finish(self, reason: str) -> None:
        """Write the last record; `reason` says why this process ends, "" after success."""
        self.stopped.set()
        self.reason = reason
        self._write()

    def gone(self) -> str | None:
        """Return a sentence about a process that has ended or was killed, or None."""
        self._read()
        for rank, record in self.peers.items():
            if record["ended"] is None and not is_running(record):
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
            if record["ended"] is None and (
                silent > SILENT or (silent > 3 and not is_running(record))
            ):
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
        """Return a sentence about a step that takes far too long, and where each process is."""
        if _progress.begun is None or not _progress.counted:
            return None
        if any(record["ended"] for record in self.peers.values()):
            return None  # which is the reason, and about to be reported
        taken, limit = time.monotonic() - _progress.begun, max(SILENT, SLOWER * _progress.longest)
        if taken < limit:
            return None
        places = {rank: record for rank, record in self.peers.items() if not record["ended"]}
        places[self.rank] = self._record()
        # Processes that wait are inside torch; the one that they wait for is not.
        outside = {r: p for r, p in places.items() if "/torch/" not in p["at"]} or places
        where = "; ".join(f"{_name(rank, p)} is in {p['at']}" for rank, p in outside.items())
        return (
            f"step {_progress.step} has taken {taken:.0f} s, the longest before it "
            f"{_progress.longest:.1f} s: a process hangs; {where}"
        )

    def _record(self) -> dict[str, Any]:
        return self.record(at=_location(), ended=self.reason)

    def _write(self) -> None:
        path = self.folder / f"{self.rank}.json"
        temporary = path.with_suffix(".tmp")
        try:
            self.folder.mkdir(exist_ok=True)
            temporary.write_text(json.dumps(self._record()), encoding="utf-8")
            temporary.replace(path)
        except OSError as error:  # a full disk: the others see no heartbeat, this log says why
            log.warning("%s cannot be written (%s)", path, error.strerror)

    def _read(self) -> None:
        for rank in range(self.count):
            record = read_heartbeat(self.folder / f"{rank}.json")
            if rank == self.rank or not record:
                continue
            if rank not in self.seen or self.seen[rank][0] != record["beat"]:
                self.seen[rank] = record["beat"], time.monotonic()
            self.peers[rank] = record


def _launched() -> bool:
    """Return whether accelerate or torchrun started this process, which must exit with it."""
    return "ACCELERATE_MIXED_PRECISION" in os.environ or "TORCHELASTIC_RUN_ID" in os.environ


def _is_system() -> bool:
    """Return whether process 1, the parent of orphaned processes, is certainly no launcher."""
    try:
        command = " ".join(psutil.Process(1).cmdline())
    except psutil.Error:  # not visible to this user
        return False
    # In a container process 1 may be a launcher or its shell.
    return not re.search("python|accelerate|torchrun|sh\\b", command, re.IGNORECASE)


def _name(rank: int, record: dict[str, Any]) -> str:
    return f"process {rank} (pid {record['process']} on {record['host']})"


def _location() -> str:
    """Return file, line and function of the innermost Python frame of the main thread."""
    frame: FrameType | None = sys._current_frames().get(threading.main_thread().ident or 0)
    if frame is None:
        return "its end"
    return f"{frame.f_code.co_filename}:{frame.f_lineno} {frame.f_code.co_name}"
