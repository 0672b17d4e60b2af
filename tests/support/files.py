"""The checkout's root, and rows written as any kind of file, and a limit on a file's size."""

import csv
import gzip
import json
import resource
from contextlib import contextmanager
from pathlib import Path

import pyarrow
import pyarrow.parquet

ROOT = Path(__file__).resolve().parents[2]


KINDS_OF_FILE = ["a.json", "a.jsonl", "a.jsonl.gz", "a.parquet", "a.csv"]


def write_as(path, row):
    """One row in any kind of file; in CSV structure stands as JSON text, as exporters write it."""
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), path)
    elif path.suffix == ".csv":
        cells = {k: v if isinstance(v, str) else json.dumps(v) for k, v in row.items()}
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(row))
            writer.writeheader()
            writer.writerow({k: "" if row[k] is None else cell for k, cell in cells.items()})
    else:
        text = json.dumps([row] if path.suffix == ".json" else row)
        path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())


@contextmanager
def files_of_at_most(size):
    """A limit that the system itself holds: longer writes fail, whoever makes them."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
