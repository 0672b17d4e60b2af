"""Kinds of file, and errors with file and line."""

import csv
import gzip
import json
import os
import tracemalloc

import pyarrow
import pyarrow.parquet
import pytest
from row_files import CHAT, GOOD, messages_of, read, write

from sft.data import text_files
from sft.errors import UserError

# Files.


def test_the_same_rows_from_every_kind_of_file(tmp_path):
    rows = [GOOD, {"prompt": '好，\n"x"', "response": "c, d"}]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    write(tmp_path / "a.jsonl", rows)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    (tmp_path / "a.json").write_text(json.dumps(rows, indent=2))
    (tmp_path / "b.json").write_text(text)
    # Layouts that exporters write under any suffix: one array, one object around it, objects over
    # several lines, line ends of classic Mac OS.
    array = json.dumps(rows)
    pretty = [json.dumps(row, indent=2, ensure_ascii=False) for row in rows]
    for suffix in ("json", "jsonl"):
        for name, layout in {
            "array": array,
            "array lines": "[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n",
            "array open": "[" + ",\n".join(map(json.dumps, rows)) + "]",
            "wrapped": f'{{"data": {array}}}',
            "wrapped pretty": json.dumps({"rows": rows}, indent=4),
            "pretty": "\n".join(pretty) + "\n",
            "mac": text.replace("\n", "\r"),
            "mac pretty": "\r".join(pretty).replace("\n", "\r"),
        }.items():
            (tmp_path / f"{name}.{suffix}").write_bytes(layout.encode())
    (tmp_path / "bom.jsonl").write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    (tmp_path / "bom.json").write_bytes(b"\xef\xbb\xbf" + json.dumps(rows).encode())
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    tables = {"a.csv": {}, "semicolon.csv": {"delimiter": ";"}, "tab.csv": {"delimiter": "\t"}}
    tables |= {"bar.csv": {"delimiter": "|"}, "mac.csv": {"lineterminator": "\r"}}
    tables |= {"a.tsv": {"delimiter": "\t"}, "quoted.csv": {"quoting": csv.QUOTE_ALL}}
    for name, form in tables.items():
        with (tmp_path / name).open("w", newline="") as file:
            writer = csv.DictWriter(file, ["prompt", "response"], **form)
            writer.writeheader()
            writer.writerows(rows)
    excel = (tmp_path / "semicolon.csv").read_text()
    (tmp_path / "excel.csv").write_text(f"sep=;\n{excel}")
    for path in sorted(tmp_path.iterdir()):
        got = [row["messages"] for row in read(path).rows]
        assert [[m["content"] for m in chat] for chat in got] == [
            ["a", "b"],
            list(rows[1].values()),
        ]


def test_origin_is_the_line_that_an_editor_shows(tmp_path):
    path = tmp_path / "rows.json"
    path.write_text('[\n{"prompt": "a",\n "response": "b"},\n\n{"prompt": "c", "response": "d"}]')
    assert [row["origin"] for row in read(path).rows] == [f"{path}:2", f"{path}:5"]
    path = tmp_path / "rows.jsonl"
    path.write_text(f"\n{json.dumps(GOOD)}\n\n")
    assert read(path).rows[0]["origin"] == f"{path}:2"
    for text in (
        '{\n"data": [\n{"prompt": "a", "response": "b"},\n{"prompt": "c", "response": "d"}]}',
        '\n\n{"prompt": "a",\n"response": "b"}{"prompt": "c",\n"response": "d"}',
    ):
        path.write_text(text)
        assert [row["origin"] for row in read(path).rows] == [f"{path}:3", f"{path}:4"]


def test_one_object_with_a_chat_is_one_row(tmp_path):
    for row in ({"data": CHAT}, {"items": CHAT}, {"data": ["a", "b"]}, {"messages": CHAT}):
        (tmp_path / "row.json").write_text(json.dumps(row, indent=1))
        assert messages_of(tmp_path, row) == read(tmp_path / "row.json").rows[0]["messages"] == CHAT


