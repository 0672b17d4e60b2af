"""No content of a row is lost or changed: companion and unread fields, and JSON in texts."""

import csv
import gzip
import json

import pytest
from rich.console import Console
from row_files import read_given as read
from row_files import turns, write

from dpo.data import read_preferences
from sft.config.sections import Source
from sft.data.fields import is_metadata, looks_like_content, unread_texts
from sft.data.prompts import read_prompts
from sft.data.sources import read_sft, source_table
from sft.errors import UserError

MILL = "The mill by the bridge went up in 1742."
ASKED = "In which year was the mill by the bridge built?"
BUILT = "It was built in 1742."
GOOD = {"prompt": "a", "response": "b"}
PAIR = {"chosen": BUILT, "rejected": "Nobody knows when it was built."}


# Companions of the question.

WHOLE = [
    ({"instruction": ASKED, "context": MILL}, f"{ASKED}\n{MILL}"),
    ({"prompt": ASKED, "passage": MILL}, f"{ASKED}\n{MILL}"),
    ({"question": ASKED, "context": MILL}, f"{MILL}\n{ASKED}"),
    ({"question": ASKED, "story": MILL, "input": "x"}, f"{MILL}\nx\n{ASKED}"),
    ({"query": ASKED, "documents": [MILL, "And more."]}, f"{MILL}\nAnd more.\n{ASKED}"),
    ({"instruction": "One word.", "question": ASKED}, f"One word.\n{ASKED}"),
    ({"definition": "Answer.", "input": MILL, "instruction": "i"}, f"Answer.\ni\n{MILL}"),
    ({"question": "q?", "options": ["x", "y"]}, "q?\nA. x\nB. y"),
    ({"question": "q?", "choices": {"label": ["1", "2"], "text": ["x", "y"]}}, "q?\n1. x\n2. y"),
    ({"question": "q?", "options": {"A": "x", "B": "y"}}, "q?\nA. x\nB. y"),
    ({"question": "q?", "options": ["(A) x", "(B) y"]}, "q?\n(A) x\n(B) y"),
    ({"question": "q?", "options": ["I. only", "II. only"]}, "q?\nA. I. only\nB. II. only"),
    ({"question": "q? x or y", "options": ["x", "y"]}, "q? x or y"),
    ({"question": "q?", "A": "x", "B": "y", "C": "z"}, "q?\nA. x\nB. y\nC. z"),
    ({"question": "q?", "option_a": "x", "option_b": "y"}, "q?\nA. x\nB. y"),
    ({"question": f"{MILL} {ASKED}", "context": MILL}, f"{MILL} {ASKED}"),
    ({"instruction": ASKED, "context": ""}, ASKED),
]


@pytest.mark.parametrize(("fields", "question"), WHOLE)
def test_companion_fields_are_part_of_the_question(fields, question, tmp_path):
    expected = [question, BUILT]
    answer = "answer" if "question" in fields or "query" in fields else "output"
    assert turns(tmp_path, fields | {answer: BUILT}) == expected
    path = write(tmp_path / "pairs.jsonl", [fields | PAIR])
    (pair,) = read_preferences([Source(path)]).rows
    assert [m["content"] for m in pair["prompt"]] == [question]
    path = write(tmp_path / "prompts.jsonl", [fields])
    (prompt,) = read_prompts([Source(path)])
    assert [m["content"] for m in prompt["messages"]] == [question]


def test_a_prompt_with_an_input_keeps_its_instruction(tmp_path):
    row = {"prompt": "Translate into German.", "input": "The sea is calm."}
    answer = "Das Meer ist ruhig."
    expected = ["Translate into German.\nThe sea is calm.", answer]
    assert turns(tmp_path, row | {"output": answer}) == expected


def test_a_companion_of_another_type_is_refused(tmp_path):
    row = {"question": ASKED, "answer": BUILT, "context": {"pages": [MILL]}}
    with pytest.raises(UserError, match=r"rows.jsonl:1: context is an object; it must be text"):
        read(tmp_path, row)
    assert turns(tmp_path, row, ignore=["context"]) == [ASKED, BUILT]


# Unread fields.

NOTE = "The mill went up in 1742, and the bridge a year later."


