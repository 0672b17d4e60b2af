"""The root of the checkout, rows in any file format, and a limit on file size."""

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
    """Write one row in any file format; CSV holds nested values as JSON text, as exporters do."""
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
    """Limit the file size by the operating system: longer writes fail in any library."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
