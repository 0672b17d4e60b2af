"""Sources: counts on real files, options of a source, duplicates."""

import gzip
import json
import re

import pytest
from files import KINDS_OF_FILE, write_as
from row_files import CHAT, CHAT_LINE, GOOD, check_row, messages_of, read, write

from sft.config.sections import Source
from sft.data.sources import read_sft
from sft.errors import UserError

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
def test_a_bad_real_row_stops_by_default_with_its_line(real_data):
    path = real_data / "sft/alpaca_en_first10k.jsonl.gz"
    lines = gzip.decompress(path.read_bytes()).decode().splitlines()
    first = next(i for i, line in enumerate(lines, 1) if not json.loads(line)["output"].strip())
    with pytest.raises(UserError, match=re.escape(f"{path}:{first}: message 2 (assistant) is")):
        read(path)


@pytest.mark.real
def test_real_tool_calls_are_decoded(real_data):
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


# Plain text, trees, and the options of a source.


@pytest.mark.parametrize("file", KINDS_OF_FILE)
def test_plain_text_is_a_row_with_text_instead_of_messages(file, tmp_path):
    write_as(tmp_path / file, {"text": "Once upon a time", "id": "7"})
    (row,) = read(tmp_path / file).rows
    origin = row.pop("origin")
    assert row == {"text": "Once upon a time", "kind": "text", "id": "7"}
    assert origin.startswith(str(tmp_path / file))
    assert read(tmp_path / file, kind="story").rows[0]["kind"] == "story"


def test_text_next_to_other_content_is_not_plain_text(tmp_path):
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
def test_calculator_annotations_are_removed_and_the_answer_line_is_kept(real_data):
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


def test_kind_rules_take_precedence_over_the_source_and_the_row(tmp_path):
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


def test_columns_map_the_fields(tmp_path):
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


# Counting.


def test_counts_sum_up_and_problems_are_listed(tmp_path):
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


def test_a_bad_row_is_reported_with_the_number_of_further_ones(tmp_path):
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
    """The rows after the damage cannot be left out and counted."""
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


def test_a_source_that_only_repeats_another_is_accepted_and_counted(tmp_path):
    a, b = write(tmp_path / "a.jsonl", [GOOD]), write(tmp_path / "b.jsonl", [GOOD])
    result = read_sft([Source(path=a), Source(path=b, kind="math")], on_error="stop")
    assert [count.kept for count in result.counts] == [1, 0] and len(result.rows) == 1
