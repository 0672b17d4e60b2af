"""Fuzzing of the readers: each file gives a one-sentence error or a valid row."""

import gzip
import json

import pytest
from files import KINDS_OF_FILE, write_as
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from launching import long
from row_files import FORMATS, check_row, messages_of, read

from sft.errors import UserError

QUIET = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]


# Fuzz: a clear sentence or a right row.

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-9, 9)
    | st.floats(allow_nan=False)
    | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=6,
)
ROLE = st.sampled_from(
    ["user", "assistant", "system", "tool", "human", "gpt", "function_call", "x"]
)
TURN = st.dictionaries(
    st.sampled_from(
        ["role", "from", "content", "value", "tool_calls", "human", "assistant", "weight", "note"]
    ),
    ROLE | st.text(max_size=3) | JSON,
    max_size=4,
)
FIELD = st.sampled_from(
    [
        "messages",
        "conversations",
        "conversation",
        "instruction",
        "input",
        "output",
        "response",
        "prompt",
        "completion",
        "question",
        "answer",
        "history",
        "context",
        "options",
        "A",
        "B",
        "notes",
        "images",
        "loss_mask",
        "weight",
        "system",
        "tools",
        "kind",
        "text",
        "instances",
        "message_tree_id",
        "chosen",
        "rejected",
        "label",
        "id",
    ]
)
ROWS = st.lists(
    st.dictionaries(FIELD, JSON | st.lists(TURN, max_size=4), max_size=4) | JSON, max_size=4
)


def outcome(path, *, on_error, **source):
    try:
        result = read(path, on_error=on_error, **source)
    except UserError as error:
        assert str(path) in str(error)
        assert "\n" not in str(error)
        return
    for row in result.rows:
        check_row(row)
    (count,) = result.counts
    assert count.rows_in == count.kept + sum(count.dropped.values())


SNIPPETS = st.sampled_from(
    [
        b'{"prompt": "a", "response": "b"}',
        b"[",
        b"]",
        b",",
        b"\n",
        b"\r\n",
        b"\xef\xbb\xbf",
        b'"',
        b"{",
        b"prompt,response\n",
        b"\x00",
        b"\xff",
        b"\xe5\xa5",
        b'{"messages": [',
        b"null",
        b"1e999",
        b"PAR1",
    ]
)


def write_bytes(path, data):
    path.write_bytes(data)
    return path


def fuzz_rows(folder, *, rows, array, on_error):
    text = json.dumps(rows) if array else "\n".join(map(json.dumps, rows))
    path = write_bytes(folder / ("rows.json" if array else "rows.jsonl"), text.encode())
    outcome(path, on_error=on_error)


def fuzz_bytes(folder, *, parts, name, on_error):
    data = b"".join(parts)
    if name.startswith("z"):
        data = gzip.compress(data)[: -len(parts) or None]
    outcome(write_bytes(folder / name, data), on_error=on_error)


def fuzz_mutants(folder, *, name, file, cuts, on_error):
    """A valid file with bytes replaced, inserted or taken out at a few places."""
    path = folder / file
    write_as(path, FORMATS[name])
    data = bytearray(path.read_bytes())
    for place, width, put in cuts:
        at = place % (len(data) + 1)
        data[at : at + width] = put
    outcome(write_bytes(path, bytes(data)), on_error=on_error)


STOP_OR_DROP = st.sampled_from(["stop", "drop"])
FUZZ = {
    fuzz_rows: {"rows": ROWS, "array": st.booleans()},
    fuzz_bytes: {
        "parts": st.lists(SNIPPETS | st.binary(max_size=5), max_size=8),
        "name": st.sampled_from(
            ["a.jsonl", "a.json", "a.csv", "a.parquet", "a.jsonl.gz", "z.jsonl.gz"]
        ),
    },
    fuzz_mutants: {
        "name": st.sampled_from(sorted(FORMATS)),
        "file": st.sampled_from(KINDS_OF_FILE),
        "cuts": st.lists(
            st.tuples(st.integers(0, 5000), st.integers(0, 4), SNIPPETS | st.binary(max_size=3)),
            min_size=1,
            max_size=4,
        ),
    },
}


def fuzz(body, folder, *, examples):
    """Run `body` on that many generated files."""
    count = 0

    @settings(max_examples=examples, deadline=None, suppress_health_check=QUIET, database=None)
    @given(**FUZZ[body], on_error=STOP_OR_DROP)
    def each(**drawn):
        nonlocal count
        count += 1
        body(folder, **drawn)

    each()
    print(f"{body.__name__}: {count} files")


@pytest.mark.parametrize("body", FUZZ, ids=lambda body: body.__name__)
def test_fuzz(body, tmp_path):
    fuzz(body, tmp_path, examples=300)


@long
@pytest.mark.slow
@pytest.mark.parametrize("body", FUZZ, ids=lambda body: body.__name__)
def test_fuzz_of_ten_thousand_files_and_more(body, tmp_path):
    fuzz(body, tmp_path, examples=4000)


@settings(max_examples=100, deadline=None, suppress_health_check=QUIET)
@given(
    texts=st.lists(
        st.text(
            st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1
        ).filter(str.strip),
        min_size=2,
        max_size=6,
    ),
    style=st.sampled_from(
        [("role", "content", "user", "assistant"), ("from", "value", "human", "gpt")]
    ),
)
def test_any_valid_chat_is_read_unchanged(texts, style, tmp_path):
    role, content, *names = style
    texts = texts[: len(texts) // 2 * 2]
    turns = [{role: names[i % 2], content: text} for i, text in enumerate(texts)]
    got = messages_of(tmp_path, {"messages" if role == "role" else "conversations": turns})
    assert [m["content"] for m in got] == texts
    assert [m["role"] for m in got] == ["user", "assistant"] * (len(texts) // 2)
