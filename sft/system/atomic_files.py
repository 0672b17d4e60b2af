"""Files that are whole or not there, folders that go all at once, and writes that fail in words."""

import errno
import hashlib
import json
import os
import re
import shutil
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

from safetensors import SafetensorError

from sft.errors import UserError
from sft.system.run_marker import move_foreign_files, recording
from sft.system.seal import sealed, unsealed

CACHED_FROM = 1 << 22  # bytes
GONE = ".gone-"  # what a folder is called from the moment that it counts for nothing

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
    errno.EISDIR: "move the folder that stands in the place of the file",
    errno.ENAMETOOLONG: TOO_LONG,
    errno.ELOOP: "remove the circle of links",
    errno.EMFILE: "raise the limit on open files (ulimit -n)",
    errno.ENFILE: "close other programs",
    errno.ENOMEM: "free memory",
}
# Within `writing` alone: elsewhere a file that is missing may be our own mistake.
_OF_WRITES = {errno.ENOENT: "leave the folder in its place while a command writes there"}
MISPLACED = {errno.EISDIR, errno.EEXIST}  # a folder in the place of a file, or the reverse
_NO_TEMPORARY = "No usable temporary directory"  # tempfile's, where all that it tries are full
_NO_SPACE = "Not enough disk space"  # datasets', before it writes anything
# Libraries written in Rust and C++ put the number of the fault into their message, or nothing.
_NUMBER = re.compile(r"os error (\d+)|Errno (\d+)|code: (\d+)")


class NotAFile(OSError):
    """A folder, a pipe or a device is where a file belongs."""


class WriteFailed(OSError):
    """The disk did not take a file; what was there before is as it was."""


def describe_os_error(error: OSError) -> str | None:
    """One sentence for a disk that is full, read-only, forbidden or broken; None for anything else.

    The sentence has the path, the reason, what stays and what to do.
    """
    if str(error.strerror).startswith(_NO_TEMPORARY):
        return (
            f"no folder for temporary files can be written ({error.strerror}); what was saved "
            "before is whole: free some space, or set TMPDIR to a folder that has some, and start "
            "the same command again"
        )
    if isinstance(error, NotAFile) or error.errno in MISPLACED:
        return (
            f"{error.filename} is not what belongs there ({error.strerror}); move it away and "
            "start the same command again"
        )
    if error.errno not in REMEDIES and not isinstance(error, WriteFailed):
        return None
    if error.errno == errno.ENAMETOOLONG:  # of what the user named: nothing was begun there
        return f"the name or path {error.filename or ''} is too long; {TOO_LONG}"
    remedy = (REMEDIES | _OF_WRITES).get(error.errno or 0, "look at free space and rights")
    done = "written" if isinstance(error, WriteFailed) else "read or written"
    return (
        f"{error.filename or 'a file'} could not be {done} ({error.strerror}); what was saved "
        f"before is whole: {remedy} and start the same command again"
    )


@contextmanager
def writing(path: Path, *more: type[Exception]) -> Iterator[None]:
    """Give the failures of libraries that write `path` one type; `more` are theirs by name. The
    marker of the open run names what is written.

    Raises:
        WriteFailed: torch, safetensors, tokenizers, pyarrow or the operating system could not
            write.
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
    """The errno of an error or of what it came from; 0 if none says."""
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
    """torch's zip writer says where it failed, not why."""
    return isinstance(error, RuntimeError) and any(
        words in str(error)
        for words in (
            *("PytorchStreamWriter", "inline_container", "unexpected pos"),
            "iostream error",  # where it is at the end that there is no room
        )
    )


def write_json(path: Path, value: Any) -> None:
    """Write JSON so that the file is whole or not there: temporary name, fsync, rename."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write text so that the file is whole or not there, also after a loss of power."""
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
        with suppress(OSError):  # there is none, where nothing failed
            temporary.unlink()


