"""Formats, counts on real files, mistakes with file and line, and a fuzz of the parsers."""

import csv
import gzip
import json
import os
import re
import tracemalloc

import pyarrow
import pyarrow.parquet
import pytest
from files import KINDS_OF_FILE, write_as
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from launching import long

from sft.config.sections import Source
from sft.data import records
from sft.data.sources import read_sft
from sft.errors import UserError

GOOD = {"prompt": "a", "response": "b"}
CHAT = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
QUIET = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]


def write(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return str(path)


def read(path, *, on_error="stop", **source):
    return read_sft([Source(path=str(path), **source)], on_error=on_error)


def messages_of(tmp_path, row, **source):
    (one,) = read(write(tmp_path / "rows.jsonl", [row]), **source).rows
    return one["messages"]


# Every file of the real data, counted by hand.

REAL = {
    # file: (rows in, kept, dropped, mended)
    "alpaca_5000_subset.jsonl.gz": (5000, 4998, {"empty answer": 2}, {}),
    "alpaca_en_first10k.jsonl.gz": (10000, 9994, {"empty answer": 6}, {}),
    "alpaca_seed_tasks.jsonl": (175, 175, {}, {}),
    "alpaca_zh_carbonz0_part00.jsonl": (5000, 4996, {"empty answer": 4}, {}),
    "alpaca_zh_translated_9k.jsonl.gz": (
        9251,
        9243,
        {"empty answer": 6, "exact duplicate": 2},
        {},
    ),
    "belle_zh_seed_tasks.jsonl": (175, 175, {}, {}),
    "chatlm_zh_3k.jsonl": (3000, 3000, {}, {}),
    "codealpaca_2k.jsonl": (2017, 2015, {"empty answer": 2}, {}),
    "codealpaca_new.jsonl.gz": (4535, 4535, {}, {}),
    "dolly_hhrlhf_small.jsonl": (1000, 1000, {}, {}),
    "fastchat_dummy_conversation.jsonl": (500, 500, {}, {}),
    "firefly_dummy.jsonl": (33, 33, {}, {}),
    "gpteacher_roleplay.jsonl.gz": (3146, 3146, {}, {}),
    "gsm8k_train.jsonl.gz": (7473, 7473, {}, {}),
    "lf_alpaca_en_demo.jsonl": (999, 985, {"exact duplicate": 14}, {}),
    "lf_alpaca_zh_demo.jsonl": (1000, 992, {"exact duplicate": 8}, {}),
    "lf_glaive_toolcall_en_demo.jsonl": (300, 265, {"exact duplicate": 35}, {}),
    "lf_glaive_toolcall_zh_demo.jsonl": (300, 257, {"exact duplicate": 43}, {}),
    "lf_identity.jsonl": (91, 91, {}, {}),
    "medicalgpt_medical_1k.jsonl": (1000, 1000, {}, {}),
    # Row 59 holds all 17 empty human turns; 7 rows end on a human turn, one of them has no answer.
    "medicalgpt_sharegpt_zh_1k.jsonl.gz": (
        1000,
        998,
        {"empty question": 1, "no assistant turn": 1},
        {"turns after the last answer cut": 6},
    ),
    # 100 trees, of which 39 best-ranked paths end with a prompter.
    "oasst_en_100_trees.jsonl": (100, 100, {}, {"turns after the last answer cut": 39}),
    "zh_extra_add_subtract.jsonl": (500, 499, {"exact duplicate": 1}, {}),
    # 1,150 records repeat field by field; 4 more differ by an empty input and history alone.
    "zh_extra_code_questions.jsonl": (
        9057,
        7903,
        {"exact duplicate": 1150, "same text": 4},
        {},
    ),
    "zh_extra_noun_explain.jsonl": (152, 151, {"empty question": 1}, {}),
}


@pytest.mark.real
def test_every_real_file_matches_its_hand_count(real_data):
    assert {p.name for p in (real_data / "sft").iterdir()} == REAL.keys()
    for name, expected in REAL.items():
        result = read(real_data / "sft" / name, on_error="drop")
        (count,) = result.counts
        assert (count.rows_in, count.kept, count.dropped, count.mended) == expected, name
        assert len(result.rows) == count.kept
        for row in result.rows:
            check_row(row)


@pytest.mark.real
def test_real_blemish_stops_by_default_with_its_line(real_data):
    path = real_data / "sft/alpaca_en_first10k.jsonl.gz"
    lines = gzip.decompress(path.read_bytes()).decode().splitlines()
    first = next(i for i, line in enumerate(lines, 1) if not json.loads(line)["output"].strip())
    with pytest.raises(UserError, match=re.escape(f"{path}:{first}: message 2 (assistant) is")):
        read(path)


@pytest.mark.real
def test_real_tool_calls_become_structure(real_data):
    rows = read(real_data / "sft/lf_glaive_toolcall_en_demo.jsonl").rows
    called = next(row for row in rows if any(m.get("tool_calls") for m in row["messages"]))
    call = next(m["tool_calls"] for m in called["messages"] if m.get("tool_calls"))[0]
    assert call == {
        "type": "function",
        "function": {
            "name": "search_recipes",
            "arguments": {"ingredients": ["chicken", "bell peppers", "rice"]},
        },
    }
    assert called["tools"][0]["function"]["name"] == "search_recipes"
    assert [m["role"] for m in called["messages"]][3:6] == ["assistant", "tool", "assistant"]


def check_row(row):
    """The promises of a row: any later part may rely on them."""
    if "text" in row:
        assert row["text"].strip() and "messages" not in row
    messages = row.get("messages", [])
    assert "text" in row or messages[-1]["role"] == "assistant"
    assert row["kind"] and isinstance(row["kind"], str)
    assert re.search(r":\d+$", row["origin"])
    for i, message in enumerate(messages):
        assert message["role"] in ("system", "user", "assistant", "tool")
        assert isinstance(message["content"], str)
        assert message["role"] != "system" or i == 0
        if message["role"] in ("user", "assistant"):
            assert message["content"].strip() or message.get("tool_calls")
        message["content"].encode()


# Formats, one hand-made row each.

FORMATS = {
    "openai": {"messages": CHAT},
    "openai parts": {
        "messages": [{**m, "content": [{"type": "text", "text": m["content"]}]} for m in CHAT]
    },
    "sharegpt": {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
    "sharegpt with roles": {"conversations": CHAT},
    "sharegpt as text": {"conversations": json.dumps(CHAT)},
    "alpaca": {"instruction": "a", "input": "", "output": "b"},
    "alpaca without input": {"instruction": "a", "output": "b"},
    "alpaca with a response": {"instruction": "a", "input": None, "response": "b"},
    "prompt and response": GOOD,
    "prompt and completion": {"prompt": "a", "completion": "b"},
    "trl messages": {"prompt": CHAT[:1], "completion": CHAT[1:]},
    "gsm8k": {"question": "a", "answer": "b"},
    "metamath": {"query": "a", "response": "b"},
    "firefly": {"conversation_id": 1, "conversation": [{"human": "a", "assistant": "b"}]},
    "firefly pairs": {"kind": "k", "input": "a", "target": "b"},
    "capybara": {"source": "x", "conversation": [{"input": "a", "output": "b"}]},
    "ultrachat": {"id": "1", "data": ["a", "b"]},
    "open orca": {"id": "1", "system_prompt": "", "question": "a", "response": "b"},
    "aya": {"inputs": "a", "targets": "b", "language": "English"},
    "question and text": {"user": "a", "assistant": "b"},
    "messages under a name of its own": {"id": "1", "dialogue_turns": CHAT, "tags": "x"},
    "seed task": {"instruction": "a", "instances": [{"input": "", "output": "b"}]},
    "open assistant": {
        "message_tree_id": "x",
        "prompt": {
            "role": "prompter",
            "text": "a",
            "replies": [
                {"role": "assistant", "text": "worse", "rank": 1, "replies": []},
                {"role": "assistant", "text": "b", "rank": 0, "replies": []},
                {"role": "assistant", "text": "unranked", "replies": []},
            ],
        },
    },
}


@pytest.mark.parametrize("file", KINDS_OF_FILE)
@pytest.mark.parametrize("name", FORMATS)
def test_format_is_recognised_in_every_kind_of_file(name, file, tmp_path):
    write_as(tmp_path / file, FORMATS[name])
    (row,) = read(tmp_path / file).rows
    assert row["messages"] == CHAT


def test_a_system_turn_may_stand_in_a_field_of_its_own_or_in_both(tmp_path):
    system = {"role": "system", "content": "s"}
    rows = [
        {"system_prompt": "s", "question": "a", "response": "b"},
        {"system": "s", "messages": [CHAT[0], {"role": "assistant", "content": "c"}]},
        {"system_prompt": "s", "conversations": [system, CHAT[0], {"from": "gpt", "value": "d"}]},
    ]
    for name, row in enumerate(rows):
        write_as(tmp_path / f"{name}.jsonl", row)
        (read_row,) = read(tmp_path / f"{name}.jsonl").rows
        assert read_row["messages"][:2] == [system, CHAT[0]] and len(read_row["messages"]) == 3
    write_as(tmp_path / "two.jsonl", {"system": "t", "messages": [system, *CHAT]})
    with pytest.raises(UserError, match="message 2 is a system turn"):
        read(tmp_path / "two.jsonl")


@pytest.mark.parametrize("file", KINDS_OF_FILE)
def test_tools_and_calls_are_recognised_in_every_kind_of_file(file, tmp_path):
    function = {"name": "f", "arguments": {"x": 1}}
    turns = [
        {"from": "system", "value": "s"},
        {"from": "human", "value": "a"},
        {"from": "function_call", "value": json.dumps(function)},
        {"from": "observation", "value": "1"},
        {"from": "gpt", "value": "b"},
    ]
    tool = {"name": "f", "description": "d", "parameters": {"type": "object"}}
    write_as(tmp_path / file, {"conversations": turns, "tools": json.dumps([tool])})
    (row,) = read(tmp_path / file).rows
    assert row["tools"] == [{"type": "function", "function": tool}]
    assert [m["role"] for m in row["messages"]] == [
        "system",
        "user",
        "assistant",
        "tool",
        "assistant",
    ]
    assert row["messages"][2]["tool_calls"] == [{"type": "function", "function": function}]


# Plain text, trees, and the options of a source.


@pytest.mark.parametrize("file", KINDS_OF_FILE)
def test_plain_text_is_a_row_of_its_own_shape(file, tmp_path):
    write_as(tmp_path / file, {"text": "Once upon a time", "id": "7"})
    (row,) = read(tmp_path / file).rows
    origin = row.pop("origin")
    assert row == {"text": "Once upon a time", "kind": "text", "id": "7"}
    assert origin.startswith(str(tmp_path / file))
    assert read(tmp_path / file, kind="story").rows[0]["kind"] == "story"


def test_text_beside_other_content_is_no_plain_text(tmp_path):
    path = write(tmp_path / "rows.jsonl", [{"text": "a", "input": "b"}])
    with pytest.raises(UserError, match="are no known format"):
        read(path)
    assert read(path, columns={"text": "text"}).rows[0]["text"] == "a"
    (chat,) = read(write(tmp_path / "chat.jsonl", [{**GOOD, "text": "a b"}])).rows
    assert chat["messages"] == CHAT
    path = write(tmp_path / "twice.jsonl", [{"text": "a"}, {"text": "a", "id": 1}, {"text": "b"}])
    assert read(path).counts[0].dropped == {"same text": 1}


def node(role, text, *replies, rank=None):
    return {"role": role, "text": text, "rank": rank, "replies": list(replies)}


def test_every_path_of_a_tree_ends_with_an_answer(tmp_path):
    asked, said = "prompter", "assistant"
    tree = node(
        asked,
        "q",
        node(said, "a", node(asked, "more", node(said, "b"), node(said, "c", node(asked, "?")))),
        node(said, "d", node(asked, "nobody answers")),
        rank=0,
    )
    path = write(tmp_path / "trees.jsonl", [{"message_tree_id": "t", "prompt": tree}])
    rows = read(path, tree_paths="all").rows
    assert [[m["content"] for m in row["messages"]] for row in rows] == [
        ["q", "a", "more", "b"],
        ["q", "a", "more", "c"],
        ["q", "d"],
    ]
    unanswered = {"message_tree_id": "t", "prompt": node(asked, "q", node(asked, "r"))}
    path = write(tmp_path / "none.jsonl", [unanswered])
    with pytest.raises(UserError, match=r"none.jsonl:1: the tree has no assistant turn"):
        read(path, tree_paths="all")


def leaves(tree):
    """Oracle: paths to answers that no answer follows, by plain recursion."""

    def walk(message, path):
        path = [*path, message["text"]]
        below = [p for reply in message["replies"] for p in walk(reply, path)]
        return below or ([path] if message["role"] == "assistant" else [])

    return walk(tree, [])


@pytest.mark.real
def test_all_paths_of_the_real_trees(real_data):
    path = real_data / "sft/oasst_en_100_trees.jsonl"
    trees = [json.loads(line)["prompt"] for line in path.read_text().splitlines()]
    expected = [path for tree in trees for path in leaves(tree)]
    result = read(path, tree_paths="all")
    (count,) = result.counts
    assert count.rows_in == len(expected) > 400
    assert count.mended == {}
    texts = [[m["content"] for m in row["messages"]] for row in result.rows]
    assert [t for t in expected if t not in texts] == []
    best = read(path).rows
    assert all([m["content"] for m in row["messages"]] in texts for row in best[:5])


@pytest.mark.real
def test_calculator_annotations_go_and_the_answers_line_stays(real_data):
    path = real_data / "sft/gsm8k_train.jsonl.gz"
    plain, stripped = read(path).rows, read(path, strip_calculator=True)
    assert sum("<<" in row["messages"][1]["content"] for row in plain) > 7000
    assert stripped.counts[0].mended["calculator annotations removed"] > 7000
    for before, after in zip(plain, stripped.rows, strict=True):
        said, kept = before["messages"][1]["content"], after["messages"][1]["content"]
        assert "<<" not in kept and ">>" not in kept
        assert kept.splitlines()[-1] == said.splitlines()[-1]
        assert kept.splitlines()[-1].startswith("#### ")
        assert before["messages"][0] == after["messages"][0]
    first = stripped.rows[0]["messages"][1]["content"]
    assert first == (
        "Natalia sold 48/2 = 24 clips in May.\n"
        "Natalia sold 48+24 = 72 clips altogether in April and May.\n#### 72"
    )


def test_a_rule_gives_the_kind_before_the_source_and_the_row_do(tmp_path):
    rows = [
        {"prompt": "What is 3+4?", "response": "7", "kind": "own"},
        {"prompt": "Write a function", "response": "What is 3+4?"},
        {"prompt": "Hello", "response": "Hi", "kind": "own"},
    ]
    path = write(tmp_path / "rows.jsonl", rows)
    rule = {"code": r"(?i)\bfunction\b", "math": r"\d ?\+ ?\d", "late": "What"}
    kinds = [row["kind"] for row in read(path, kind_rule=rule).rows]
    assert kinds == ["math", "code", "own"]
    kinds = [row["kind"] for row in read(path, kind_rule=rule, kind="dialogue").rows]
    assert kinds == ["math", "code", "dialogue"]


def test_longer_conversations(tmp_path):
    system = {"role": "system", "content": "s"}
    row = {
        "system": "s",
        "conversations": [
            {"from": "human", "value": "a"},
            {"from": "function_call", "value": '{"name": "f", "arguments": {"x": 1}}'},
            {"from": "observation", "value": "1"},
            {"from": "gpt", "value": "b"},
        ],
    }
    function = {"name": "f", "arguments": {"x": 1}}
    assert messages_of(tmp_path, row) == [
        system,
        CHAT[0],
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"type": "function", "function": function}],
        },
        {"role": "tool", "content": "1"},
        CHAT[1],
    ]
    openai = {"type": "function", "id": "1", "function": {"name": "f", "arguments": '{"x": 1}'}}
    calls = [CHAT[0], {"role": "assistant", "content": None, "tool_calls": [openai]}]
    (message,) = messages_of(tmp_path, {"messages": calls})[1:]
    # Text stays text; sft.chat_template.message_forms gives each template the form that it takes.
    assert message["tool_calls"] == [openai]
    row = {"instruction": "c", "input": "d", "output": "e", "history": [["a", "b"]], "system": "s"}
    assert messages_of(tmp_path, row) == [
        system,
        *CHAT,
        {"role": "user", "content": "c\nd"},
        {"role": "assistant", "content": "e"},
    ]