def test_an_unread_field_with_content_is_an_error_with_a_remedy(tmp_path):
    rows = [{"prompt": f"{i}?", "response": f"{i}", "note": f"{NOTE} {i}"} for i in range(3)]
    path = tmp_path / "rows.jsonl"
    for on_error in ("stop", "drop"):
        with pytest.raises(UserError) as stopped:
            read(tmp_path, *rows, on_error=on_error)
        assert str(stopped.value).startswith(f"{path}:1: the field 'note' ('The mill went up")
        assert "3 of 3 rows" in str(stopped.value)
        assert "columns={context: note}" in str(stopped.value)
        assert "ignore=[note]" in str(stopped.value)
    mapped = read(tmp_path, *rows, columns={"context": "note"})
    assert mapped.rows[1]["messages"][0]["content"] == f"1?\n{NOTE} 1"
    assert mapped.counts[0].unread == {}
    left = read(tmp_path, *rows, ignore=["note"])
    assert left.rows[1]["messages"][0]["content"] == "1?"
    with pytest.raises(UserError, match="ignore or columns names 'nota', which no row has"):
        read(tmp_path, *rows, ignore=["note", "nota"])


def test_a_field_hidden_by_a_mapping_is_reported(tmp_path):
    row = {"ask": ASKED, "say": BUILT, "context": MILL}
    columns = {"prompt": "ask", "response": "say"}
    with pytest.raises(UserError, match=r"the field 'context' \('The mill by"):
        read(tmp_path, row, columns=columns)
    whole = turns(tmp_path, row, columns={**columns, "context": "context"})
    assert whole == [f"{ASKED}\n{MILL}", BUILT]


SQUAD = {"question": ASKED, "context": MILL, "answers": {"answer_start": [27], "text": ["1742"]}}
NESTED = [
    (SQUAD, {"answer": "answers.text[0]"}, [f"{MILL}\n{ASKED}", "1742"]),
    (
        {"question": "q?", "answer": {"aliases": ["B"], "value": "A"}},
        {"answer": "answer.value"},
        "A",
    ),
    ({"question": "q?", "answer": ["A"]}, {"answer": "answer[0]"}, "A"),
    ({"question": "q?", "answers": ["A", "B"]}, {"answer": "answers[0]"}, "A"),
    ({"question": "q?", "answer": ["A", "B"]}, {"answer": "answer[0]"}, "A"),
    ({"instruction": "q?", "output": {"fr": "A"}}, {"output": "output.fr"}, "A"),
]


@pytest.mark.parametrize(("row", "columns", "chat"), NESTED)
def test_columns_select_an_answer_inside_a_list_or_an_object(row, columns, chat, tmp_path):
    ((ours, theirs),) = columns.items()
    with pytest.raises(UserError) as error:
        read(tmp_path, row)
    assert f"columns={{{ours}: '{theirs}'}}" in str(error.value)
    chat = ["q?", chat] if isinstance(chat, str) else chat
    assert turns(tmp_path, row, columns=columns) == chat


def test_a_missing_part_is_a_bad_row_and_a_field_name_may_contain_a_dot(tmp_path):
    nothing = {**SQUAD, "answers": {"answer_start": [], "text": []}}
    columns = {"answer": "answers.text[0]"}
    with pytest.raises(
        UserError, match=r":2: there is no field 'answers\.text\[0\]'.*on_error=drop"
    ):
        read(tmp_path, SQUAD, nothing, columns=columns)
    assert read(tmp_path, SQUAD, nothing, columns=columns, on_error="drop").counts[0].kept == 1
    row = {"a.b": "q?", "a": {"b": "x", "c": "A"}}
    assert turns(tmp_path, row, columns={"prompt": "a.b", "response": "a.c"}) == ["q?", "A"]
    with pytest.raises(UserError, match=r"names 'meta\.b', which no row has"):
        read(tmp_path, {**GOOD, "meta": {"b": "x"}}, ignore=["meta.b"])


def test_a_companion_may_be_missing_from_some_rows_but_not_from_all(tmp_path):
    rows = [{"prompt": "a?", "response": "A", "note": MILL}, {"prompt": "b?", "response": "B"}]
    result = read(tmp_path, *rows, columns={"context": "note"})
    asked = [row["messages"][0]["content"] for row in result.rows]
    assert asked == [f"a?\n{MILL}", "b?"]
    with pytest.raises(UserError, match="columns names 'nite', which no row has"):
        read(tmp_path, *rows, columns={"context": "nite"}, ignore=["note"])


