"""Preference formats, counts on real files, votes and ties, and a fuzz of the parser."""

import json
import re
from collections import Counter

import pytest
from files import KINDS_OF_FILE, write_as
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dpo.data import read_preferences, read_transcript
from sft.config.sections import Source
from sft.data.sources import read_sft
from sft.errors import UserError

ASK = {"role": "user", "content": "q"}
GOOD = {"role": "assistant", "content": "good"}
POOR = {"role": "assistant", "content": "poor"}
PAIR = ([ASK], [GOOD], [POOR])
QUIET = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]


def write(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return str(path)


def read(path, *, on_error="stop", **source):
    return read_preferences([Source(path=str(path), **source)], on_error=on_error)


def pair_of(tmp_path, row):
    (one,) = read(write(tmp_path / "rows.jsonl", [row])).rows
    return one["prompt"], one["chosen"], one["rejected"]


def check_row(row):
    """The promises of a pair."""
    assert row["prompt"][-1]["role"] in ("user", "tool")
    assert any(m["role"] == "user" for m in row["prompt"])
    for side in ("chosen", "rejected"):
        (answer,) = row[side]
        assert answer["role"] == "assistant"
        assert answer["content"].strip() or answer.get("tool_calls")
    assert row["chosen"] != row["rejected"]
    assert re.search(r":\d+$", row["origin"])
    json.dumps(row, ensure_ascii=False).encode()


# Real files, counted by hand.

REAL = {
    "alpaca_eval_gpt4turbo_judged_900.jsonl.gz": (900, 898, {"tie": 2}),
    "lf_dpo_en_demo.jsonl": (300, 295, {"exact duplicate": 5}),
    "lf_dpo_zh_demo.jsonl": (300, 289, {"exact duplicate": 11}),
    "llmbar_processed_human_pairs.jsonl": (
        466,
        459,
        {"same text": 5, "chosen equals rejected": 1, "empty rejected": 1},
    ),
    "medicalgpt_dpo_zh_500.jsonl": (500, 500, {}),
    "ultrafeedback_binarized_sample.jsonl": (16, 16, {}),
}


@pytest.mark.real
@pytest.mark.parametrize("name", REAL)
def test_real_file_matches_its_hand_count(name, real_data):
    result = read(real_data / "preference" / name, on_error="drop")
    (count,) = result.counts
    assert (count.rows_in, count.kept, count.dropped) == REAL[name]
    for row in result.rows:
        check_row(row)


@pytest.mark.real
def test_real_votes_match_an_independent_count(real_data):
    """PandaLM: three annotators a pair; six responses became true or false in the file."""
    path = real_data / "preference/pandalm_testset.jsonl"
    expected, seen = Counter(), set()
    for row in map(json.loads, path.read_text().splitlines()):
        votes = [row[f"annotator{i}"] for i in (1, 2, 3)]
        majority = [v for v in (1, 2) if votes.count(v) >= 2]
        outputs = [row["response1"], row["response2"]]
        if not all(isinstance(text, str) for text in outputs):
            expected["wrong type"] += 1
        elif not majority:
            expected["tie"] += 1
        else:
            chosen, rejected = outputs if majority == [1] else outputs[::-1]
            key = (row["instruction"], row["input"], chosen, rejected)
            if not chosen.strip():
                expected["empty chosen"] += 1
            elif not rejected.strip():
                expected["empty rejected"] += 1
            elif key in seen:
                expected["same text"] += 1
            else:
                expected["kept"] += 1
                seen.add(key)
    (count,) = read(path, on_error="drop").counts
    assert {**count.dropped, "kept": count.kept} == expected


@pytest.mark.real
def test_real_file_of_labels_is_refused(real_data):
    for on_error in ("stop", "drop"):
        with pytest.raises(UserError, match=r"lf_kto_en_demo.jsonl:1: the row is a KTO label"):
            read(real_data / "preference/lf_kto_en_demo.jsonl", on_error=on_error)


@pytest.mark.real
def test_a_bad_real_row_stops_by_default_with_its_line(real_data):
    path = real_data / "preference/llmbar_processed_human_pairs.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    same = next(i for i, row in enumerate(rows, 1) if row["output_1"] == row["output_2"])
    with pytest.raises(UserError, match=rf"{path}:{same}: chosen and rejected are the same"):
        read(path)


# Formats, one hand-made row each.

HH = "\n\nHuman: q\n\nAssistant: "
FORMATS = {
    "trl texts": {"prompt": "q", "chosen": "good", "rejected": "poor"},
    "trl messages": {"prompt": [ASK], "chosen": [GOOD], "rejected": [POOR]},
    "implicit prompt": {"chosen": [ASK, GOOD], "rejected": [ASK, POOR]},
    "ultrafeedback binarized": {
        "prompt": "q",
        "messages": [ASK, GOOD],
        "chosen": [ASK, GOOD],
        "rejected": [ASK, POOR],
        "score_chosen": 9.0,
    },
    "ultrafeedback with scores": {
        "instruction": "q",
        "completions": [
            {"response": "middling", "overall_score": 5},
            {"response": "poor", "overall_score": 1.5},
            {"response": "good", "overall_score": 9},
        ],
    },
    "llama factory": {
        "conversations": [{"from": "human", "value": "q"}],
        "chosen": {"from": "gpt", "value": "good"},
        "rejected": {"from": "gpt", "value": "poor"},
    },
    "medicalgpt": {
        "conversations": [{"from": "human", "value": "q"}],
        "chosen": "good",
        "rejected": "poor",
    },
    "alpaca": {"instruction": "q", "input": "", "chosen": "good", "rejected": "poor"},
    "hh transcripts": {"chosen": HH + "good", "rejected": HH + "poor"},
    "first is better": {"input": "q", "output_1": "good", "output_2": "poor", "label": 1},
    "second is better": {"input": "q", "output_1": "poor", "output_2": "good", "label": "2"},
    "soft preference": {
        "instruction": "q",
        "output_1": "poor",
        "output_2": "good",
        "preference": 1.7,
    },
    "votes": {
        "instruction": "q",
        "response1": "good",
        "response2": "poor",
        "annotator1": 1,
        "annotator2": 0,
        "annotator3": 1,
    },
    "lists of one": {"prompt": "q", "chosen": ["good"], "rejected": ["poor"]},
    "messages as text": {
        "prompt": "q",
        "chosen": json.dumps([ASK, GOOD]),
        "rejected": json.dumps([ASK, POOR]),
    },
    "orca": {"system": "", "question": "q", "chosen": "good", "rejected": "poor"},
    "accepted": {"prompt": "q", "accepted": "good", "rejected": "poor"},
    "stack exchange": {"qid": 1, "question": "q", "response_j": "good", "response_k": "poor"},
    "shp": {"history": "q", "human_ref_A": "poor", "human_ref_B": "good", "labels": 0},
    "pku": {
        "prompt": "q",
        "response_0": "good",
        "response_1": "poor",
        "better_response_id": 0,
        "safer_response_id": 1,
    },
    "helpsteer": {
        "prompt": "q",
        "response_1": "poor",
        "response_2": "good",
        "preference_strength": 2,
    },
    "arena": {
        "model_a": "x",
        "model_b": "y",
        "winner": "model_b",
        "conversation_a": [ASK, POOR],
        "conversation_b": [ASK, GOOD],
    },
}


@pytest.mark.parametrize("file", KINDS_OF_FILE)
@pytest.mark.parametrize("name", FORMATS)
def test_format_is_recognized_in_every_kind_of_file(name, file, tmp_path):
    write_as(tmp_path / file, FORMATS[name])
    (row,) = read(tmp_path / file).rows
    assert (row["prompt"], row["chosen"], row["rejected"]) == PAIR


@pytest.mark.parametrize(
    ("name", "field", "tie", "wrong"),
    [
        ("arena", "winner", "tie (bothbad)", "model_c"),
        ("pku", "better_response_id", None, 2),
        ("shp", "labels", None, -1),
        ("helpsteer", "preference_strength", 0, "much"),
    ],
)
def test_verdicts_of_all_spellings_may_be_ties_or_wrong(name, field, tie, wrong, tmp_path):
    good, row = FORMATS["trl texts"], FORMATS[name]
    if tie is not None:
        path = write(tmp_path / "tie.jsonl", [good, row | {field: tie}])
        assert read(path).counts[0].dropped == {"tie": 1}
    with pytest.raises(UserError, match=rf"wrong.jsonl:2: {field} \('{wrong}'\) is"):
        read(write(tmp_path / "wrong.jsonl", [good, row | {field: wrong}]))


def test_a_rule_gives_the_kind_by_what_is_asked(tmp_path):
    rows = [FORMATS["trl texts"], {"prompt": "Hi", "chosen": "q", "rejected": "x", "kind": "own"}]
    path = write(tmp_path / "rows.jsonl", rows)
    assert [row["kind"] for row in read(path, kind_rule={"math": "^q$"}).rows] == ["math", "own"]


def test_longer_prompts(tmp_path):
    system = {"role": "system", "content": "s"}
    turns = [system, ASK, GOOD, {"role": "user", "content": "more"}]
    rows = [
        {"chosen": [*turns, GOOD], "rejected": [*turns, POOR]},
        {"system": "s", "prompt": turns[1:], "chosen": [GOOD], "rejected": "poor"},
        {"prompt": "more", "history": [["q", "good"]], "system": "s", "chosen": "good"}
        | {"rejected": "poor"},
    ]
    for row in rows:
        assert pair_of(tmp_path, row) == (turns, [GOOD], [POOR])
    text = "\n\nHuman: q\n\nAssistant: good\n\nHuman: more\n\nAssistant: "
    row = {"chosen": text + "good", "rejected": text + "poor"}
    assert pair_of(tmp_path, row) == (turns[1:], [GOOD], [POOR])


def test_transcript_keeps_line_breaks_inside_a_turn():
    messages = read_transcript("\n\nHuman: a\n\nb\n\nAssistant: c", "here:1")
    assert [m["content"] for m in messages] == ["a\n\nb", "c"]


def test_ties_and_duplicates_never_stop(tmp_path):
    votes = {"annotator1": 1, "annotator2": 2, "annotator3": 0}
    rows = [
        {"input": "q", "output_1": "a", "output_2": "b", "label": 0},
        {"input": "q", "output_1": "a", "output_2": "b", "preference": 1.5},
        {"input": "q", "output_1": "a", "output_2": "b", **votes},
        FORMATS["trl texts"],
        FORMATS["trl texts"],
        FORMATS["trl messages"],
        FORMATS["second is better"] | {"input": "r"},  # 2: labels count from 1, and 0 is a tie
    ]
    result = read(write(tmp_path / "rows.jsonl", rows))
    assert result.counts[0].dropped == {"tie": 3, "exact duplicate": 1, "same text": 1}
    assert result.counts[0].rows_in == 7


TWO = {"output_1": "a", "output_2": "b"}


@pytest.mark.parametrize("on_error", ["stop", "drop"])
@pytest.mark.parametrize("name", ["label", "labels", "preference"])
@pytest.mark.parametrize("values", [[0, 1], [1, 0, 1], [0, 0], ["0", "1"]])
def test_labels_that_count_from_0_are_asked_for_and_never_guessed(values, name, on_error, tmp_path):
    rows = [{"input": f"q{i}", **TWO, name: value} for i, value in enumerate(values)]
    path = write(tmp_path / "rows.jsonl", rows)
    with pytest.raises(UserError, match=r"labels=\{"):
        read(path, on_error=on_error)
    for labels, chosen in (
        ({0: "first", 1: "second"}, {0: "a", 1: "b"}),
        ({1: "first", 0: "second"}, {0: "b", 1: "a"}),
        ({"1": "first", "0": "second"}, {0: "b", 1: "a"}),
    ):
        got = read(path, on_error=on_error, labels=labels).rows
        assert [row["chosen"][0]["content"] for row in got] == [chosen[int(v)] for v in values]
    if 1 in map(int, values):
        result = read(path, on_error=on_error, labels={0: "tie", 1: "first"})
        assert result.counts[0].dropped == {"tie": [*map(int, values)].count(0)}


def test_answers_whose_names_count_from_0_are_asked_for_as_well(tmp_path):
    rows = [{"input": f"q{i}", "response_0": "a", "response_1": "b", "label": 1} for i in range(2)]
    path = write(tmp_path / "rows.jsonl", rows)
    with pytest.raises(UserError, match=r"label is 1 and never 2, .* labels=\{0: first"):
        read(path)
    got = read(path, labels={0: "first", 1: "second"}).rows
    assert [row["chosen"][0]["content"] for row in got] == ["b", "b"]
    path = write(tmp_path / "rows.jsonl", [*rows, rows[0] | {"input": "q", "label": 2}])
    assert [row["chosen"][0]["content"] for row in read(path).rows] == ["a", "a", "b"]


def test_words_are_verdicts_where_the_source_says_so(tmp_path):
    rows = [{"input": f"q{i}", **TWO, "label": word} for i, word in enumerate("ABA")]
    path = write(tmp_path / "rows.jsonl", rows)
    with pytest.raises(UserError, match=r":1: label is 'A'; .* labels=\{VALUE: first"):
        read(path)
    got = read(path, labels={"A": "first", "B": "second"}).rows
    assert [row["chosen"][0]["content"] for row in got] == ["a", "b", "a"]
    with pytest.raises(UserError, match=r":2: label \('B'\) is text; it must be one of A, which"):
        read(path, labels={"A": "first"})


@pytest.mark.parametrize("file", KINDS_OF_FILE)
def test_lists_of_answers_are_pairs_where_columns_say_which_is_better(file, tmp_path):
    path = tmp_path / file
    write_as(path, {"instruction": "q", "input": "", "output": ["good", "poor"]})
    if path.suffix != ".csv":  # whose cell is a text
        with pytest.raises(UserError, match=r"'output' is a list of 2 answers, and nothing says"):
            read(path)
        with pytest.raises(UserError, match=r"output is a list of 2 answers; .*data.preference"):
            read_sft([Source(path=str(path))])
    (row,) = read(path, columns={"chosen": "output[0]", "rejected": "output[1]"}).rows
    assert (row["prompt"], row["chosen"], row["rejected"]) == PAIR
    (chat,) = read_sft(
        [Source(path=str(path), columns={"instruction": "instruction", "output": "output[0]"})],
    ).rows
    assert chat["messages"] == [ASK, GOOD]
    with pytest.raises(UserError, match=r"there is no field 'output\[2\]', which `columns` names"):
        read(path, columns={"chosen": "output[0]", "rejected": "output[2]"})


def test_lists_of_answers_with_a_label_need_its_meaning(tmp_path):
    rows = [{"prompt": f"q{i}", "responses": ["a", "b"], "best": i % 2} for i in range(4)]
    path = write(tmp_path / "rows.jsonl", rows)
    columns = {"output_1": "responses[0]", "output_2": "responses[1]", "label": "best"}
    with pytest.raises(UserError, match="label is 0, 1 and never 2"):
        read(path, columns=columns)
    got = read(path, columns=columns, labels={0: "first", 1: "second"}).rows
    assert [row["chosen"][0]["content"] for row in got] == ["a", "b", "a", "b"]


def test_columns_kind_and_id(tmp_path):
    row = {"q": "q", "yes": "good", "no": "poor", "id": 3, "kind": "math"}
    columns = {"prompt": "q", "chosen": "yes", "rejected": "no"}
    (one,) = read(write(tmp_path / "rows.jsonl", [row]), columns=columns).rows
    assert (one["prompt"], one["chosen"], one["rejected"]) == PAIR
    assert (one["id"], one["kind"]) == (3, "math")


# Mistakes.

WRONG = [
    ("chosen equals rejected", {"prompt": "q", "chosen": "x", "rejected": "x"}),
    ("empty chosen", {"prompt": "q", "chosen": " ", "rejected": "x"}),
    ("empty rejected", {"prompt": "q", "chosen": "x", "rejected": ""}),
    ("empty question", {"prompt": "", "chosen": "x", "rejected": "y"}),
    ("no prompt", {"chosen": "x", "rejected": "y"}),
    ("no prompt", {"chosen": [GOOD], "rejected": [POOR]}),
    ("no prompt", {"chosen": [ASK, GOOD], "rejected": [{**ASK, "content": "r"}, POOR]}),
    ("prompt ends on an answer", {"prompt": [ASK, GOOD], "chosen": "x", "rejected": "y"}),
    ("answer of several turns", {"prompt": "q", "chosen": [GOOD, ASK], "rejected": "y"}),
    ("uneven sides", {"chosen": [ASK, GOOD], "rejected": "y"}),
    ("prompt differs", {"prompt": "other", "chosen": [ASK, GOOD], "rejected": [ASK, POOR]}),
    ("wrong type", {"prompt": "q", "chosen": 1, "rejected": "y"}),
    ("wrong type", {"input": "q", "output_1": "a", "output_2": "b", "label": 3}),
    ("wrong type", {"input": "q", "output_1": "a", "output_2": "b", "preference": 2.5}),
    ("no verdict", {"input": "q", "output_1": "a", "output_2": "b"}),
    ("unknown format", {"prompt": "q", "chosen": "x"}),
    ("unknown role", {"prompt": [{"role": "x", "content": "q"}], "chosen": "x", "rejected": "y"}),
]


@pytest.mark.parametrize(("rule", "row"), WRONG)
def test_bad_pair_stops_with_its_line_or_is_dropped_and_listed(rule, row, tmp_path):
    path = write(tmp_path / "rows.jsonl", [FORMATS["trl texts"], row])
    with pytest.raises(UserError) as stopped:
        read(path)
    sentence = str(stopped.value)
    assert sentence.startswith(f"{path}:2: ")
    assert "\n" not in sentence and "; " in sentence
    (count,) = read(path, on_error="drop").counts
    assert count.dropped == {rule: 1}
    assert sentence == f"{count.problems[0]}; data.on_error=drop leaves such rows out"


@pytest.mark.parametrize("on_error", ["stop", "drop"])
@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ({"messages": [ASK, GOOD]}, "list the file under data.sft"),
        ({"instruction": "q", "output": "good"}, "list the file under data.sft"),
        ({"question": "q", "answer": "good"}, "list the file under data.sft"),
        ({"text": "once upon a time"}, "plain text, .*list the file under data.sft"),
        ({"prompt": "q", "completion": "good", "label": False}, "KTO label"),
    ],
)
def test_data_of_another_kind_is_refused(row, sentence, on_error, tmp_path):
    with pytest.raises(UserError, match=rf"rows.jsonl:1: .*{sentence}"):
        read(write(tmp_path / "rows.jsonl", [row]), on_error=on_error)