def test_answers_that_look_like_structure_stay_text(tmp_path):
    for answer in ("[1, 2, 3]", '{"name": "x"}', '[{"a": 1}]', "[]"):
        assert messages_of(tmp_path, {"instruction": "a", "output": answer})[1]["content"] == answer


def test_several_instances_make_several_rows(tmp_path):
    row = {"instruction": "i", "instances": [{"input": x, "output": x} for x in "pq"]}
    result = read(write(tmp_path / "seeds.jsonl", [row]))
    assert [r["messages"][0]["content"] for r in result.rows] == ["i\np", "i\nq"]
    assert result.counts[0].rows_in == 2


def test_kind_language_reference_and_id_pass_through(tmp_path):
    row = {**GOOD, "kind": "math", "language": "zh", "reference": "4", "id": 7, "more": 1}
    path = write(tmp_path / "rows.jsonl", [row])
    (one,) = read(path).rows
    assert one == {
        "messages": CHAT,
        "kind": "math",
        "origin": f"{path}:1",
        "language": "zh",
        "reference": "4",
        "id": 7,
    }
    assert read(path, kind="code").rows[0]["kind"] == "code"
    assert read(write(tmp_path / "none.jsonl", [GOOD])).rows[0]["kind"] == "other"


def test_columns_name_the_fields(tmp_path):
    row = {"ask": "a", "say": "b", "messages": [], "topic": "math"}
    columns = {"prompt": "ask", "response": "say", "kind": "topic"}
    path = write(tmp_path / "rows.jsonl", [row])
    (one,) = read(path, columns=columns).rows
    assert one["messages"] == CHAT
    assert one["kind"] == "math"
    with pytest.raises(UserError, match=r"rows.jsonl:1: there is no field 'answer'"):
        read(path, columns={"prompt": "ask", "response": "answer"})
    with pytest.raises(UserError, match=r"'promt' is no field .* did you mean 'prompt'"):
        read(path, columns={"promt": "ask"})


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