def test_a_field_replaced_by_a_mapping_is_reported(tmp_path):
    row = {"prompt": MILL, "ask": ASKED, "response": BUILT}
    with pytest.raises(UserError, match=r"the field 'prompt' \('The mill by"):
        read(tmp_path, row, columns={"prompt": "ask"})
    columns = {"prompt": "ask", "context": "prompt"}
    assert turns(tmp_path, row, columns=columns) == [f"{ASKED}\n{MILL}", BUILT]


def test_unread_parts_of_instances_are_reported(tmp_path):
    seed = {"instruction": "i", "instances": [{"input": "x", "output": "y", "note": MILL}]}
    with pytest.raises(UserError, match=r"the field 'instances\[\].note' \('The mill by"):
        read(tmp_path, seed)
    assert turns(tmp_path, seed, ignore=["instances[].note"]) == ["i\nx", "y"]


@pytest.mark.parametrize(
    ("read_rows", "row"),
    [
        (read_preferences, {"prompt": "q", **PAIR}),
        (read_prompts, {"prompt": "q"}),
        (read_sft, {"text": "Once upon a time."}),
        (read_sft, {"messages": [{"role": "user", "content": "q"}, {"from": "gpt", "value": "a"}]}),
    ],
)
def test_every_reader_reports_unread_fields(read_rows, row, tmp_path):
    path = write(tmp_path / "rows.jsonl", [row | {"essay": MILL}])
    with pytest.raises(UserError, match=r"rows.jsonl:1: the field 'essay' \('The mill"):
        read_rows([Source(path)])
    assert read_rows([Source(path, ignore=["essay"])])


def test_comments_on_a_pair_are_accepted(tmp_path):
    row = {"prompt": "q", **PAIR, "rationale": "The first answer says when.", "judge_text": MILL}
    (count,) = read_preferences([Source(write(tmp_path / "rows.jsonl", [row]))]).counts
    assert count.unread == {"judge_text": 1, "rationale": 1}


def test_a_rare_field_is_counted_and_shown(tmp_path):
    rows = [{"prompt": f"{i}?", "response": f"{i}"} for i in range(4)]
    rows[2] |= {"note": NOTE, "topic": "mills"}
    result = read(tmp_path, *rows)
    assert result.counts[0].unread == {"note": 1, "topic": 1}
    console = Console(width=120, record=True)
    console.print(source_table([vars(c) for c in result.counts], title="rows"))
    assert "1 note, 1 topic" in console.export_text()


def test_a_rendered_copy_of_the_row_is_not_unread_content():
    said = ["What is 6 * 7?", "It is 42."]
    rendered = "### Ask:\nWhat is 6 * 7?\n### Say:\nIt is 42."
    fields = {"text": rendered, "answer": "42", "turns": said, "messages": [{"content": said[0]}]}
    assert unread_texts(fields, said) == {}
    half = {"text": "### Ask: look at the table below.\nWhat is 6 * 7?"}
    assert unread_texts(half, said) == {"text": half["text"]}


# What well-known data sets carry along, with values as they stand there.
CHAT = [{"role": "user", "content": "Hi there"}, {"role": "assistant", "content": "Hello."}]
SHARED = [{"from": "human", "value": "Hi there"}, {"from": "gpt", "value": "Hello."}]
ASK = {"instruction": "Hi there", "input": "", "output": "Hello."}
HUB = {
    "alpaca": ASK | {"text": "Below is an instruction.\n\nHi there\n\n### Response:\nHello."},
    "dolly": {"instruction": "Hi there", "context": "", "response": "Hello."}
    | {"category": "open_qa"},
    "open orca": {"id": "flan.1", "system_prompt": "", "question": "Hi there"}
    | {"response": "Hello."},
    "ultrachat": {"prompt": "Hi there", "prompt_id": "ab12", "messages": CHAT},
    "no robots": {"prompt": "Hi there", "prompt_id": "ab", "messages": CHAT, "category": "Chat"},
    "tulu": {"id": "t_1", "messages": CHAT, "source": "ai2-adapt-dev/oasst1_converted"},
    "wizard": {"idx": "alpaca_1", "conversations": SHARED},
    "slim orca": {"conversations": [SHARED[0] | {"weight": 0}, SHARED[1] | {"weight": 1}]},
    "open hermes": {"conversations": SHARED, "source": "airoboros2.2", "category": "orca"}
    | {"model": "gpt-4", "title": "A Greeting Between Friends", "hash": "0f", "avatarUrl": "/a.png"}
    | {"topic": "small talk", "language": "en", "model_name": "GPT-4", "views": 3},
    "meta math": {"type": "GSM_AnsAug", "query": "Hi there", "original_question": "Hi, are you in?"}
    | {"response": "Hello."},
    "numina": {"source": "cn_k12", "problem": "Hi there", "solution": "Hello.", "messages": CHAT},
    "aya": {"inputs": "Hi there", "targets": "Hello.", "language_code": "eng", "user_id": "9"}
    | {"annotation_type": "original-annotations"},
    "magicoder": {"lang": "python", "raw_index": 1, "problem": "Hi there", "solution": "Hello."}
    | {"seed": "def greet():\n    return 'hello to you'", "openai_fingerprint": "fp_eeff13170a"},
    "code feedback": {"query": "Hi there", "answer": "Hello.", "resource": "evolinstruct"},
    "infinity": {"conversations": SHARED, "label": {"ability_en": ["chat"]}, "langdetect": "en"},
    "wild chat": {"conversation_hash": "aa", "model": "gpt-4", "conversation": [
        CHAT[0] | {"country": "France", "header": {"user-agent": "Mozilla/5.0 (X11; Linux)"}},
        CHAT[1] | {"timestamp": "2023-04-09 00:02:53"},
    ]},
    "lima": {"conversations": ["Hi there", "Hello."], "source": "stackexchange"},
    "medical": ASK | {"dataset": "medalpaca/medical_meadow", "url": "https://example.org/a b"},
}  # fmt: skip


