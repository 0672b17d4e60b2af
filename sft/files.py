"""Files to records: JSON, JSONL, Parquet and CSV, each record with its file and line.

A record that cannot be read comes back as a RowError value in its place, so that the caller decides
whether to stop; a file that cannot be read at all raises.
"""

import csv
import difflib
import gzip
import json
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from sft.config import Source, UserError, find_path
from sft.hub import hub_refusal, reach_hub
from sft.row_errors import RowError, malformed, not_utf8, too_long, truncated

MAX_RECORD_BYTES = 16 * 2**20  # a longer row is a broken file, and reading it would take the memory
SUFFIXES = (".jsonl", ".ndjson", ".json", ".parquet", ".csv")
WHITE = " \t\r\n"


@dataclass(frozen=True)
class Record:
    """One row as it stands in the file; `origin` is path:line (path:row for Parquet and hubs)."""

    origin: str
    fields: dict[str, Any]


def read_records(source: Source) -> Iterator[Record | RowError]:
    """Stream the records of a local file or a hub dataset.

    Raises:
        UserError: no such file or dataset; contents of another kind than the name says.
    """
    path = find_path(source.path)
    if path is None and _is_hub_id(source.path):
        return _read_hub(source.path, split=source.split)
    return _read_file(existing_file(source.path, path))


def _is_hub_id(path: str) -> bool:
    owner, _, name = path.partition("/")
    return (
        bool(owner and name)
        and "/" not in name
        and not path.startswith((".", "~"))
        and not Path(owner).exists()
        and not _suffix(path)
    )


def _suffix(path: str | Path) -> str:
    """The data suffix of a name, with .gz where it has one, or nothing."""
    name = str(path).lower()
    return next((s + z for s in SUFFIXES for z in ("", ".gz") if name.endswith(s + z)), "")


def existing_file(given: str, path: Path | None) -> Path:
    """The file that `given` was found to be.

    Raises:
        UserError: there is none, or it is nothing that rows could be read from.
    """
    if path is None:
        folder = Path(given).expanduser().parent
        names = sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []
        near = difflib.get_close_matches(Path(given).name, names, n=3, cutoff=0.4)
        if not folder.is_dir():
            hint = f"the folder {folder} does not exist either"
        elif near:
            hint = f"nearest names there: {', '.join(near)}"
        else:
            hint = f"{folder} holds no similar name"
        raise UserError(f"{given}: no such file; {hint}")
    if path.is_dir():
        raise UserError(f"{path}: is a folder; name one of its files")
    if not path.is_file():
        raise UserError(f"{path}: is a device or a pipe; save what it gives as a file")
    if not _suffix(path):
        raise UserError(f"{path}: unknown format; save it as one of {', '.join(SUFFIXES)}")
    return path


def _read_file(path: Path) -> Iterator[Record | RowError]:
    suffix = _suffix(path)
    try:
        with path.open("rb") as file:
            head = file.read(4)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check its rights") from None
    if not head:
        raise UserError(f"{path} is empty; give it rows, or leave it out")
    for magic, name, right in (
        (b"\x1f\x8b", "gzip", suffix.endswith(".gz")),
        (b"PAR1", "Parquet", suffix == ".parquet"),
    ):
        if head.startswith(magic) != right and (right or head.startswith(magic)):
            verb = "is not a" if right else "is a"
            raise UserError(f"{path}:1: {verb} {name} file, against its name; rename it")
    if suffix == ".parquet":
        return _read_parquet(path)
    kind = suffix.removesuffix(".gz")
    if kind == ".csv":
        return _read_csv(path)
    return _read_json(path, lines=kind != ".json")


def _open(path: Path) -> IO[bytes]:
    return gzip.open(path) if path.name.lower().endswith(".gz") else path.open("rb")  # type: ignore[return-value]


def _read_json(path: Path, *, lines: bool) -> Iterator[Record | RowError]:
    """A row a line, or, in a .json file, one array of rows."""
    if not lines:
        with _open(path) as file:
            try:
                first = file.read(64).removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
            except (EOFError, OSError, zlib.error):
                first = b""
        if first == b"[":
            yield from _read_array(path)
            return
    for origin, line in _lines(path):
        if isinstance(line, RowError):
            yield line
        elif line.strip(WHITE):
            yield _record(origin, line)


def _lines(path: Path) -> Iterator[tuple[str, str | RowError]]:
    """Decoded lines with their origins; what cannot be decoded is a RowError in its place."""
    number, origin = 0, f"{path}:1"
    with _open(path) as file:
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


def _record(origin: str, text: str) -> Record | RowError:
    text = text.rstrip(WHITE)  # or what is wrong behind it would stand in a line of its own
    try:
        value = json.loads(text)
    except RecursionError:
        return RowError(
            origin, rule="nested too deeply", detail="JSON nested too deeply", remedy="flatten it"
        )
    except ValueError as error:
        return malformed(origin, error, line=True)
    return _as_record(origin, value)


