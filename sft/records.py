"""A row of a file as it was read, and the lines of a text file with their numbers."""

import gzip
import io
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from sft.row_errors import RowError, not_utf8, too_long, truncated

MAX_RECORD_BYTES = 16 * 2**20  # a longer row is a broken file, and reading it would take the memory
HEAD = 2**16  # bytes in which the first line end of a file is looked for


@dataclass(frozen=True)
class Record:
    """One row as it stands in the file; `origin` is path:line (path:row for Parquet and hubs)."""

    origin: str
    fields: dict[str, Any]
    cells: bool = False  # every field is text, since the file (CSV) has no other type


def open_bytes(path: Path) -> IO[bytes]:
    """A file's bytes, decompressed where its name ends with .gz, with line ends of "\\n" where the
    file's own are a lone "\\r" (classic Mac OS), which `readline` does not know."""
    with _opened(path) as file:
        try:
            head = file.read(HEAD)
        except (EOFError, OSError, zlib.error):
            head = b""
        first = min((at for end in (b"\r", b"\n") if (at := head.find(end)) >= 0), default=-1)
        if first < 0 or head[first : first + 1] == b"\n" or head[first + 1 : first + 2] == b"\n":
            return _opened(path)
        return io.BytesIO((head + file.read()).replace(b"\r", b"\n"))


def _opened(path: Path) -> IO[bytes]:
    return gzip.open(path) if path.name.lower().endswith(".gz") else path.open("rb")  # type: ignore[return-value]


def read_lines(path: Path) -> Iterator[tuple[str, str | RowError]]:
    """Decoded lines with their origins; what cannot be decoded is a RowError in its place."""
    number, origin = 0, f"{path}:1"
    try:
        file = open_bytes(path)
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
                    while line and not line.endswith(b"\n"):
                        line = file.readline(MAX_RECORD_BYTES)
                        size += len(line)
                    yield origin, too_long(origin, size, limit=MAX_RECORD_BYTES)
                    continue
            except (EOFError, OSError, zlib.error) as error:
                yield origin, truncated(origin, error)
                return
            if not line:
                return
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                yield origin, not_utf8(origin, error)
                continue
            yield origin, text


def read_text(path: Path) -> str | RowError:
    """A whole text file, or why it cannot be read."""
    try:
        with open_bytes(path) as file:
            return file.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        return not_utf8(f"{path}:{error.object[: error.start].count(10) + 1}", error).ending()
    except (EOFError, OSError, zlib.error) as error:
        return truncated(f"{path}:1", error)