@pytest.mark.parametrize("name", HUB)
def test_metadata_of_well_known_data_sets_is_accepted(name, tmp_path):
    assert turns(tmp_path, HUB[name]) == ["Hi there", "Hello."]


def test_metadata_names_and_content_texts_are_classified():
    for name in ("prompt_id", "dataSource", "language", "quality-score", "original_question"):
        assert is_metadata(name), name
    for name in ("note", "source_text", "rationale", "solution", "background", "hint"):
        assert not is_metadata(name), name
    for text in (MILL, "Translate into German.", "一座磨坊建于1742年。", "a b\nc d", "word " * 12):
        assert looks_like_content(text), text
    for text in ("", "closed qa", "https://a.b/c?d=e.", "2023-04-09 00:02:53", "高等数学", "a/b c"):
        assert not looks_like_content(text), text


def test_unknown_keys_of_messages_are_reported(tmp_path):
    messages = [CHAT[0] | {"mood": 3}, CHAT[1] | {"mood": 1, "content_type": "text"}]
    result = read(tmp_path, {"messages": messages})
    assert result.counts[0].unread == {"messages[].content_type": 1, "messages[].mood": 1}
    lost = [CHAT[0] | {"attachment": MILL}, CHAT[1]]
    with pytest.raises(UserError, match=r"the field 'messages\[\].attachment' \('The mill"):
        read(tmp_path, {"messages": lost})
    assert read(tmp_path, {"messages": lost}, ignore=["messages[].attachment"]).rows


# Text that happens to be JSON.

JSON_TEXTS = [
    '{"role": "assistant", "content": "Hi"}',
    '[{"role": "user", "content": "Hi"}]',
    '{"from": "EUR", "value": 3}',
    '[{"from": "human", "value": "x"}, {"from": "gpt", "value": "y"}]',
    "[1, 2, 3]",
]


@pytest.mark.parametrize("text", JSON_TEXTS)
@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_text_that_is_valid_json_stays_text(text, kind, tmp_path):
    for asked, answered in (("instruction", "output"), ("question", "answer")):
        for row in ({asked: text, answered: "b"}, {asked: "a", answered: text}):
            path = tmp_path / f"rows.{kind}"
            if kind == "jsonl":
                write(path, [row])
            else:
                with path.open("w", newline="") as file:
                    writer = csv.DictWriter(file, list(row))
                    writer.writeheader()
                    writer.writerow(row)
            (one,) = read_sft([Source(str(path))]).rows
            assert [m["content"] for m in one["messages"]] == list(row.values())
            assert [m["role"] for m in one["messages"]] == ["user", "assistant"]