def test_a_truncated_first_line_loses_no_other_row(tmp_path):
    """Such a line looks like the first of pretty-printed JSON."""
    for line in ('{"prompt": "a", "respon', '{"prompt": "a",', '{"messages": [', '[{"role": "us'):
        path = tmp_path / "rows.jsonl"
        path.write_text(f"{line}\n{json.dumps(GOOD)}\n")
        result = read(path, on_error="drop")
        assert len(result.rows) == 1 and result.counts[0].dropped == {"malformed JSON": 1}


def test_a_call_keeps_only_its_own_arguments_in_a_typed_table(tmp_path):
    """A typed column gives each object the keys of all others, as nulls; JSON Lines does not."""

    def chat(name, arguments):
        call = {"type": "function", "function": {"name": name, "arguments": arguments}}
        return {
            "messages": [
                {"role": "user", "content": f"call {name}"},
                {"role": "assistant", "content": "", "tool_calls": [call]},
            ],
            "tools": [
                {
                    "type": "function",
                    "function": {
                        "name": name,
                        "parameters": {
                            "type": "object",
                            "properties": {key: {"type": "string"} for key in arguments},
                        },
                    },
                }
            ],
        }

    rows = [chat("weather", {"city": "Oslo"}), chat("time", {"zone": "CET", "at": {"hour": "3"}})]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    typed, plain = read(tmp_path / "a.parquet").rows, read(tmp_path / "a.jsonl").rows
    assert [(r["messages"], r["tools"]) for r in typed] == [
        (r["messages"], r["tools"]) for r in plain
    ]


def test_parquet_chats_with_nulls_and_nested_messages(tmp_path):
    table = pyarrow.Table.from_pylist(
        [{"messages": CHAT, "tools": None}, {"messages": [*CHAT, *CHAT], "tools": None}]
    )
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    assert [len(row["messages"]) for row in read(tmp_path / "a.parquet").rows] == [2, 4]


# Mistakes: the file, the line, the rule, and drop goes on.

DEEP = '{"prompt":' + "[" * 100_000 + "]" * 100_000 + "}"
BAD_LINES = {
    "malformed JSON": '{"prompt": "a", "respon',
    "no assistant turn": json.dumps({"messages": CHAT[:1]}),
    "empty answer": json.dumps({"prompt": "a", "response": " \n"}),
    "empty question": json.dumps({"prompt": "", "response": "b"}),
    "unknown role": json.dumps({"messages": [{"role": "robot", "content": "a"}, CHAT[1]]}),
    "misplaced system turn": json.dumps(
        {"messages": [{"role": "system", "content": "s"}] * 2 + CHAT}
    ),
    "not an object": "[1, 2]",
    "unknown format": json.dumps({"foo": "a"}),
    "nested too deeply": DEEP,
    "invalid text": '{"prompt": "a\\u0000", "response": "b"}',
    "invalid UTF-8": b'{"prompt": "\xff", "response": "b"}',
    "wrong type": json.dumps({"prompt": "a", "response": 3}),
}
BAD_BYTES = [
    ("malformed JSON", b'{"prompt": "a\0", "response": "b"}'),
    ("malformed JSON", b"\0" * 64),
    ("malformed JSON", b'{"prompt": ' + b"9" * 5000 + b', "response": "b"}'),
    ("invalid UTF-8", json.dumps(GOOD).encode("utf-16")),
    ("invalid UTF-8", '{"prompt": "é", "response": "b"}'.encode("latin-1")),
    ("invalid UTF-8", "{'prompt': '你好'}".encode("gbk")),
    ("nested too deeply", b'{"a":' * 100_000),
    ("nested too deeply", b'{"prompt": "a", "x": ' + b"[" * 200 + b"]" * 200 + b"}"),
    ("malformed JSON", json.dumps(GOOD).encode() + b"\x0b"),
    ("wrong type", json.dumps({"messages": "[" * 200 + "]" * 200}).encode()),
    ("wrong type", json.dumps({"prompt": "a", "response": None, "completion": 3}).encode()),
    ("wrong type", json.dumps({"messages": [{**CHAT[0], "content": None}, CHAT[1]]}).encode()),
    ("wrong type", json.dumps({"messages": "[" * 100_000}).encode()),
]
HALF_CALL = {"function": {"name": "f", "arguments": json.dumps({"x": "\udead"})}}
MORE_WRONG = [
    ("wrong type", {"messages": "hello"}),
    ("wrong type", {"messages": [*CHAT[:1], {"role": "assistant", "content": None}]}),
    ("wrong type", {"messages": ["a", "b"]}),
    ("wrong type", {"prompt": "a", "response": ["b", "c"]}),
    ("wrong type", {**GOOD, "kind": 3}),
    ("wrong type", {**GOOD, "tools": "none"}),
    ("wrong type", {"conversation": [{"human": "a"}]}),
    ("wrong type", {"conversations": [{"from": "function_call", "value": "f(x)"}]}),
    ("wrong type", {"messages": [{"role": "user", "content": [{"type": "image"}]}, CHAT[1]]}),
    ("unknown role", {"messages": [{"content": "a"}, CHAT[1]]}),
    ("unknown role", {"messages": [{"role": None, "content": "a"}, CHAT[1]]}),
    ("no assistant turn", {"messages": []}),
    ("invalid text", {"prompt": "a\ud800", "response": "b"}),
    *(("invalid text", {**GOOD, name: "\ud800"}) for name in ("id", "kind", "language", "more")),
    ("invalid text", {**GOOD, "reference": [{"x": ["\udfff"]}]}),
    ("invalid text", {**GOOD, "a\ud800": 1}),
    ("invalid text", {**GOOD, "tools": json.dumps([{"name": "f", "description": "\ud83d"}])}),
    ("invalid text", {"messages": [CHAT[0], {**CHAT[1], "tool_calls": [HALF_CALL]}]}),
    ("empty text", {"text": " "}),
    ("wrong type", {"text": 3}),
    ("unknown format", {}),
    ("unknown format", {"a\nb": "one line all the same"}),
]


