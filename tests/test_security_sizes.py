"""Files that are small on the disk and large in memory: each is one sentence, and none is held."""

import bz2
import gzip
import io
import json
import lzma
import tracemalloc
import zipfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from eval.tasks.task_files import TaskSource, check_tasks
from sft.config.preset import load_preset
from sft.config.sections import Source
from sft.data import text_files
from sft.data.sources import read_sft
from sft.errors import UserError

SIZE = 2**24  # what each of these files unpacks to
ROW = b'{"prompt": "hi", "response": "' + b"yo " * 400 + b'"}'


def refusal(path):
    """The sentence that reading ends with, in much less memory than the file unpacks to."""
    tracemalloc.start()
    try:
        with pytest.raises(UserError) as no:
            read_sft([Source(str(path))], on_error="drop")
        assert tracemalloc.get_traced_memory()[1] < SIZE // 2
    finally:
        tracemalloc.stop()
    assert "\n" not in str(no.value) and str(path) in str(no.value)
    return str(no.value)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("array over lines.json.gz", b"[\n" + b'"' + b"x" * SIZE),
        ("array of rows.json.gz", b"[\n" + (ROW + b",\n") * (SIZE // len(ROW)) + ROW + b"\n]"),
        ("one line.json.gz", b'[{"prompt": "' + b"x" * SIZE),
        ("one object.json.gz", b'{\n"data": [' + b" " * SIZE),
        ("rows.jsonl.gz", (ROW + b"\n") * (SIZE // len(ROW))),
        ("row.jsonl.gz", ROW + b"\n" + b"x" * SIZE),
        ("cell.csv.gz", b'prompt,response\n"' + b"x" * SIZE),
        ("cells.csv.gz", b'prompt,response\n"' + (b"x" * 99 + b"\n") * (SIZE // 100)),
        ("old lines.jsonl.gz", (ROW + b"\r") * (SIZE // len(ROW))),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_compressed_file_is_not_unpacked_beyond_a_size(tmp_path, monkeypatch, name, content):
    monkeypatch.setattr(text_files, "MAX_UNPACKED_BYTES", 2**20)
    monkeypatch.setattr(text_files, "MAX_RECORD_BYTES", 2**19)
    monkeypatch.setattr(text_files, "MAX_RATIO", 2)
    path = tmp_path / name
    path.write_bytes(gzip.compress(content))
    assert refusal(path).count("the file has more than 1 MB unpacked") == 1 or "cell" in name


def test_a_plain_file_of_one_value_is_not_held_beyond_a_size(tmp_path, monkeypatch):
    monkeypatch.setattr(text_files, "MAX_WHOLE_BYTES", 2**20)
    path = tmp_path / "rows.json"
    path.write_bytes(b"[\n" + (ROW + b",\n") * (SIZE // len(ROW)) + ROW + b"\n]")
    assert "the file has more than 1 MB" in refusal(path)
    path.write_bytes(b"[\n" + (ROW + b",\n") * 3 + ROW + b"\n]")
    assert read_sft([Source(str(path))]).counts[0].rows_in == 4


def test_archives_of_other_kinds_are_named(tmp_path):
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w") as archive:
        archive.writestr("rows.jsonl", ROW)
    kinds = {
        "zip": zipped.getvalue(),
        "xz": lzma.compress(ROW),
        "bzip2": bz2.compress(ROW),
        "Zstandard": b"\x28\xb5\x2f\xfd" + ROW,
    }
    for kind, content in kinds.items():
        for suffix in ("jsonl", "csv", "json"):
            (tmp_path / f"rows.{suffix}").write_bytes(content)
            with pytest.raises(UserError, match=f"is a {kind} file, against its name; unpack it"):
                read_sft([Source(str(tmp_path / f"rows.{suffix}"))])


def test_a_value_that_a_parquet_file_holds_once_and_names_in_every_row_is_refused(
    tmp_path,
):
    """A kilobyte on the disk, 32 GB in memory."""
    once = pa.array(["x" * 16_000_000])
    column = pa.DictionaryArray.from_arrays(pa.array([0] * 2000, pa.int32()), once)
    path = tmp_path / "rows.parquet"
    table = pa.table({"prompt": column, "response": ["yo"] * 2000})
    pq.write_table(table, path, compression="zstd", store_schema=False)
    assert "the column prompt has 15 MB in 0.0" in refusal(path)


def test_deep_json_is_one_sentence(tmp_path):
    for content in (b"[" * 10**6, b'{"a":' * 10**6, b'{"prompt": ' + b"[" * 10**5 + b"]" * 10**5):
        path = tmp_path / "rows.json"
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"nested too deeply|malformed JSON") as no:
            read_sft([Source(str(path))])
        assert len(str(no.value)) < 500


def test_yaml_is_read_up_to_a_size(tmp_path):
    """A long scalar holds one value, so that only its size gives it away."""
    text = "run: {dir: '" + "x" * 2**21 + "'}\n"
    (tmp_path / "p.yaml").write_text(text)
    with pytest.raises(UserError, match="it has more than 1 MB"):
        load_preset(tmp_path / "p.yaml")
    with pytest.raises(UserError, match="it has more than 1 MB"):
        check_tasks(["x"], source=TaskSource(str(tmp_path)))


def test_rows_that_are_alike_are_no_bomb(tmp_path):
    """Templated rows pack a hundred times and are read."""
    path = tmp_path / "rows.jsonl.gz"
    rows = [json.dumps({"prompt": f"What is {i} + {i}?", "response": "yes"}) for i in range(3000)]
    path.write_bytes(gzip.compress("\n".join(rows).encode()))
    assert len(read_sft([Source(str(path))]).rows) == 3000