def temporary_name(path: Path) -> Path:
    """What a file is called until it is whole."""
    return path.with_name(f".{path.name}.tmp")


def is_plain_name(name: str) -> bool:
    """Whether a name from outside can be that of a file: no folder, hidden or endless one."""
    return (
        0 < len(name) <= 200
        and not name.startswith(".")
        and name.isprintable()
        and not set(name) & set("/\\")
    )


def is_inside(path: Path, folder: Path) -> bool:
    """Whether a path, as written and as it is after links, does not lead out of `folder`."""
    # `Path.resolve` raises at a circle of links, which leads nowhere.
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    """One JSON object a line, whole or not there."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def read_json(path: Path) -> Any:
    """The file's content, or None where there is no such file or it is damaged."""
    try:
        return json.loads(read_file(path))
    except (FileNotFoundError, NotADirectoryError, NotAFile, ValueError, RecursionError):
        return None


def write_record(path: Path, record: Mapping[str, Any]) -> None:
    """`write_json` of a mapping, with the hash that `read_record` holds it against."""
    write_json(path, sealed(record))


def read_record(path: Path, *keys: str) -> dict[str, Any] | None:
    """A mapping that `write_record` wrote, or one from before it that has `keys`; None where there
    is none or it is damaged."""
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
    """Open a file to be read. Every file of a run is opened by this function: a pipe would keep its
    reader waiting, and a device may never end.

    Raises:
        NotAFile: a folder, a pipe, a socket or a device is there.
    """
    if path.exists() and not path.is_file():
        raise NotAFile(errno.EINVAL, "a file belongs there", str(path))
    stream = os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb")
    if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):  # it has changed in between
        stream.close()
        raise NotAFile(errno.EINVAL, "a file belongs there", str(path))
    return stream


def read_file(path: Path) -> bytes:
    """The bytes of a file; see `open_file`."""
    with open_file(path) as stream:
        return stream.read()


def sync(path: Path) -> None:
    """Have the disk hold a file's bytes, or a folder's names, before going on."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network file systems do not sync folders
            raise
    finally:
        os.close(handle)


def sync_tree(folder: Path) -> None:
    """`sync` for every file under a folder, then every folder."""
    below = sorted(folder.rglob("*"))
    for path in [p for p in below if p.is_file()] + [p for p in below if p.is_dir()] + [folder]:
        sync(path)


def sync_and_rename(draft: Path, target: Path) -> None:
    """Give a written folder its name when the disk holds it; `target` is missing or empty."""
    sync_tree(draft)
    draft.rename(target)
    sync(target.parent)


def reset_permissions(folder: Path) -> None:
    """Give a folder's files the rights that new files have: safetensors leaves its own to their
    owner alone, and a server may run as somebody else."""
    mask = os.umask(0)
    os.umask(mask)
    for path in folder.iterdir():
        if path.is_file():
            path.chmod(0o666 & ~mask)


def file_hash(path: Path) -> str:
    """sha256 of a file's contents; a large one is read once for as long as size and time stay."""
    facts = path.stat()
    if facts.st_size < CACHED_FROM:  # small files are rewritten faster than a file's clock ticks
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
    """Remove a file, or a folder so that no half of it is ever found under its name; what an open
    run did not write is moved aside (`sft.system.run_marker.move_foreign_files`)."""
    move_foreign_files(path)
    if path.is_dir() and not path.is_symlink():
        gone = path.with_name(GONE + path.name)
        _discard(gone)
        path.rename(gone)
        shutil.rmtree(gone)
    else:
        path.unlink(missing_ok=True)


def sweep(folder: Path) -> None:
    """Finish removals that a kill cut off."""
    for path in folder.glob(GONE + "*"):
        _discard(path)


def _discard(gone: Path) -> None:
    """Finish one removal, if there is one; what an open run did not write is moved aside."""
    move_foreign_files(gone)
    if gone.is_dir() and not gone.is_symlink():
        shutil.rmtree(gone)