@pytest.mark.parametrize(
    ("rule", "line"),
    [*BAD_LINES.items(), *BAD_BYTES, *((rule, json.dumps(row)) for rule, row in MORE_WRONG)],
)
def test_bad_row_stops_with_its_line_or_is_dropped_and_listed(rule, line, tmp_path):
    path = tmp_path / "rows.jsonl"
    line = line if isinstance(line, bytes) else line.encode()
    good = json.dumps(GOOD).encode()
    path.write_bytes(b"\n".join([good, line, good.replace(b'"a"', b'"z"')]))
    with pytest.raises(UserError) as stopped:
        read(path)
    sentence = str(stopped.value)
    assert sentence.startswith(f"{path}:2: ")
    assert "\n" not in sentence and "; " in sentence
    result = read(path, on_error="drop")
    assert [row["messages"][0]["content"] for row in result.rows] == ["a", "z"]
    assert result.counts[0].dropped == {rule: 1}
    assert sentence == f"{result.counts[0].problems[0]}; data.on_error=drop leaves such rows out"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (
            '{"prompt": "a", "resp',
            "\\(the row ends in the middle, after column 21\\); .* complete the row",
        ),
        ('{"messages": [', "\\(the row ends in the middle, after column 14\\); "),
        ('{"prompt": "a",   ', "\\(the row ends in the middle, after column 15\\); "),
        ('{"prompt": fal', "\\(the row ends in the middle, after column 14\\); "),
        ('{"prompt": "a" "b"}', r"\(Expecting ',' delimiter at column 16\)"),
        ('{"prompt": falsch}', r"\(Expecting value at column 12\)"),
        ("{}}", r"\(Extra data at column 3\)"),
    ],
)
def test_a_truncated_line_is_distinguished_from_an_invalid_one(line, words, tmp_path):
    path = tmp_path / "rows.jsonl"
    for end in ("\n", "\r\n", ""):
        path.write_bytes(f"{json.dumps(GOOD)}\n{line}{end}".encode())
        with pytest.raises(UserError, match=rf"rows.jsonl:2: malformed JSON {words}"):
            read(path)


def parquet_bytes(rows):
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), sink)
    return sink.getvalue().to_pybytes()