def test_one_object_of_a_chat_is_a_row_and_no_list_of_rows(tmp_path):
    for row in ({"data": CHAT}, {"items": CHAT}, {"data": ["a", "b"]}, {"messages": CHAT}):
        (tmp_path / "row.json").write_text(json.dumps(row, indent=1))
        assert messages_of(tmp_path, row) == read(tmp_path / "row.json").rows[0]["messages"] == CHAT


def test_a_first_line_that_is_cut_off_costs_itself_alone(tmp_path):
    """It begins as pretty-printed JSON does."""
    for line in ('{"prompt": "a", "respon', '{"prompt": "a",', '{"messages": [', '[{"role": "us'):
        path = tmp_path / "rows.jsonl"
        path.write_text(f"{line}\n{json.dumps(GOOD)}\n")
        result = read(path, on_error="drop")
        assert len(result.rows) == 1 and result.counts[0].dropped == {"malformed JSON": 1}


def test_a_call_has_its_own_arguments_alone_in_a_typed_table(tmp_path):
    """A column of objects gives each row the keys of all, as nulls; of JSON Lines none is seen."""

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


# Counting.


def test_counts_add_up_and_problems_are_listed(tmp_path):
    rows = [
        GOOD,
        GOOD,
        {**GOOD, "input": ""},
        {"prompt": "a", "response": ""},
        {"messages": [*CHAT, {"role": "user", "content": "thanks"}], "n": 1},
        {
            "messages": [
                {"role": "system", "content": ""},
                {"role": "assistant", "content": "hi"},
                {"role": "user", "content": "q"},
                {"role": "assistant", "content": "w"},
            ]
        },
    ]
    path = write(tmp_path / "rows.jsonl", rows)
    result = read(path, on_error="drop")
    (count,) = result.counts
    assert count.rows_in == 6 == count.kept + sum(count.dropped.values())
    assert count.dropped == {"same text": 2, "exact duplicate": 1, "empty answer": 1}
    assert count.mended == {
        "empty system turn cut": 1,
        "assistant turn before the first question cut": 1,
    }
    assert count.problems == [
        f"{path}:4: message 2 (assistant) is empty; fill it or remove the row"
    ]
    assert result.rows[-1]["messages"][0]["content"] == "q"


