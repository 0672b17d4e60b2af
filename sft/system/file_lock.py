"""Lock a run directory for one process, with flock and a heartbeat in the lock file.

The kernel releases `flock` when the process ends. File systems that lack it or restrict it to one
host (NFS, Lustre, FUSE, by mount options) rely on the heartbeat: the holder rewrites the record in
the lock file every few seconds, and a record that no longer changes is stale.
"""

# filelock 4.3 is not used: FileLock falls back only on ENOSYS, but NFS also raises ENOLCK, or its
# lock holds on one host only; SoftFileLease has no flock, so that a killed run blocks for a lease.

import errno
import fcntl
import json
import logging
import os
import platform
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from sft.errors import UserError
from sft.system.atomic_files import TOO_LONG, writing
from sft.system.heartbeat import Heartbeat, read_heartbeat
from sft.system.signals import requested

log = logging.getLogger(__name__)

NAME = ".lock"
LENGTH = 512  # bytes of a record: less than a disk block, so that a write is never torn
BEAT = 5.0  # seconds between heartbeats
STALE = 20.0  # seconds without a heartbeat after which the holder counts as dead
PATIENCE = 3.0  # seconds to wait for a holder, which may be exiting
ENDING = 120.0  # seconds to wait for a holder that was signaled: a step and a checkpoint
_NO_FLOCK = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}


@contextmanager
def lock_folder(folder: Path, *, option: str = "run.dir") -> Iterator[None]:
    """Hold the lock of `folder`, which is created if missing and named by `option` in errors.

    If the block raises before it writes anything, the folder is left as it was. Raises UserError if
    the folder cannot be written or another process holds it.
    """
    if "::" in str(folder):
        raise UserError(
            f"{option}={folder} contains `::`, which datasets would parse as a chained URL; choose "
            "a path without"
        )
    created = [place for place in (folder, *folder.parents) if not os.path.lexists(place)]
    before = _names(folder)
    stream, by_kernel = _locked_stream(folder, option)
    with stream:
        holder = read_heartbeat(folder / NAME)
        if holder and not (by_kernel and holder.get("host") == platform.node()):
            _wait_for_heartbeat(folder, holder)
        if holder:
            log.warning(
                "%s=%s: the run of %s was cut off; continuing from what it saved",
                *(option, folder, _process(holder)),
            )
        held = _LockHeartbeat(folder, stream, by_kernel=by_kernel)
        # A forked worker that outlives this process must not keep the lock.
        os.register_at_fork(after_in_child=stream.close)
        held.start()
        try:
            yield
        except BaseException:
            held.release()
            if NAME not in before and _names(folder) <= {*before, NAME}:
                (folder / NAME).unlink(missing_ok=True)
                for place in created:
                    with suppress(OSError):  # not empty
                        place.rmdir()
            raise
        held.release()


def _names(folder: Path) -> set[str]:
    try:
        return set(os.listdir(folder))
    except OSError:
        return set()


def _locked_stream(folder: Path, option: str) -> tuple[IO[bytes], bool]:
    while True:
        stream = _open_lock_file(folder, option)
        try:
            if not (folder / NAME).is_file():  # reading a pipe would block
                raise UserError(f"{option}={folder}: {NAME} is not a file; remove it")
            by_kernel = _take(stream, folder)
            # A refused start removes its lock file, possibly after this process has opened it.
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(stream.fileno()), (folder / NAME).stat()):
                    return stream, by_kernel
        except BaseException:
            stream.close()
            raise
        stream.close()


def _open_lock_file(folder: Path, option: str) -> IO[bytes]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # O_NOFOLLOW: the target of a link would be overwritten.
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
        return os.fdopen(os.open(folder / NAME, flags, 0o644), "r+b", 0)
    except (FileExistsError, NotADirectoryError):
        reason = f"{option}={folder} is a file, or lies in one; set {option}= to a folder"
        raise UserError(reason) from None
    except OSError as error:
        if error.errno == errno.ELOOP and (folder / NAME).is_symlink():
            raise UserError(
                f"{option}={folder}: {NAME} is a link, and its target would be overwritten; "
                "remove it"
            ) from None
        if error.errno == errno.ENAMETOOLONG:
            raise UserError(f"{option}={folder} is too long; {TOO_LONG}") from None
        raise UserError(
            f"{option}={folder} cannot be written ({error.strerror}); set {option}= to a "
            "folder of yours"
        ) from None


def _take(stream: IO[bytes], folder: Path) -> bool:
    """Return True once the kernel grants the lock, False if this file system has no flock."""
    begun = time.monotonic()
    while True:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            holder = read_heartbeat(folder / NAME)
            patience = ENDING if holder.get("ending") else PATIENCE
            if time.monotonic() - begun > patience:
                raise UserError(_in_use(folder, holder)) from None
            time.sleep(0.2)
        except OSError as error:
            if error.errno not in _NO_FLOCK:
                raise
            return False


def _wait_for_heartbeat(folder: Path, holder: dict[str, Any]) -> None:
    """Raise if the holder's record changes within `STALE` seconds."""
    log.info("run.dir=%s: is %s alive? (up to %.0f s)", folder, _process(holder), STALE)
    begun = time.monotonic()
    while time.monotonic() - begun < STALE:
        time.sleep(BEAT / 5)
        now = read_heartbeat(folder / NAME)
        if not now:
            return  # the holder has released the lock
        if now != holder:
            raise UserError(_in_use(folder, now))


def _process(holder: dict[str, Any]) -> str:
    return f"process {holder.get('process', '?')} on {holder.get('host', '?')}"


def _in_use(folder: Path, holder: dict[str, Any]) -> str:
    process = _process(holder) if holder else "another process"
    return f"{folder} is in use by {process}; wait for it, or give another folder (run.dir=, --to)"


class _LockHeartbeat(Heartbeat):
    """Heartbeat in the lock file; ends this process if another one has taken the lock."""

    def __init__(self, folder: Path, stream: IO[bytes], *, by_kernel: bool) -> None:
        super().__init__("lock", interval=0.5)
        self.path, self.stream = folder / NAME, stream
        self.token = uuid.uuid4().hex
        self._write()
        if not by_kernel:
            time.sleep(1.0)  # if two processes found the lock free, the last writer keeps it
            if read_heartbeat(self.path).get("token") != self.token:
                raise UserError(_in_use(folder, read_heartbeat(self.path)))

    def beat(self) -> None:
        """Write the record every `BEAT` seconds, and at once when a signal has arrived."""
        if time.monotonic() - self.written < BEAT and self.ending == bool(requested()):
            return
        now = read_heartbeat(self.path)
        if now and now.get("token") != self.token:
            sentence = f"error: run.dir={self.path.parent} was taken over by {_process(now)} while "
            sentence += "this process was suspended; it writes nothing more here"
            print(sentence, file=sys.stderr, flush=True)
            os._exit(1)
        with suppress(OSError):  # a full disk is reported where results are written
            self._write()

    def release(self) -> None:
        """Stop and empty the file, which marks an orderly end."""
        self.stopped.set()
        self.join()
        if read_heartbeat(self.path).get("token") == self.token:
            self.stream.truncate(0)

    def _write(self) -> None:
        self.written, self.ending = time.monotonic(), bool(requested())
        record = self.record(token=self.token, ending=self.ending)
        # In place, since the kernel's lock is on this inode; one write, so that no reader sees
        # half a record.
        with writing(self.path):
            os.pwrite(self.stream.fileno(), json.dumps(record).encode().ljust(LENGTH), 0)
            os.fsync(self.stream.fileno())