PARQUET = parquet_bytes([GOOD])
TWICE = pyarrow.BufferOutputStream()
pyarrow.parquet.write_table(
    pyarrow.table([["a"], ["b"], ["c"]], names=["prompt", "response", "response"]), TWICE
)
TWICE = TWICE.getvalue().to_pybytes()
BAD_FILES = {
    "empty.jsonl": (b"", "is empty"),
    "blank.jsonl": (b"\n\n", "no usable row"),
    "rows.txt": (b"{}", "unknown format"),
    "parquet.jsonl": (b"PAR1....PAR1", ":1: is a Parquet file"),
    "gzip.jsonl": (gzip.compress(b"{}"), ":1: is a gzip file"),
    "plain.jsonl.gz": (b"{}", ":1: is not a gzip file"),
    "cut.jsonl.gz": (gzip.compress(json.dumps(GOOD).encode() * 99)[:-9], ":1: .*breaks off"),
    "bad.parquet": (b"PAR1" + b"\0" * 30 + b"PAR1", ":1: unreadable Parquet"),
    "open.json": (b'[{"prompt": "a", "response": "b"}', "':?,' or ']' expected"),
    "comma.json": (b'[{"prompt": "a", "response": "b"},]', "malformed JSON"),
    "tail.json": (b'[{"prompt": "a", "response": "b"}] x', "after the array"),
    "none.json": (b'{\n"data": []}', "no usable row .it has none"),
    "beside.json": (
        b'{\n"version": 1,\n"data": [{"prompt": "a", "response": "b"}]}',
        "'data' is a list of 1 objects: if these are the rows, save that list alone",
    ),
    "columns.json": (
        b'{"prompt": ["a", "c"], "response": ["b", "d"]}',
        r"one object of columns \(prompt, response\)",
    ),
    "pandas.json": (
        b'{"prompt": {"0": "a"}, "response": {"0": "b"}}',
        r"one object of columns \(prompt, response\)",
    ),
    "named.json": (
        b'{"x": {"prompt": "a", "response": "b"}, "y": {"prompt": "c"}}',
        r"one object of rows by name \(x, y\)",
    ),
    "commas.jsonl": (b'{"prompt": "a", "response": "b"},\n{}', ":1: .*a comma after the object"),
    "comma.jsonl": (b'{\n"prompt": "a", "response": "b"},\n{}', ":2: .*a comma between two"),
    "two.jsonl": (b'{"prompt": "a"}{"prompt": "b"}', ":1: .*another object after the first"),
    "twice.jsonl": (b'{"prompt": "a", "prompt": "c", "response": "b"}', ":1: .*'prompt' occurs tw"),
    "twice.csv": (b"prompt,response,response\na,b,c\n", ":1: the header names response more"),
    "nameless.csv": (b"prompt,response,,\na,b,,\na,b,c,\n", ":3: cells in several columns with"),
    "quote.csv": (b'prompt,response\n"a,b\n', ":2: malformed CSV"),
    "wide.csv": (b"prompt,response\na,b,c\n", ":2: 3 fields where the header names 2"),
    "latin.csv": (b"prompt,response\na,\xe9\n", ":2: .* is not UTF-8"),
    "nul.csv": (b"prompt,response\na,b\n\0,c\n", ":3: .*NUL"),
    "nul.json": (b'[{"prompt": "a\0", "response": "b"}]', ":1: malformed JSON"),
    "deep.json": (b"[" * 100_000, ":1: JSON nested too deeply"),
    "twice.parquet": (TWICE, ":1: the schema names response more than once"),
    "half.parquet": (PARQUET[: len(PARQUET) // 2], ":1: unreadable Parquet"),
    "real.jsonl": (PARQUET, ":1: is a Parquet file"),
    "real.csv": (PARQUET, ":1: is a Parquet file"),
    "utf16.csv": ("prompt,response\na,b\n".encode("utf-16"), ":1: .* is not UTF-8"),
    "latin.json": (b'[\n{"prompt": "\xe9", "response": "b"}]', ":2: .* is not UTF-8"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_file_is_one_sentence(name, tmp_path):
    content, sentence = BAD_FILES[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=sentence) as caught:
        read(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_column_of_mixed_types_names_its_first_wrong_row(tmp_path):
    answers = ["b", 3, None, ["x"], {"y": 1}, True]
    rows = [{"prompt": f"{i}", "response": answer} for i, answer in enumerate(answers)]
    for name in ("a.jsonl", "a.json"):
        (tmp_path / name).write_text(
            "[\n" + ",\n".join(map(json.dumps, rows)) + "]"
            if name == "a.json"
            else "\n".join(map(json.dumps, rows))
        )
        line = 3 if name == "a.json" else 2
        with pytest.raises(UserError, match=rf"{name}:{line}: response is a number; it must be"):
            read(tmp_path / name)
        (count,) = read(tmp_path / name, on_error="drop").counts
        assert count.dropped == {"wrong type": 4, "unknown format": 1}
    table = pyarrow.table({"prompt": ["a", "b"], "response": [1, 2]})
    pyarrow.parquet.write_table(table, tmp_path / "n.parquet")
    with pytest.raises(UserError, match=r"n.parquet:1: response is a number"):
        read(tmp_path / "n.parquet")


def test_crlf_and_a_bom_change_neither_rows_nor_lines(tmp_path):
    lines = [json.dumps(GOOD), "", json.dumps({**GOOD, "prompt": "z"}), "{"]
    plain, windows = tmp_path / "plain.jsonl", tmp_path / "windows.jsonl"
    plain.write_bytes("\n".join(lines).encode())
    windows.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    one, two = read(plain, on_error="drop"), read(windows, on_error="drop")
    assert [r["messages"] for r in one.rows] == [r["messages"] for r in two.rows]
    assert [r["origin"].rpartition(":")[2] for r in two.rows] == ["1", "3"]
    assert two.counts[0].problems[0].startswith(f"{windows}:4: malformed JSON")


def test_a_line_of_fifty_megabytes_is_reported_in_one_sentence(tmp_path):
    path = tmp_path / "rows.jsonl"
    with path.open("w") as file:
        file.write(json.dumps(GOOD) + '\n{"prompt": "')
        file.write("x" * 50 * 2**20 + '", "response": "b"}\n')
    with pytest.raises(UserError, match=r"rows.jsonl:2: the row has 50.0 MB, more than 16 MB"):
        read(path)
    tracemalloc.start()
    assert len(read(path, on_error="drop").rows) == 1
    assert tracemalloc.get_traced_memory()[1] < 60 * 2**20  # the text twice would be 100
    tracemalloc.stop()


def test_missing_file_names_the_nearest(tmp_path):
    write(tmp_path / "alpaca_en.jsonl", [GOOD])
    with pytest.raises(UserError, match=r"alpaca\.jsonl: no such file; nearest .*alpaca_en\.jsonl"):
        read(tmp_path / "alpaca.jsonl")
    with pytest.raises(UserError, match=r"the folder .* does not exist either"):
        read(tmp_path / "nowhere/alpaca.jsonl")
    with pytest.raises(UserError, match="is a folder"):
        read(tmp_path)
    os.mkfifo(tmp_path / "pipe.jsonl")
    with pytest.raises(UserError, match="is a device or a pipe; save what it gives as a file"):
        read(tmp_path / "pipe.jsonl")


def test_a_line_beyond_the_limit_is_skipped_in_bounded_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(text_files, "MAX_RECORD_BYTES", 1000)
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"prompt": "x" * 5000, "response": "b"}) + f"\n{json.dumps(GOOD)}\n")
    with pytest.raises(UserError, match=r"rows.jsonl:1: the row has"):
        read(path)
    assert read(path, on_error="drop").rows[0]["origin"] == f"{path}:2"


@pytest.mark.parametrize("on_error", ["stop", "drop"])
@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, "preference .*under data.preference"),
        ({"conversations": CHAT[:1], "chosen": CHAT[1], "rejected": CHAT[1]}, "data.preference"),
        ({"messages": CHAT, "label": True}, "KTO label"),
        ({"instruction": "a", "output_1": "b", "output_2": "c"}, "comparison"),
        ({"input": "a", "response1": "b", "response2": "c"}, "comparison"),
    ],
)
def test_data_of_another_kind_is_refused(row, sentence, on_error, tmp_path):
    with pytest.raises(UserError, match=rf"rows.jsonl:1: .*{sentence}"):
        read(write(tmp_path / "rows.jsonl", [row]), on_error=on_error)