def test_a_bad_row_is_told_with_how_many_more_there_are(tmp_path):
    empty = {"prompt": "q", "response": ""}
    path = write(tmp_path / "rows.jsonl", [GOOD, empty, GOOD, {"a": 1}, empty, empty])
    with pytest.raises(UserError, match=r"rows.jsonl:2: .*is empty;.*") as caught:
        read(path)
    assert str(caught.value).endswith(
        "; 3 of the next 4 rows cannot be used either (2 empty answer, 1 unknown format); "
        "data.on_error=drop leaves such rows out"
    )
    alone = write(tmp_path / "alone.jsonl", [GOOD, empty, GOOD])
    with pytest.raises(UserError, match=r"row; data\.on_error=drop leaves such rows out$"):
        read(alone)
    for rows in ([empty], [empty, {"a": 1}]):  # where that would leave none
        with pytest.raises(UserError) as caught:
            read(write(tmp_path / "none.jsonl", rows))
        assert "on_error" not in str(caught.value)


CHAT_LINE = json.dumps(GOOD)


@pytest.mark.parametrize("on_error", ["stop", "drop"])
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("array.json", f"[{CHAT_LINE},\n{{,\n{CHAT_LINE}]"),
        ("between.json", f"[{CHAT_LINE}\n{CHAT_LINE}]"),
        ("tail.json", f"[\n{CHAT_LINE}]\n{CHAT_LINE}"),
        ("pretty.jsonl", json.dumps(GOOD, indent=1) + "\n]\n" + json.dumps(GOOD, indent=1)),
        ("rows.csv", 'prompt,response\na,b\nc,"d" e\nf,g\n'),
        ("rows.csv", b"prompt,response\na,b\nc,\xe9\nf,g\n"),
        ("rows.jsonl.gz", gzip.compress("\n".join([CHAT_LINE] * 99).encode(), mtime=0)[:-9]),
    ],
)
def test_a_file_that_cannot_be_read_to_its_end_stops_in_either_mode(
    name, content, on_error, tmp_path
):
    """Rows behind the bad place are none that could be left out and counted."""
    content = content if isinstance(content, bytes) else content.encode()
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=rf"{name}:\d+: ") as caught:
        read(tmp_path / name, on_error=on_error)
    assert "on_error" not in str(caught.value) and "no usable row" not in str(caught.value)


