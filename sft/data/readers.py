"""Files and Hub datasets as records: JSON, JSON Lines, Parquet and CSV, each with file and line.

A record that cannot be read is a `RowError` in its place, so that the caller decides whether to
stop; a file that cannot be read raises.
"""

import difflib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sft.config.preset import find_path
from sft.config.sections import Source
from sft.data.csv_reader import read_csv
from sft.data.json_reader import read_json
from sft.data.json_values import drop_nulls
from sft.data.records import Record, RowError, equal_names
from sft.errors import UserError
from sft.system.hub import hub_refusal, reach_hub

SUFFIXES = (".jsonl", ".ndjson", ".json", ".parquet", ".csv", ".tsv")
# First bytes of archives that are not read.
MAGIC = {
    b"PK\x03\x04": "zip",
    b"\x28\xb5\x2f\xfd": "Zstandard",
    b"\xfd7zX": "xz",
    b"BZh": "bzip2",
}
BATCH_ROWS = 128  # of Parquet, decoded at once
# Parquet stores a repeated value once, so a small file can decode to more than the memory holds. A
# column above the first size may be compressed at most by the second factor.
MAX_COLUMN_BYTES, MAX_COLUMN_RATIO = 8 * 2**20, 1000


def read_records(source: Source) -> Iterator[Record | RowError]:
    """Stream the records of a local file or a Hub dataset.

    Raises:
        UserError: no such file or dataset, or contents that do not match the file's suffix.
    """
    if is_on_hub(source.path):
        return _read_hub(source)
    for key in ("name", "revision"):
        if (value := getattr(source, key)) is not None:
            raise UserError(
                f"{source.path}: {key}={value} belongs to a dataset on the hub, and this is a "
                "local file; leave it out"
            )
    return _read_file(existing_file(source.path, find_path(source.path)))


def is_on_hub(path: str) -> bool:
    """Return whether a path is not on this machine and has the form of `org/name`."""
    owner, _, name = path.partition("/")
    return (
        find_path(path) is None
        and bool(owner and name)
        and "/" not in name
        and not path.startswith((".", "~"))
        and not Path(owner).exists()
        and not _suffix(path)
    )


def _suffix(path: str | Path) -> str:
    """Return the data suffix of a name, including .gz; "" if it has none."""
    name = str(path).lower()
    return next((s + z for s in SUFFIXES for z in ("", ".gz") if name.endswith(s + z)), "")


def existing_file(given: str, path: Path | None) -> Path:
    """Return the path that `given` was resolved to if rows can be read from it."""
    if path is None:
        folder = Path(given).expanduser().parent
        names = sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []
        near = ", ".join(difflib.get_close_matches(Path(given).name, names, n=3, cutoff=0.4))
        hint = f"nearest names there: {near}" if near else f"{folder} holds no similar name"
        if not folder.is_dir():
            hint = f"the folder {folder} does not exist either"
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
    for magic, name, expected in (
        (b"\x1f\x8b", "gzip", suffix.endswith(".gz")),
        (b"PAR1", "Parquet", suffix == ".parquet"),
    ):
        if head.startswith(magic) != expected:
            verb = "is not a" if expected else "is a"
            raise UserError(f"{path}:1: {verb} {name} file, against its name; rename it")
    if archive := next((name for magic, name in MAGIC.items() if head.startswith(magic)), None):
        raise UserError(f"{path}:1: is a {archive} file, against its name; unpack it")
    if suffix == ".parquet":
        return _read_parquet(path)
    kind = suffix.removesuffix(".gz")
    return read_csv(path, tabs=kind == ".tsv") if kind in (".csv", ".tsv") else read_json(path)


def _read_parquet(path: Path) -> Iterator[Record | RowError]:
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        file = pyarrow.parquet.ParquetFile(path)
        if twice := equal_names(f"{path}:1", file.schema_arrow.names, of="schema"):
            yield twice
            return
        if detail := _oversized_column(file.metadata):
            yield RowError(
                f"{path}:1",
                rule="file too large",
                detail=detail,
                remedy="save the rows as JSON lines",
                ends=True,
            )
            return
        for batch in file.iter_batches(batch_size=BATCH_ROWS):
            for fields in batch.to_pylist():
                number += 1
                yield _typed_record(f"{path}:{number}", fields)
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        yield RowError(
            f"{path}:{number + 1}",
            rule="truncated file",
            detail=f"unreadable Parquet ({' '.join(str(error).split())[:120]})",
            remedy="fetch the file again",
            ends=True,
        )


def _oversized_column(metadata: Any) -> str:
    """Describe the first column that decodes to more than its limits; "" if there is none."""
    for group in map(metadata.row_group, range(metadata.num_row_groups)):
        for column in map(group.column, range(group.num_columns)):
            size, stored = column.total_uncompressed_size, max(1, column.total_compressed_size)
            if size > MAX_COLUMN_BYTES and size > MAX_COLUMN_RATIO * stored:
                return (
                    f"the column {column.path_in_schema} has {size / 2**20:,.0f} MB in "
                    f"{stored / 2**20:.3f} MB"
                )
    return ""


def _typed_record(origin: str, row: Mapping[str, Any]) -> Record:
    # Arrow gives every object of a column the keys of all: the arguments of a tool call come with
    # those of every other tool, as null.
    return Record(origin, {name: drop_nulls(value) for name, value in row.items()})


def _read_hub(source: Source) -> Iterator[Record | RowError]:
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    reach_hub()
    name, split = source.path, source.split
    number = 0
    try:
        rows = load_dataset(
            name, source.name, split=split, revision=source.revision, streaming=True
        )
        for row in rows:
            number += 1
            yield _typed_record(f"{name}[{split}]:{number}", row)
    except (DatasetsError, OSError, ValueError) as error:
        if not number and (refusal := hub_refusal(error, name=name, kind="dataset")):
            raise UserError(f"{name}: {refusal}") from None
        problem = f"breaks off after row {number}" if number else "could not be loaded"
        raise UserError(
            f"{name}: there is no such local file, and the dataset of this name {problem} "
            f"({' '.join(str(error).split())[:160]}); check the path, the `name` of its "
            f"configuration, the split {split!r} and the network"
        ) from None
