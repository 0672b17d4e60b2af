"""Turns marked as not trained, in every spelling: their tokens and the counts."""

import json

import pytest
from tiny_models import make_tiny_tokenizer

from dpo.data import read_preferences
from sft.chat_template.encoding import EncodedChat, encode_chats
from sft.chat_template.template import ensure_template
from sft.config.sections import Source
from sft.data.prompts import read_prompts
from sft.data.sources import read_sft
from sft.errors import UserError
from sft.tokenization.truncation import encode_and_split

TEXTS = ["one?", "ONE", "two?", "TWO", "three?", "THREE"]
ROLES = ["user", "assistant"] * 3
TAGGED = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}{% else %}"
    "{{ m.content }}<|im_end|>{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def chat(**marks):
    """Return three rounds; `marks` holds keys for single messages, by m and their index."""
    turns = [{"role": r, "content": t} for r, t in zip(ROLES, TEXTS, strict=True)]
    for place, keys in marks.items():
        turns[int(place[1:])] |= keys
    return turns


def read(tmp_path, *rows, **options):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_sft([Source(str(path))], **options)


def trained_texts(rows, *, untrained, template=None, turns="all"):
    """Return the trained texts of each row, without the ends of turns."""
    tokenizer = make_tiny_tokenizer()
    if template is None:
        ensure_template(tokenizer)
    else:
        tokenizer.chat_template = template
    found = []
    for encoded in encode_chats(tokenizer, rows, turns=turns):
        assert isinstance(encoded, EncodedChat), encoded
        assert encoded.untrained_turns == untrained
        pairs = zip(encoded.input_ids, encoded.trained, strict=True)
        text = tokenizer.decode([token for token, trained in pairs if trained])
        found.append([part for part in text.split("<|im_end|>") if part])
    return found


OFF = [
    {"weight": 0}, {"train": False}, {"loss": False}, {"trainable": False}, {"training": "false"},
    {"loss_mask": 0}, {"masked": True}, {"weight": 0.0}, {"loss_scale": 0}, {"loss_weight": "0"},
    {"supervised": False}, {"no_loss": True}, {"no_train": True},
]  # fmt: skip


@pytest.mark.parametrize("template", [None, TAGGED])
@pytest.mark.parametrize("mark", OFF)
def test_a_marked_turn_is_context_in_every_spelling(mark, template, tmp_path):
    on = {key: not value if isinstance(value, bool) else 1 for key, value in mark.items()}
    result = read(tmp_path, {"messages": chat(m3=mark, m5=on)})
    assert trained_texts(result.rows, untrained=1, template=template) == [["ONE", "THREE"]]
    assert [m["content"] for m in result.rows[0]["messages"]] == TEXTS
    assert result.counts[0].mended == {"answers marked as not trained": 1}
    assert result.counts[0].unread == {}


@pytest.mark.parametrize("turns", ["all", "last"])
def test_turns_after_the_last_trained_answer_are_cut(turns, tmp_path):
    result = read(tmp_path, {"messages": chat(m5={"weight": 0})})
    assert [m["content"] for m in result.rows[0]["messages"]] == TEXTS[:4]
    expected, untrained = {"all": (["ONE", "TWO"], 0), "last": (["TWO"], 1)}[turns]
    assert trained_texts(result.rows, untrained=untrained, turns=turns) == [expected]


SYSTEM = {"role": "system", "content": "s"}


@pytest.mark.parametrize(
    "row",
    [
        {"messages": chat(), "loss_mask": [0, 0, 0, 1, 0, 1]},
        {"messages": chat(), "loss_mask": [False, True, True]},
        {"messages": chat(), "train": [0, 0, 0, 1, 0, 1]},
        {"messages": [SYSTEM, *chat()], "loss_mask": [0, 0, 0, 0, 1, 0, 1]},
        {"messages": [SYSTEM, *chat()], "loss_mask": [0, 0, 0, 1, 0, 1]},
        {"messages": chat(), "loss_mask": "[0, 0, 0, 1, 0, 1]"},
        {"conversations": chat(m1={"train": False})},
        {"conversation": [
            {"human": a, "assistant": b, "loss": b != "ONE"}
            for a, b in zip(TEXTS[::2], TEXTS[1::2], strict=True)
        ]},
    ],
)  # fmt: skip
def test_marks_of_a_row_and_of_its_rounds(row, tmp_path):
    assert trained_texts(read(tmp_path, row).rows, untrained=1) == [["TWO", "THREE"]]