# Fuzz: a clear sentence or a right pair.

TURN = st.sampled_from([ASK, GOOD, POOR, {"role": "system", "content": "s"}, {"from": "gpt"}, 3])
VALUE = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(0, 2),
    st.floats(),
    st.sampled_from(["", " ", "q", "good", HH + "good", HH, "\n\nAssistant: x", "[]", "{"]),
    TURN,
    st.lists(TURN, max_size=3),
)
FIELD = st.sampled_from(
    [
        *("prompt", "chosen", "rejected", "conversations", "messages", "instruction", "input"),
        *("history", "system", "question", "output_1", "output_2", "response1", "response2"),
        *("label", "preference", "annotator1", "annotator2", "completions", "kind", "tools"),
        *("id", "answer", "output"),
    ]
)


@settings(max_examples=500, deadline=None, suppress_health_check=QUIET)
@given(
    rows=st.lists(st.dictionaries(FIELD, VALUE, max_size=6), min_size=1, max_size=4),
    on_error=st.sampled_from(["stop", "drop"]),
)
def test_fuzz(rows, on_error, tmp_path):
    path = write(tmp_path / "rows.jsonl", rows)
    try:
        result = read(path, on_error=on_error)
    except UserError as error:
        assert str(path) in str(error)
        assert "\n" not in str(error)
        return
    for row in result.rows:
        check_row(row)
    (count,) = result.counts
    assert count.rows_in == len(rows) == count.kept + sum(count.dropped.values())
