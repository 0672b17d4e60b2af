"""Files and hub datasets to records: JSON, JSONL, Parquet and CSV, each with its file and line.

A record that cannot be read comes back as a RowError value in its place, so that the caller decides
whether to stop; a file that cannot be read at all raises.
"""

import difflib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sft.config.preset import find_path
from sft.config.sections import Source
from sft.data.csv_rows import read_csv
from sft.data.json_rows import read_json
from sft.data.records import Record as Record
from sft.data.row_errors import RowError, equal_names
from sft.errors import UserError
from sft.system.hub import hub_refusal, reach_hub

# First bytes of archives that are not read.
PACKED = {b"PK\x03\x04": "zip", b"\x28\xb5\x2f\xfd": "Zstandard", b"\xfd7zX": "xz", b"BZh": "bzip2"}
# Of Parquet files: rows that are read at once, and from which size on a column may not be packed
# more than so many times.
BATCH, PACKED_BYTES, PACKED_RATIO = 128, 8 * 2**20, 1000
SUFFIXES = (".jsonl", ".ndjson", ".json", ".parquet", ".csv", ".tsv")


def read_records(source: Source) -> Iterator[Record | RowError]:
    """Stream the records of a local file or a hub dataset.

    Raises:
        UserError: no such file or dataset; contents of another kind than the name says.
    """
    if is_on_hub(source.path):
        return _read_hub(source)
    _check_no_hub_options(source)
    return _read_file(existing_file(source.path, find_path(source.path)))


def _check_no_hub_options(source: Source) -> None:
    given = {"name": source.name, "revision": source.revision}
    if named := [key for key, value in given.items() if value is not None]:
        raise UserError(
            f"{source.path}: {named[0]}={given[named[0]]} belongs to a dataset on the hub, and "
            "this is a local file; leave it out"
        )


def is_on_hub(path: str) -> bool:
    """Whether a path is not on this machine and has the form of `org/name`."""
    return find_path(path) is None and _is_dataset_id(path)


def _is_dataset_id(path: str) -> bool:
    """Whether a path that is not on this machine has the form of a dataset's hub id."""
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
    if other := next((name for magic, name in PACKED.items() if head.startswith(magic)), None):
        raise UserError(f"{path}:1: is a {other} file, against its name; unpack it")
    if suffix == ".parquet":
        return _read_parquet(path)
    kind = suffix.removesuffix(".gz")
    if kind in (".csv", ".tsv"):
        return read_csv(path, tabs=kind == ".tsv")
    return read_json(path)


def _read_parquet(path: Path) -> Iterator[Record | RowError]:
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        file = pyarrow.parquet.ParquetFile(path)
        names = file.schema_arrow.names
        if twice := sorted({name for name in names if names.count(name) > 1}):
            yield equal_names(f"{path}:1", twice, of="schema")
            return
        if bomb := _bomb(file.metadata):
            yield RowError(
                f"{path}:1",
                rule="file too large",
                detail=bomb,
                remedy="save the rows again, in a file of their own size",
                ends=True,
            )
            return
        for batch in file.iter_batches(batch_size=BATCH):
            for fields in batch.to_pylist():
                number += 1
                yield Record(f"{path}:{number}", _without_nulls(fields))
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        yield RowError(
            f"{path}:{number + 1}",
            rule="truncated file",
            detail=f"unreadable Parquet ({' '.join(str(error).split())[:120]})",
            remedy="fetch the file again",
            ends=True,
        )


def _bomb(metadata: Any) -> str:
    """What a Parquet file's columns would unpack to, where they are packed as no text is; a value
    may stand in every row of a batch although the file holds it once."""
    for group in map(metadata.row_group, range(metadata.num_row_groups)):
        for column in map(group.column, range(group.num_columns)):
            size, packed = column.total_uncompressed_size, max(1, column.total_compressed_size)
            if size > PACKED_BYTES and size > PACKED_RATIO * packed:
                return (
                    f"the column {column.path_in_schema} has {size / 2**20:,.0f} MB in "
                    f"{packed / 2**20:.3f} MB"
                )
    return ""


def _without_nulls(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of a typed table without the nulls inside its objects, which all have the keys of all:
    the arguments of a tool call come with those of every other tool. Fields themselves stay."""
    return {name: _present(value) for name, value in row.items()}


def _present(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _present(inner) for key, inner in value.items() if inner is not None}
    return [_present(inner) for inner in value] if isinstance(value, list) else value


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
            yield Record(f"{name}[{split}]:{number}", _without_nulls(row))
    except (DatasetsError, OSError, ValueError) as error:
        if not number and (refusal := hub_refusal(error, name=name, kind="dataset")):
            raise UserError(f"{name}: {refusal}") from None
        what = f"breaks off behind row {number}" if number else "is not what the hub gives"
        raise UserError(
            f"{name}: there is no such local file, and the dataset of this name {what} "
            f"({' '.join(str(error).split())[:160]}); check the path, the `name` of its "
            f"configuration, the split {split!r} and the network"
        ) from None