def test_duplicates_are_dropped_within_and_across_sources(tmp_path):
    a = write(tmp_path / "a.jsonl", [GOOD, GOOD])
    b = write(tmp_path / "b.jsonl", [{"prompt": "c", "response": "b"}, GOOD])
    result = read_sft([Source(path=a), Source(path=b)], on_error="stop")
    assert [count.kept for count in result.counts] == [1, 1]
    assert [count.dropped for count in result.counts] == [{"exact duplicate": 1}] * 2
    assert [(r.origin, r.of) for r in result.repeats] == [
        (f"{a}:2", f"{a}:1"),
        (f"{b}:2", f"{a}:1"),
    ]


def test_a_source_that_only_repeats_another_is_counted_and_no_mistake(tmp_path):
    a, b = write(tmp_path / "a.jsonl", [GOOD]), write(tmp_path / "b.jsonl", [GOOD])
    result = read_sft([Source(path=a), Source(path=b, kind="math")], on_error="stop")
    assert [count.kept for count in result.counts] == [1, 0] and len(result.rows) == 1


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
            "\\(the row ends in the middle, behind column 21\\); .* complete the row",
        ),
        ('{"messages": [', "\\(the row ends in the middle, behind column 14\\); "),
        ('{"prompt": "a",   ', "\\(the row ends in the middle, behind column 15\\); "),
        ('{"prompt": fal', "\\(the row ends in the middle, behind column 14\\); "),
        ('{"prompt": "a" "b"}', r"\(Expecting ',' delimiter at column 16\)"),
        ('{"prompt": falsch}', r"\(Expecting value at column 12\)"),
        ("{}}", r"\(Extra data at column 3\)"),
    ],
)
def test_a_line_that_is_cut_off_is_told_from_one_that_is_wrong(line, words, tmp_path):
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
    "tail.json": (b'[{"prompt": "a", "response": "b"}] x', "behind the array"),
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
    "commas.jsonl": (b'{"prompt": "a", "response": "b"},\n{}', ":1: .*a comma behind the object"),
    "comma.jsonl": (b'{\n"prompt": "a", "response": "b"},\n{}', ":2: .*a comma between two"),
    "two.jsonl": (b'{"prompt": "a"}{"prompt": "b"}', ":1: .*another object behind the first"),
    "twice.jsonl": (b'{"prompt": "a", "prompt": "c", "response": "b"}', ":1: .*'prompt' stands tw"),
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


def test_fifty_megabytes_in_a_line_are_one_sentence(tmp_path):
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
    monkeypatch.setattr(records, "MAX_RECORD_BYTES", 1000)
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
def test_any_valid_chat_survives_as_it_is(texts, style, tmp_path):
    role, content, *names = style
    texts = texts[: len(texts) // 2 * 2]
    turns = [{role: names[i % 2], content: text} for i, text in enumerate(texts)]
    got = messages_of(tmp_path, {"messages" if role == "role" else "conversations": turns})
    assert [m["content"] for m in got] == texts
    assert [m["role"] for m in got] == ["user", "assistant"] * (len(texts) // 2)
