"""Records (rows as the file holds them) and the numbered lines of a text file."""

import gzip
import io
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from sft.data.row_errors import RowError, not_utf8, too_large, too_long, truncated

MAX_RECORD_BYTES = 16 * 2**20  # a longer row is a broken file, and reading it would take the memory
MAX_WHOLE_BYTES = 4 * 2**30  # of a file that has to be held whole
# What a compressed file may have unpacked, and how many times its size a larger one may; logs and
# tables reach 30.
MAX_UNPACKED_BYTES, MAX_RATIO = 2**30, 100
HEAD = 2**16  # bytes in which the first line end of a file is looked for


@dataclass(frozen=True)
class Record:
    """One row as the file holds it; `origin` is path:line (path:row for Parquet and hubs)."""

    origin: str
    fields: dict[str, Any]
    cells: bool = False  # every field is text, since the file (CSV) has no other type


class TooLarge(Exception):
    """A file that has to be held whole and has more than `limit` bytes, unpacked."""

    def __init__(self, limit: float) -> None:
        super().__init__(limit)
        self.limit = limit


def open_bytes(path: Path) -> IO[bytes]:
    """A file's bytes, decompressed where its name ends with .gz, with line ends of "\\n" where the
    file's own are a lone "\\r" (classic Mac OS), which `readline` does not know.

    Raises:
        TooLarge: a file of such line ends, which is held whole.
    """
    with _opened(path) as file:
        try:
            head = file.read(HEAD)
        except (EOFError, OSError, zlib.error):
            head = b""
        first = min((at for end in (b"\r", b"\n") if (at := head.find(end)) >= 0), default=-1)
        if first < 0 or head[first : first + 1] == b"\n" or head[first + 1 : first + 2] == b"\n":
            return _opened(path)
        return io.BytesIO((head + _whole(file, path)).replace(b"\r", b"\n"))


def _opened(path: Path) -> IO[bytes]:
    return gzip.open(path) if path.name.lower().endswith(".gz") else path.open("rb")  # type: ignore[return-value]


def read_lines(path: Path) -> Iterator[tuple[str, str | RowError]]:
    """Decoded lines with their origins; what cannot be decoded is a RowError in its place."""
    number, total, origin = 0, 0, f"{path}:1"
    most = _most(path)
    try:
        file = open_bytes(path)
    except TooLarge as error:
        yield origin, too_large(origin, limit=error.limit)
        return
    except (EOFError, OSError, zlib.error) as error:
        yield origin, truncated(origin, error)
        return
    with file:
        while True:
            number += 1
            origin = f"{path}:{number}"
            try:
                line = file.readline(MAX_RECORD_BYTES + 1)
                if len(line) > MAX_RECORD_BYTES:
                    size = len(line)
                    while line and not line.endswith(b"\n") and total + size <= most:
                        line = file.readline(MAX_RECORD_BYTES)
                        size += len(line)
                    total += size
                    if total > most:
                        yield origin, too_large(origin, limit=most)
                        return
                    yield origin, too_long(origin, size, limit=MAX_RECORD_BYTES)
                    continue
            except (EOFError, OSError, zlib.error) as error:
                yield origin, truncated(origin, error)
                return
            if not line:
                return
            total += len(line)
            if total > most:
                yield origin, too_large(origin, limit=most)
                return
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                yield origin, not_utf8(origin, error)
                continue
            yield origin, text


def _most(path: Path) -> float:
    """Return the most bytes that a file may have after decompression."""
    if not path.name.lower().endswith(".gz"):
        return float("inf")
    return max(MAX_UNPACKED_BYTES, MAX_RATIO * path.stat().st_size)


def _whole(file: IO[bytes], path: Path) -> bytearray:
    """Read the rest of a file.

    Raises:
        TooLarge: it would fill the memory.
    """
    limit = min(MAX_WHOLE_BYTES, _most(path))
    content = bytearray()
    while chunk := file.read(2**20):
        content += chunk
        if len(content) > limit:
            raise TooLarge(limit)
    return content


def read_text(path: Path) -> str | RowError:
    """Read a text file; return a RowError where it cannot be read."""
    try:
        with open_bytes(path) as file:
            return _whole(file, path).decode("utf-8-sig")
    except TooLarge as error:
        return too_large(f"{path}:1", limit=error.limit)
    except UnicodeDecodeError as error:
        return not_utf8(f"{path}:{error.object[: error.start].count(10) + 1}", error).ending()
    except (EOFError, OSError, zlib.error) as error:
        return truncated(f"{path}:1", error)
