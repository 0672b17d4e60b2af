"""Answers with a bad label and rows with images are refused."""

import pytest
from row_files import read_given as read
from row_files import turns, write

from dpo.data import read_preferences
from sft.config.sections import Source
from sft.data.prompts import read_prompts
from sft.errors import UserError

MILL = "The mill by the bridge went up in 1742."
ASKED = "In which year was the mill by the bridge built?"
BUILT = "It was built in 1742."
GOOD = {"prompt": "a", "response": "b"}
PAIR = {"chosen": BUILT, "rejected": "Nobody knows when it was built."}


CHAT = [{"role": "user", "content": "Hi there"}, {"role": "assistant", "content": "Hello."}]
SHARED = [{"from": "human", "value": "Hi there"}, {"from": "gpt", "value": "Hello."}]

# Answers that a label calls bad.


@pytest.mark.parametrize(
    "label",
    [
        {"tag": False}, {"kto_tag": True}, {"desirable": False}, {"is_chosen": True},
        {"thumbs_up": False}, {"chosen": True}, {"label": "false"}, {"rejected": True},
        {"completion_label": False}, {"humanLabel": True},
    ],
)  # fmt: skip
@pytest.mark.parametrize("on_error", ["stop", "drop"])
def test_unpaired_labels_are_refused_under_every_name(label, on_error, tmp_path):
    (name,) = label
    row = {"prompt": "q", "completion": "a", **label}
    with pytest.raises(UserError, match=rf"rows.jsonl:1: the row is a KTO label .*{name} is"):
        read(tmp_path, row, on_error=on_error)
    assert turns(tmp_path, row, ignore=[name]) == ["q", "a"]
    path = write(tmp_path / "pairs.jsonl", [row])
    with pytest.raises(UserError, match=rf"pairs.jsonl:1: the row is a KTO label .*{name} is"):
        read_preferences([Source(path)], on_error=on_error)


@pytest.mark.parametrize(
    "label",
    [
        {"label": "bad"}, {"label": 0}, {"tag": "thumbs-down"}, {"feedback": "negative"},
        {"rating": 0}, {"score": 0}, {"helpfulness": 0, "verbosity": 2}, {"is_safe": False},
        {"is_correct": "false"}, {"quality": "poor"}, {"rating": "0"}, {"human_label": "bad"},
        {"is_correct": "no"}, {"user_feedback": -1}, {"reaction": "dislike"},
        {"judgment": "wrong"}, {"completion_label": 0},
    ],
)  # fmt: skip
def test_an_answer_that_its_row_labels_as_bad_is_refused(label, tmp_path):
    name = next(iter(label))
    bad = {"prompt": "q", "response": "a", **label}
    with pytest.raises(UserError, match=rf"rows.jsonl:2: {name} is .* calls the answer bad"):
        read(tmp_path, GOOD, bad)
    result = read(tmp_path, GOOD, bad, on_error="drop")
    assert result.counts[0].dropped == {"answer labeled as bad": 1}
    assert len(read(tmp_path, GOOD, bad, ignore=[name]).rows) == 2


def test_a_message_may_carry_the_label(tmp_path):
    labels = ({"rating": 0}, {"label": "bad"}, {"is_correct": False}, {"label": False})
    for label in (*labels, {"rejected": True}):
        with pytest.raises(UserError, match=r"rows.jsonl:1: .* calls the answer bad"):
            read(tmp_path, {"messages": [CHAT[0], CHAT[1] | label]})
    path = write(tmp_path / "pairs.jsonl", [
        {"prompt": "q", "chosen": [CHAT[1] | {"rating": 4}]}
        | {"rejected": [{"role": "assistant", "content": "Go away.", "rating": 0}]}
    ])  # fmt: skip
    assert len(read_preferences([Source(path)]).rows) == 1


def test_other_labels_are_accepted(tmp_path):
    labels = [{"label": "math"}, {"rating": 4}, {"score": -3.5}, {"is_safe": True}, {"tag": "x y"}]
    labels += [{"correct": "no"}, {"human_reference": "bad"}, {"user": 0}, {"sentiment_label": 0}]
    labels += [{"verbosity": 0, "complexity": 0}, {"label": {"ability": []}}, {"feedback": "good"}]
    rows = [{"prompt": f"{i}", "response": "a", **label} for i, label in enumerate(labels)]
    assert len(read(tmp_path, *rows).rows) == len(rows)


# Pictures.


@pytest.mark.parametrize(
    "row",
    [
        {"messages": CHAT, "images": ["a.png"]},
        {"conversations": SHARED, "image": "a.png"},
        {"question": "q?", "answer": "a", "image": {"bytes": "x", "path": None}},
        {"prompt": "<image>\nWhat is this?", "response": "A mill."},
        {"prompt": "Which of <image> and <image> is red?", "response": "A mill."},
        {"conversations": [{"from": "human", "value": "See\n<video>"}, SHARED[1]]},
        {"text": "A mill.", "image_path": "a.png"},
        {"question": "q?", "answer": "a", "image_bytes": "aGk="},
        {"prompt": "Picture 1: <img>a.png</img> What is this?", "response": "A mill."},
        {"messages": [CHAT[0] | {"content": [{"type": "image"}]}, CHAT[1]]},
        {"messages": [CHAT[0] | {"images": ["a.png"]}, CHAT[1]]},
    ],
)
def test_a_row_with_an_image_is_refused_in_one_sentence(row, tmp_path):
    with pytest.raises(UserError, match=r"rows.jsonl:2: .*(trained on text alone|must be text)"):
        read(tmp_path, GOOD, row)
    assert len(read(tmp_path, GOOD, row, on_error="drop").rows) == 1


def test_rows_without_an_image_may_mention_one(tmp_path):
    rss = "What is wrong in <image><url>a.png</url></image> of this feed?"
    rows = [
        {"messages": CHAT, "images": []},
        {"prompt": rss, "response": "Nothing."},
        {"prompt": "What does <video> do in HTML?", "response": "It shows a film."},
        {"prompt": "What is <img src='a.png'> in HTML?", "response": "A picture."},
        {"prompt": "How do I show a picture in SVG?", "response": "With <image>."},
    ]
    assert len(read(tmp_path, *rows).rows) == len(rows)


def test_pairs_and_prompts_with_images_are_refused(tmp_path):
    row = {"prompt": "What is this?", "chosen": "a", "rejected": "b", "images": ["a.png"]}
    path = write(tmp_path / "rows.jsonl", [row])
    for read_rows in (read_preferences, read_prompts):
        with pytest.raises(UserError, match="is a filled field 'images', and models are"):
            read_rows([Source(path)])