def test_a_row_that_trains_nothing_is_left_out_and_counted(tmp_path):
    good = {"prompt": "a", "response": "b"}
    rows = [
        {"messages": chat(m1={"train": 0}, m3={"train": 0}, m5={"train": 0})},
        good | {"prompt": "c", "train": False},
        good | {"prompt": "d", "weight": 0},
        good | {"prompt": "e", "loss_mask": [0, 0]},
        good | {"prompt": "f", "loss": 0.0, "weight": 0.7},
        good,
    ]
    result = read(tmp_path, *rows)
    assert result.counts[0].dropped == {"marked as not trained": 4}
    assert [row["messages"][0]["content"] for row in result.rows] == ["f", "a"]


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ({"messages": chat(m1={"weight": 0.5})}, r"messages\[1\].weight is '0.5'; it must be true"),
        ({"messages": chat(m1={"mask": 1})}, r"messages\[1\].mask marks what is trained in a way"),
        ({"messages": chat(m1={"train": True, "weight": 0})}, "both as trained and as not trained"),
        ({"messages": chat(), "loss_mask": [0, 1]}, "loss_mask has 2 values for 6 messages"),
        ({"messages": chat(), "loss_mask": [0, 2, 0, 1, 0, 1]}, r"loss_mask\[1\] is '2'"),
        ({"messages": chat(m1={"train_detail": [{"begin_offset": 0, "train": False}]})}, "_detail"),
    ],
)
def test_an_unsupported_mark_is_refused(row, sentence, tmp_path):
    with pytest.raises(UserError, match=rf"rows.jsonl:1: .*{sentence}"):
        read(tmp_path, row)


def test_parts_of_a_long_chat_keep_their_marks(tmp_path):
    (row,) = read(tmp_path, {"messages": chat(m1={"weight": 0})}).rows
    tokenizer = make_tiny_tokenizer()
    ensure_template(tokenizer)
    found = list(encode_and_split(tokenizer, [row], turns="all", split_at=40))
    assert [[m["content"] for m in piece["messages"]] for piece, _ in found] == [
        TEXTS[2:4],
        TEXTS[4:],
    ]
    assert all(isinstance(encoded, EncodedChat) for _, encoded in found)


def test_one_row_per_turn_skips_marked_turns(tmp_path):
    tokenizer = make_tiny_tokenizer()
    ensure_template(tokenizer)
    for marked, expected in (("m1", [TEXTS[:4], TEXTS]), ("m3", [TEXTS[:2], TEXTS])):
        (row,) = read(tmp_path, {"messages": chat(**{marked: {"weight": 0}})}).rows
        found = list(encode_and_split(tokenizer, [row], turns="each", split_at=None))
        assert [[m["content"] for m in one["messages"]] for one, _ in found] == expected
        assert [encoded.untrained_turns for _, encoded in found] == [0, 1]
        for one, encoded in found:
            pairs = zip(encoded.input_ids, encoded.trained, strict=True)
            said = tokenizer.decode([token for token, trained in pairs if trained])
            assert said == one["messages"][-1]["content"] + "<|im_end|>"


def test_preferences_and_prompts_ignore_marks(tmp_path):
    path = tmp_path / "rows.jsonl"
    prompt = chat(m1={"weight": 0})[:3]
    path.write_text(json.dumps({"prompt": prompt, "chosen": "a", "rejected": "b"}))
    (pair,) = read_preferences([Source(str(path))]).rows
    assert pair["prompt"] == chat()[:3]
    path.write_text(json.dumps({"messages": prompt}))
    assert read_prompts([Source(str(path))])[0]["messages"] == chat()[:3]