def _as_record(origin: str, value: Any) -> Record | RowError:
    if not isinstance(value, dict):
        return RowError(
            origin,
            rule="not an object",
            detail=f"the row is {type_name(value)}, not an object with named fields",
            remedy='write {"messages": [...]} or another known format',
        )
    return Record(origin, value)


def _read_array(path: Path) -> Iterator[Record | RowError]:
    """The rows of one JSON array. The text is held whole; the rows are decoded one by one."""
    try:
        with _open(path) as file:
            data = file.read()
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        yield not_utf8(f"{path}:{error.object[: error.start].count(10) + 1}", error)
        return
    except (EOFError, OSError, zlib.error) as error:
        yield truncated(f"{path}:1", error)
        return
    decoder = json.JSONDecoder()
    at, line, counted = text.index("[") + 1, 1, 0
    comma, rows = False, 0  # whether a separator comes next
    while True:
        while at < len(text) and text[at] in WHITE:
            at += 1
        line += text.count("\n", counted, at)
        counted, origin = at, f"{path}:{line}"
        if text[at : at + 1] == "]" and (comma or not rows):
            rest = text[at + 1 :].strip(WHITE)
            if rest:
                yield malformed(origin, ValueError(f"{rest[:20]!r} behind the array"))
            return
        if comma:
            if text[at : at + 1] != ",":
                yield malformed(origin, ValueError("',' or ']' expected behind a row"))
                return
            at, comma = at + 1, False
            continue
        try:
            value, at = decoder.raw_decode(text, at)
        except RecursionError:
            yield RowError(
                origin,
                rule="nested too deeply",
                detail="JSON nested too deeply",
                remedy="flatten it",
            )
            return
        except ValueError as error:
            yield malformed(origin, error)
            return
        yield _as_record(origin, value)
        comma, rows = True, rows + 1


def _read_parquet(path: Path) -> Iterator[Record | RowError]:
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        file = pyarrow.parquet.ParquetFile(path)
        for batch in file.iter_batches(batch_size=1024):
            for fields in batch.to_pylist():
                number += 1
                yield Record(f"{path}:{number}", _without_nulls(fields))
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        yield RowError(
            f"{path}:{number + 1}",
            rule="truncated file",
            detail=f"unreadable Parquet ({' '.join(str(error).split())[:120]})",
            remedy="fetch the file again",
        )


def _without_nulls(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of a typed table without the nulls inside its objects, which all have the keys of all:
    the arguments of a tool call come with those of every other tool. Fields themselves stay."""
    return {name: _present(value) for name, value in row.items()}


def _present(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _present(inner) for key, inner in value.items() if inner is not None}
    return [_present(inner) for inner in value] if isinstance(value, list) else value


def _read_csv(path: Path) -> Iterator[Record | RowError]:
    """Rows of a CSV file with a header. Every cell is text."""
    failed: list[RowError] = []
    place = [f"{path}:1"]

    def texts() -> Iterator[str]:
        for origin, line in _lines(path):
            place[0] = origin
            if isinstance(line, RowError):
                failed.append(line)
                return
            yield line

    csv.field_size_limit(MAX_RECORD_BYTES)
    reader = csv.reader(texts(), strict=True)
    header: list[str] | None = None
    while True:
        try:
            cells = next(reader, None)
        except csv.Error as error:
            yield RowError(
                place[0],
                rule="malformed CSV",
                detail=f"malformed CSV ({error})",
                remedy="quote the field that holds a comma, a quote or a line break",
            )
            return
        yield from failed
        if cells is None or failed:
            return
        if header is None:
            header = cells
        elif len(cells) != len(header):
            if cells:
                yield RowError(
                    place[0],
                    rule="malformed CSV",
                    detail=f"{len(cells)} fields where the header names {len(header)}",
                    remedy="quote the field that holds a comma, a quote or a line break",
                )
        else:
            yield Record(place[0], dict(zip(header, cells, strict=True)))


def _read_hub(name: str, *, split: str) -> Iterator[Record | RowError]:
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    reach_hub()
    number = 0
    try:
        for row in load_dataset(name, split=split, streaming=True):
            number += 1
            yield Record(f"{name}[{split}]:{number}", _without_nulls(row))
    except (DatasetsError, OSError, ValueError) as error:
        if not number and (refusal := hub_refusal(error, name=name, kind="dataset")):
            raise UserError(f"{name}: {refusal}") from None
        what = f"breaks off behind row {number}" if number else "is not what the hub gives"
        raise UserError(
            f"{name}: there is no such local file, and the dataset of this name {what} "
            f"({' '.join(str(error).split())[:160]}); check the name, the split {split!r} and the "
            "network"
        ) from None


def type_name(value: Any) -> str:
    """What a user calls the type of a JSON value."""
    names = {
        type(None): "null",
        bool: "true or false",
        int: "a number",
        float: "a number",
        str: "text",
        list: "a list",
        dict: "an object",
    }
    return names.get(type(value), type(value).__name__)
