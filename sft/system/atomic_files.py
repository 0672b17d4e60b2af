"""Atomic file and folder writes, with OS errors as one sentence."""

import errno
import hashlib
import json
import os
import re
import shutil
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

from safetensors import SafetensorError

from sft.errors import UserError
from sft.system.record_hash import sealed, unsealed
from sft.system.run_marker import move_foreign_files, recording

CACHED_FROM = 1 << 22  # bytes; hashing fewer takes about as long as a look into the cache
GONE = ".gone-"  # prefix of a folder that is being removed

TOO_LONG = "give a shorter name or path: most systems take 255 and 4096 bytes"
REMEDIES = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some space or have the quota raised",
    errno.EROFS: "mount it for writing",
    errno.EACCES: "give this user the right to write there",
    errno.EPERM: "give this user the right to write there",
    errno.EFBIG: "raise the limit on file sizes (ulimit -f)",
    errno.EIO: "check the disk",
    errno.ESTALE: "check the network file system",
    errno.ENOTDIR: "name a folder in the place of the file that the path leads through",
    errno.EISDIR: "move the folder that is in the place of the file",
    errno.ENAMETOOLONG: TOO_LONG,
    errno.ELOOP: "remove the circle of links",
    errno.EMFILE: "raise the limit on open files (ulimit -n)",
    errno.ENFILE: "close other programs",
    errno.ENOMEM: "free memory",
}
# In `writing` only: elsewhere a missing file may be a bug of this project.
_OF_WRITES = {errno.ENOENT: "leave the folder in its place while a command writes there"}
MISPLACED = {errno.EISDIR, errno.EEXIST}  # a folder in the place of a file, or the reverse
_NO_TEMPORARY = "No usable temporary directory"  # message of tempfile.gettempdir on full disks
_NO_SPACE = "Not enough disk space"  # message of datasets.builder before it writes
# Messages of torch's zip writer, which have no errno; the last one comes from the last flush.
_TORCH_WRITER = ("PytorchStreamWriter", "inline_container", "unexpected pos", "iostream error")
# Rust and C++ libraries put the errno into their message, if anywhere.
_NUMBER = re.compile(r"os error (\d+)|Errno (\d+)|code: (\d+)")


class NotAFile(OSError):
    """A folder, pipe, socket or device is in the place of a file."""


class WriteFailed(OSError):
    """A file could not be written; its earlier content is unchanged."""


def describe_os_error(error: OSError) -> str | None:
    """Return path, reason and remedy of a disk error in one sentence; None for other errors."""
    if str(error.strerror).startswith(_NO_TEMPORARY):
        return (
            f"no folder for temporary files can be written ({error.strerror}); what was saved "
            "before is complete: free some space, or set TMPDIR to a folder that has some, and "
            "start the same command again"
        )
    if isinstance(error, NotAFile) or error.errno in MISPLACED:
        return (
            f"{error.filename} is not what belongs there ({error.strerror}); move it away and "
            "start the same command again"
        )
    if error.errno not in REMEDIES and not isinstance(error, WriteFailed):
        return None
    if error.errno == errno.ENAMETOOLONG:  # the path is the user's, and nothing was written yet
        return f"the name or path {error.filename or ''} is too long; {TOO_LONG}"
    remedy = (REMEDIES | _OF_WRITES).get(error.errno or 0, "look at free space and rights")
    done = "written" if isinstance(error, WriteFailed) else "read or written"
    return (
        f"{error.filename or 'a file'} could not be {done} ({error.strerror}); what was saved "
        f"before is complete: {remedy} and start the same command again"
    )


@contextmanager
def writing(path: Path, *more: type[Exception]) -> Iterator[None]:
    """Convert errors of libraries that write `path` to WriteFailed, and record the write.

    `more` are further exception types of the library (see also `sft.system.run_marker.recording`).
    """
    kinds: tuple[type[Exception], ...] = (OSError, RuntimeError, SafetensorError, *more)
    try:
        with recording(path):
            yield
    except WriteFailed:
        raise
    except Exception as error:
        if not isinstance(error, kinds) and type(error) is not Exception:  # tokenizers' own
            raise
        number = _number(error) if path.parent.is_dir() else errno.ENOENT
        known = number in REMEDIES or number in _OF_WRITES
        if not known and not _is_torch_writer(error):
            raise
        reason = os.strerror(number) if known else str(error).split("\n")[0][:160]
        raise WriteFailed(number, reason, str(path)) from error


def _number(error: BaseException | None) -> int:
    """Return the errno of an error or of one of its causes, or 0."""
    while error is not None:
        if isinstance(error, OSError) and error.errno:
            return error.errno
        found = _NUMBER.search(str(error))
        if found:
            return int(next(group for group in found.groups() if group))
        if _NO_SPACE in str(error):
            return errno.ENOSPC
        error = error.__cause__ or error.__context__
    return 0


def _is_torch_writer(error: Exception) -> bool:
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _TORCH_WRITER)


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically; see `write_text`."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write text atomically: temporary name, fsync, rename. A power loss leaves no partial file."""
    temporary = temporary_name(path)
    try:
        with writing(path):
            with temporary.open("w", encoding="utf-8") as stream:
                stream.write(text)
                stream.flush()
                os.fsync(stream.fileno())
            temporary.replace(path)
            sync(path.parent)
    finally:
        with suppress(OSError):  # it is gone after the rename
            temporary.unlink()


