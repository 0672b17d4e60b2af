"""One writer for a run directory: the kernel's lock, and a beating file where that is not enough.

`flock` goes with its process, however that ends. On file systems that do not have it, or keep it to
one host (NFS, Lustre, FUSE, by their mount options), the lock file itself tells: its holder writes
it anew every few seconds, and a record that no longer moves is stale.
"""

import errno
import fcntl
import json
import logging
import os
import platform
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from sft.errors import UserError
from sft.system.atomic_files import TOO_LONG, read_file, writing
from sft.system.signals import requested

log = logging.getLogger(__name__)

NAME = ".lock"
LENGTH = 512  # bytes of a record: less than a block of any disk
BEAT = 5.0  # seconds between two signs of life
STALE = 20.0  # without one for so long, the holder is gone
PATIENCE = 3.0  # for a holder that has been told to end, or is being torn down
ENDING = 120.0  # and for one that says that it is ending: a step and a checkpoint
_NO_FLOCK = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}


@contextmanager
def lock_folder(folder: Path, *, option: str = "run.dir") -> Iterator[None]:
    """Hold `folder`, which is made where it is missing, for this process.

    A start that ends with an error before it writes anything there leaves the folder as it was.

    Args:
        option: that names the folder, for the sentences.

    Raises:
        UserError: it cannot be written or used, or another process holds it (then who, and where).
    """
    if "::" in str(folder):
        raise UserError(
            f"{option}={folder} holds `::`, by which datasets would read it as an address within "
            "another; choose a path without"
        )
    made = [place for place in (folder, *folder.parents) if not os.path.lexists(place)]
    before = _names(folder)
    stream, by_kernel = _held_stream(folder, option)
    with stream:
        holder = _read(folder)
        here = platform.node()
        if holder and not (by_kernel and holder.get("host") == here):
            _wait_for_sign_of_life(folder, holder)
        if holder:
            log.warning(
                "%s=%s: the run of %s was cut off; going on from what it saved",
                *(option, folder, _who(holder)),
            )
        held = _Held(folder, stream, by_kernel=by_kernel)
        # A forked worker that outlives this process must not go on holding the lock.
        os.register_at_fork(after_in_child=stream.close)
        held.start()
        try:
            yield
        except BaseException:
            held.release()
            if NAME not in before and _names(folder) <= {*before, NAME}:
                (folder / NAME).unlink(missing_ok=True)
                for place in made:
                    with suppress(OSError):  # it holds something by now
                        place.rmdir()
            raise
        held.release()


def _names(folder: Path) -> set[str]:
    """The entries of a folder; none where there is no folder."""
    try:
        return set(os.listdir(folder))
    except OSError:
        return set()


def _held_stream(folder: Path, option: str) -> tuple[IO[bytes], bool]:
    """The lock file, held, and whether the kernel holds it."""
    while True:
        stream = _opened(folder, option)
        try:
            if not (folder / NAME).is_file():  # reading a pipe never ends
                raise UserError(f"{option}={folder}: {NAME} is no file; remove it")
            by_kernel = _take(stream, folder)
            if _is_there(stream, folder / NAME):
                return stream, by_kernel
        except BaseException:
            stream.close()
            raise
        stream.close()  # of a start that was refused, which has removed it since


