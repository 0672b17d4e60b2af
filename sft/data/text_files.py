"""Text files, plain or gzipped, as numbered lines or one text, within limits on memory."""

import gzip
import io
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from sft.data.records import RowError

MAX_RECORD_BYTES = 16 * 2**20  # a longer row is a broken file and would fill the memory
MAX_WHOLE_BYTES = 4 * 2**30  # of a file that is held in memory as one text
# Largest decompressed size, absolute and as a multiple of the compressed one (logs reach 30):
# a file may exceed one of the two.
MAX_UNPACKED_BYTES, MAX_RATIO = 2**30, 100
HEAD_BYTES = 2**16  # in which the first line end is looked for
READ_ERRORS = (EOFError, OSError, zlib.error)  # of gzip files that are cut off or damaged


class TooLarge(Exception):
    """The decompressed file has more than `limit` bytes."""

    def __init__(self, limit: float) -> None:
        super().__init__(limit)
        self.limit = limit


def open_bytes(path: Path) -> IO[bytes]:
    """Open a file, decompressed if its name ends with .gz, with "\\n" for each lone "\\r"."""
    with _opened(path) as file:
        try:
            head = file.read(HEAD_BYTES)
        except READ_ERRORS:
            head = b""  # the caller meets the same error at the line where it occurs
        end = re.search(rb"\r\n?|\n", head)
        if end is None or end[0] != b"\r":
            return _opened(path)
        # `readline` does not split at the lone "\r" of classic Mac OS.
        return io.BytesIO((head + _read_rest(file, path)).replace(b"\r", b"\n"))


def _opened(path: Path) -> IO[bytes]:
    return gzip.open(path) if _is_gzip(path) else path.open("rb")  # type: ignore[return-value]


def _is_gzip(path: Path) -> bool:
    return path.name.lower().endswith(".gz")


def _max_bytes(path: Path) -> float:
    """Return the largest size of a file after decompression."""
    ratio_limit = MAX_RATIO * path.stat().st_size
    return max(MAX_UNPACKED_BYTES, ratio_limit) if _is_gzip(path) else float("inf")


def _read_rest(file: IO[bytes], path: Path) -> bytearray:
    limit = min(MAX_WHOLE_BYTES, _max_bytes(path))
    content = bytearray()
    while chunk := file.read(2**20):
        content += chunk
        if len(content) > limit:
            raise TooLarge(limit)
    return content


def read_lines(path: Path) -> Iterator[tuple[str, str | RowError]]:
    """Yield each line with its origin; a line that cannot be read is a RowError."""
    number, total, limit = 1, 0, _max_bytes(path)
    try:
        with open_bytes(path) as file:
            while line := file.readline(MAX_RECORD_BYTES + 1):
                size = len(line)
                too_long = size > MAX_RECORD_BYTES
                while too_long and line and not line.endswith(b"\n") and total + size <= limit:
                    line = file.readline(MAX_RECORD_BYTES)
                    size += len(line)
                total += size
                if total > limit:
                    raise TooLarge(limit)
                origin = f"{path}:{number}"
                if too_long:
                    yield origin, _too_long(origin, size)
                else:
                    yield origin, _decoded(origin, line, with_bom=number == 1)
                number += 1
    except (TooLarge, *READ_ERRORS) as error:
        yield f"{path}:{number}", _unreadable(f"{path}:{number}", error)


def _decoded(origin: str, line: bytes, *, with_bom: bool) -> str | RowError:
    try:
        return line.decode("utf-8-sig" if with_bom else "utf-8")
    except UnicodeDecodeError as error:
        return _not_utf8(origin, error)


def read_text(path: Path) -> str:
    """Read the text of a file; raise a `RowError` if it cannot be read."""
    try:
        with open_bytes(path) as file:
            return _read_rest(file, path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        origin = f"{path}:{error.object[: error.start].count(10) + 1}"
        raise _not_utf8(origin, error).ending() from None
    except (TooLarge, *READ_ERRORS) as error:
        raise _unreadable(f"{path}:1", error) from None


def _too_long(origin: str, size: int) -> RowError:
    detail = f"the row has {size / 2**20:.1f} MB, more than {MAX_RECORD_BYTES >> 20} MB"
    return RowError(origin, rule="row too long", detail=detail, remedy="split or remove it")


def _not_utf8(origin: str, error: UnicodeDecodeError) -> RowError:
    detail = f"byte {error.start + 1} ({error.object[error.start]:#04x}) is not UTF-8"
    remedy = "convert the file to UTF-8"
    return RowError(origin, rule="invalid UTF-8", detail=detail, remedy=remedy)


def _unreadable(origin: str, error: Exception) -> RowError:
    """Return the error for the rest of a file that is too large or cut off."""
    if isinstance(error, TooLarge):
        rule = "file too large"
        detail = f"the file has more than {error.limit / 2**20:,.0f} MB unpacked"
        remedy = "unpack it, or save one row a line (.jsonl) in several files"
    else:
        rule, remedy = "truncated file", "fetch it again"
        detail = f"the compressed file breaks off here ({error})"
    return RowError(origin, rule=rule, detail=detail, remedy=remedy, ends=True)