def temporary_name(path: Path) -> Path:
    """Return the name of a file or folder until it is complete."""
    return path.with_name(f".{path.name}.tmp")


def is_plain_name(name: str) -> bool:
    """Return whether an external name is safe as a file name: no path, not hidden, not long."""
    printable = name.isprintable() and not set(name) & set("/\\")
    return printable and 0 < len(name) <= 200 and not name.startswith(".")


def is_inside(path: Path, folder: Path) -> bool:
    """Return whether a path, with links resolved, is inside `folder`."""
    # `Path.resolve` raises at a circle of links, `realpath` does not.
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def read_json(path: Path) -> Any:
    """Return the content of a JSON file, or None if it is missing or damaged."""
    try:
        return json.loads(read_file(path))
    except (FileNotFoundError, NotADirectoryError, NotAFile, ValueError, RecursionError):
        return None


def write_record(path: Path, record: Mapping[str, Any]) -> None:
    """Write a mapping as JSON with its own hash, which `read_record` verifies."""
    write_json(path, sealed(record))


def read_record(path: Path, *keys: str) -> dict[str, Any] | None:
    """Return a mapping that `write_record` wrote, or None if it is missing or damaged.

    A record without a hash, as earlier versions wrote it, is accepted if it has `keys`.
    """
    return unsealed(read_json(path), *keys)


def iter_jsonl(path: Path, *, remedy: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the number and the object of each line of a JSON-lines file; blank lines are skipped.

    Raises:
        UserError: a line is not a JSON object; the sentence ends with `remedy`.
    """
    with open_file(path) as stream:
        for number, line in enumerate(stream, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                reason = str(error)[:80]
                raise UserError(f"{path}:{number}: not JSON ({reason}); {remedy}") from None
            if not isinstance(row, dict):
                raise UserError(f"{path}:{number}: not a JSON object; {remedy}")
            yield number, row


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a JSON-lines file that a run wrote; see `iter_jsonl`."""
    remedy = "the file was changed after it was written: start the command that wrote it again"
    return [row for _, row in iter_jsonl(path, remedy=remedy)]


def open_file(path: Path) -> IO[bytes]:
    """Open a file for reading; NotAFile for a folder, a pipe (which may block) or a device."""
    if path.exists() and not path.is_file():
        raise NotAFile(errno.EINVAL, "a file belongs there", str(path))
    stream = os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb")
    if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):  # it was replaced since the check
        stream.close()
        raise NotAFile(errno.EINVAL, "a file belongs there", str(path))
    return stream


def read_file(path: Path) -> bytes:
    with open_file(path) as stream:
        return stream.read()


def sync(path: Path) -> None:
    """Flush a file's content, or a folder's entries, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network file systems cannot sync folders
            raise
    finally:
        os.close(handle)


def sync_tree(folder: Path) -> None:
    """Flush every file below a folder, then every folder."""
    below = sorted(folder.rglob("*"))
    for path in [p for p in below if p.is_file()] + [p for p in below if p.is_dir()] + [folder]:
        sync(path)


def sync_and_rename(draft: Path, target: Path) -> None:
    """Flush a folder to the disk, then rename it to `target`, which is missing or empty."""
    sync_tree(draft)
    draft.rename(target)
    sync(target.parent)


def reset_permissions(folder: Path) -> None:
    """Give the files of a folder the default permissions of new files."""
    # safetensors creates files that only their owner can read; a server may be another user.
    mask = os.umask(0)  # the only way to read the mask is to set it
    os.umask(mask)
    for path in folder.iterdir():
        if path.is_file():
            path.chmod(0o666 & ~mask)


def file_hash(path: Path) -> str:
    """Return the sha256 of a file; that of a large file is cached by size, time and inode."""
    facts = path.stat()
    # Small files can change within one tick of the file system's clock, so they are never cached.
    if facts.st_size < CACHED_FROM:
        return hashlib.sha256(read_file(path)).hexdigest()
    return _large_hash(path, facts.st_size, facts.st_mtime_ns, facts.st_ino)


@lru_cache(maxsize=4096)
def _large_hash(path: Path, *_: int) -> str:
    digest = hashlib.sha256()
    with open_file(path) as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def remove(path: Path) -> None:
    """Remove a file, or a folder atomically: a kill leaves no partial folder under its name.

    Files that the open run did not write are moved aside first.
    """
    move_foreign_files(path)
    if path.is_dir() and not path.is_symlink():
        gone = path.with_name(GONE + path.name)
        _discard(gone)
        path.rename(gone)
        shutil.rmtree(gone)
    else:
        path.unlink(missing_ok=True)


def sweep(folder: Path) -> None:
    """Finish removals that a kill interrupted."""
    for path in folder.glob(GONE + "*"):
        _discard(path)


def _discard(gone: Path) -> None:
    move_foreign_files(gone)
    if gone.is_dir() and not gone.is_symlink():
        shutil.rmtree(gone)