def _is_there(stream: IO[bytes], path: Path) -> bool:
    """Whether a path still leads to the file that was opened by it."""
    try:
        return os.path.samestat(os.fstat(stream.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _opened(folder: Path, option: str) -> IO[bytes]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Not through a link: what it leads to would be emptied.
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
        return os.fdopen(os.open(folder / NAME, flags, 0o644), "r+b", 0)
    except (FileExistsError, NotADirectoryError):
        raise UserError(
            f"{option}={folder} is a file, or lies in one; set {option}= to a folder"
        ) from None
    except OSError as error:
        if error.errno == errno.ELOOP and (folder / NAME).is_symlink():
            raise UserError(
                f"{option}={folder}: {NAME} is a link, which would have what it leads to written "
                "over; remove it"
            ) from None
        if error.errno == errno.ENAMETOOLONG:
            raise UserError(f"{option}={folder} is too long; {TOO_LONG}") from None
        raise UserError(
            f"{option}={folder} cannot be written ({error.strerror}); set {option}= to a "
            "folder of yours"
        ) from None


def _take(stream: IO[bytes], folder: Path) -> bool:
    """Whether the kernel gave the lock; False where this file system has none."""
    begun = time.monotonic()
    while True:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            holder = _read(folder)
            patience = ENDING if holder.get("ending") else PATIENCE
            if time.monotonic() - begun > patience:
                raise UserError(_in_use(folder, holder)) from None
            time.sleep(0.2)
        except OSError as error:
            if error.errno not in _NO_FLOCK:
                raise
            return False


def _wait_for_sign_of_life(folder: Path, holder: dict[str, Any]) -> None:
    """Refuse if the record still changes; the clocks of two hosts need not agree."""
    log.info("run.dir=%s: does %s still live? (up to %.0f s)", folder, _who(holder), STALE)
    begun = time.monotonic()
    while time.monotonic() - begun < STALE:
        time.sleep(BEAT / 5)
        now = _read(folder)
        if not now:
            return  # it ended in order
        if now != holder:
            raise UserError(_in_use(folder, now))


def _read(folder: Path) -> dict[str, Any]:
    """The holder's record; opened anew each time, which is what makes NFS look."""
    try:
        record = json.loads(read_file(folder / NAME) or "{}")
    except (ValueError, OSError, RecursionError):
        return {}
    return record if isinstance(record, dict) else {}


def _who(holder: dict[str, Any]) -> str:
    return f"process {holder.get('process', '?')} on {holder.get('host', '?')}"


def _in_use(folder: Path, holder: dict[str, Any]) -> str:
    who = _who(holder) if holder else "another process"
    return f"{folder} is in use by {who}; wait for it, or give another folder (run.dir=, --to)"


class _Held(threading.Thread):
    """The record of a held lock, kept moving."""

    def __init__(self, folder: Path, stream: IO[bytes], *, by_kernel: bool) -> None:
        super().__init__(name="lock", daemon=True)
        self.path = folder / NAME
        self.stream = stream
        self.token = uuid.uuid4().hex
        self.beat = 0
        self.done = threading.Event()
        self._write()
        if not by_kernel:
            time.sleep(1.0)  # of two that found it free, the one that wrote last goes on
            if _read(folder).get("token") != self.token:
                raise UserError(_in_use(folder, _read(folder)))

    def run(self) -> None:
        """Beat until released; end the process if another has taken the folder over."""
        written, ending = time.monotonic(), False
        while not self.done.wait(0.5):
            if time.monotonic() - written < BEAT and ending == bool(requested()):
                continue
            now = _read(self.path.parent)
            if now and now.get("token") != self.token:
                print(
                    f"error: run.dir={self.path.parent} was taken over by {_who(now)} while this "
                    "process gave no sign of life; nothing more is written here",
                    file=sys.stderr,
                    flush=True,
                )
                os._exit(1)
            written, ending = time.monotonic(), bool(requested())
            try:
                self._write()
            except OSError:
                continue  # a full disk is the business of whoever writes results

    def release(self) -> None:
        """Leave an empty file behind: the run ended in order."""
        self.done.set()
        self.join()
        if _read(self.path.parent).get("token") == self.token:
            self.stream.truncate(0)

    def _write(self) -> None:
        self.beat += 1
        record = {
            "process": os.getpid(),
            "host": platform.node(),
            "token": self.token,
            "ending": bool(requested()),
            "beat": self.beat,
        }
        # In place, because the kernel's lock is on this very file; at once, so that nobody reads
        # half of it.
        with writing(self.path):
            os.pwrite(self.stream.fileno(), json.dumps(record).encode().ljust(LENGTH), 0)
            os.fsync(self.stream.fileno())