@pytest.mark.parametrize("text", JSON_TEXTS)
def test_a_prompt_or_an_answer_alone_in_json_stays_text(text, tmp_path):
    assert turns(tmp_path, {"prompt": text, "completion": "b"}) == [text, "b"]
    assert turns(tmp_path, {"prompt": "a", "completion": text}) == ["a", text]
    path = write(tmp_path / "pairs.jsonl", [{"prompt": "q", "chosen": text, "rejected": "b"}])
    (pair,) = read_preferences([Source(path)]).rows
    assert pair["chosen"] == [{"role": "assistant", "content": text}]


def test_csv_cells_are_decoded_as_messages_only_if_nothing_else_fits(tmp_path):
    def read_cells(row, read_rows):
        with (tmp_path / "rows.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(row))
            writer.writeheader()
            writer.writerow(row)
        return read_rows([Source(str(tmp_path / "rows.csv"))]).rows[0]

    one, other = ({"role": "assistant", "content": text} for text in ("Hello.", "Go away."))
    row = read_cells({"prompt": json.dumps(CHAT[:1]), "response": "Hello."}, read_sft)
    assert row["messages"] == CHAT
    row = read_cells({"prompt": json.dumps(CHAT[0]), "completion": json.dumps(one)}, read_sft)
    assert [m["content"] for m in row["messages"]] == [json.dumps(CHAT[0]), json.dumps(one)]
    sides = {"chosen": json.dumps(one), "rejected": json.dumps(other)}
    row = read_cells({"prompt": "q", **sides}, read_preferences)
    assert (row["chosen"], row["rejected"]) == ([one], [other])
    row = read_cells({"prompt": "q", **sides, "rejected": "Go away."}, read_preferences)
    assert row["chosen"] == [{"role": "assistant", "content": json.dumps(one)}]


def test_messages_stored_as_json_text_are_decoded(tmp_path):
    """pandas and others write columns of objects as JSON text."""
    good, poor = [CHAT[1]], [{"role": "assistant", "content": "Go away."}]
    rows = [
        {"messages": json.dumps(CHAT)},
        {"conversations": json.dumps(CHAT)},
        {"prompt": json.dumps(CHAT[:1]), "completion": json.dumps(good)},
    ]
    for row in rows:
        assert turns(tmp_path, row) == ["Hi there", "Hello."]
    sides = {"chosen": json.dumps(CHAT), "rejected": json.dumps([CHAT[0], *poor])}
    for row in (sides, sides | {"prompt": "Hi there"}):
        (pair,) = read_preferences([Source(write(tmp_path / "pairs.jsonl", [row]))]).rows
        assert (pair["prompt"], pair["chosen"], pair["rejected"]) == (CHAT[:1], good, poor)


# Real rows.


@pytest.mark.real
def test_real_questions_include_their_options_and_passages(real_data):
    path = real_data / "eval/mmlu_dev.jsonl"
    wanted = []
    for row in map(json.loads, path.read_text().splitlines()):
        options = [f"{letter}. {row[letter]}" for letter in "ABCD"]
        asked = "\n".join([row["question"], *options])
        if all("".join(row[c].split()) in "".join(row["question"].split()) for c in "ABCD"):
            asked = row["question"]
        wanted.append(asked)
    rows = read_sft([Source(str(path))]).rows
    assert len(rows) == 284 and {r["messages"][0]["content"] for r in rows} == set(wanted)
    assert sum("\nD. " in asked for asked in wanted) > 270
    path = real_data / "eval/agieval_gaokao.jsonl.gz"
    rows = [json.loads(line) for line in gzip.decompress(path.read_bytes()).decode().splitlines()]
    prompts = {p["messages"][0]["content"] for p in read_prompts([Source(str(path))])}
    passages = [row for row in rows if row.get("passage")]
    assert len(passages) == 526
    for row in passages:
        shown = [row["passage"], row["question"], *(row["options"] or [])]
        assert "\n".join(text for text in shown if text.strip()) in prompts


@pytest.mark.real
def test_unread_fields_of_real_rows(real_data):
    expected = {
        "sft/firefly_dummy.jsonl": {"category": 33, "dataset": 33},
        "sft/belle_zh_seed_tasks.jsonl": {"name": 175},
        "sft/codealpaca_new.jsonl.gz": {},
        "sft/medicalgpt_medical_1k.jsonl": {},
    }
    for name, unread in expected.items():
        (count,) = read_sft([Source(str(real_data / name))]).counts
        assert count.unread == unread, name
    with pytest.raises(UserError, match=r"ceval_dev.jsonl:1: the field 'explanation'"):
        read_sft([Source(str(real_data / "eval/ceval_dev.jsonl"))])
