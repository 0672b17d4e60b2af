"""Planted and natural copies of benchmark questions are found, and nothing else is."""

import gzip
import json
import random

import pytest

from sft.cleaning.decontamination import BenchmarkQuestion, QuestionIndex, read_questions
from sft.cleaning.near_duplicates import row_text
from sft.cleaning.ngrams import normal_form
from sft.config.sections import Source
from sft.data.sources import read_sft

ENGLISH = (
    "A farmer has 17 crates of pears and sells 9 of them at the harbour market; each crate holds "
    "24 pears. How many pears are left with her in the evening?"
)
CHINESE = "一个农民有17箱梨，她在港口的市场上卖掉了9箱，每箱有24个梨。晚上她还剩下多少个梨？"


def full_width(text):
    return "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in text)


DISGUISES = {
    "as it is": lambda t: t,
    "case": str.upper,
    "spacing": lambda t: "\n ".join(t.split(" ")),
    "no spaces": lambda t: t.replace(" ", ""),
    "punctuation": lambda t: t.replace(",", " -").replace(".", "!").replace("，", "、"),
    "full width": full_width,
    "spaced out": lambda t: " ".join(t),
}


@pytest.mark.parametrize("disguise", DISGUISES)
@pytest.mark.parametrize("question", [ENGLISH, CHINESE])
def test_a_planted_copy_is_found(disguise, question):
    index = QuestionIndex(
        [BenchmarkQuestion("task", "7", question), BenchmarkQuestion("task", "8", question[::-1])]
    )
    rows = ["Tell me of the sea.", f"Please solve: {DISGUISES[disguise](question)} Thank you."]
    (found,) = index.find(rows)
    assert (found.row, found.source, found.id, found.share) == (1, "task", "7", 1.0)
    assert found.evidence == normal_form(question)


@pytest.mark.parametrize("question", [ENGLISH, CHINESE])
def test_half_of_a_question_is_enough_and_a_third_is_not(question):
    index = QuestionIndex([BenchmarkQuestion("task", "0", question)])
    whole = len(question)
    assert index.find([question[: whole * 8 // 10]])
    assert not index.find([question[: whole // 3]])


def test_short_questions_must_match_completely_and_shorter_ones_are_skipped():
    index = QuestionIndex(
        [
            BenchmarkQuestion("t", "0", "What is the capital of Peru?"),
            BenchmarkQuestion("t", "1", "True or false?"),
        ]
    )
    assert index.skipped == 2
    index = QuestionIndex(
        [BenchmarkQuestion("t", "0", "The coding sequences of genes are called what?")]
    )
    assert index.find(["Q: The coding sequences of genes are called what? A: exons"])
    assert not index.find(["The coding sequences of genes are long."])


def test_boilerplate_of_many_questions_is_no_evidence():
    opening = "For which of these two scenarios does the main character do something clearly wrong"
    rng = random.Random(0)
    questions = [
        BenchmarkQuestion(
            "morals", str(i), f"{opening}: {' '.join(str(rng.random()) for _ in range(5))}"
        )
        for i in range(20)
    ]
    index = QuestionIndex(questions)
    assert not index.find([f"{opening} in your view?"])
    assert [c.id for c in index.find([questions[3].text])] == ["3"]


def test_a_short_question_that_longer_ones_end_with_is_a_phrase():
    phrase = "Which of the following statements is false?"
    longer = [
        BenchmarkQuestion("t", str(i), f"Of {i}{i}{i} {i}{i} {i}{i}{i} think. {phrase}")
        for i in range(9)
    ]
    assert not QuestionIndex([*longer, BenchmarkQuestion("t", "s", phrase)]).find([phrase])
    assert QuestionIndex([*longer[:3], BenchmarkQuestion("t", "s", phrase)]).find([phrase])


def test_a_question_asked_of_many_models_is_still_found():
    index = QuestionIndex([BenchmarkQuestion("exam", str(i), ENGLISH) for i in range(9)])
    assert [c.row for c in index.find(["no", ENGLISH])] == [1]


def real_rows(path):
    with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


@pytest.mark.real
def test_benchmarks_in_real_rows(real_data):
    """Every solved GSM8K test question is found; in unrelated instructions nothing is."""
    files = ("gsm8k_test.jsonl", "mmlu_test.jsonl.gz", "ceval_val.jsonl", "arc_easy.jsonl")
    questions = []
    for name in files:
        questions += read_questions(real_rows(real_data / "eval" / name), source=name)
    index = QuestionIndex(questions)
    assert index.skipped < 0.05 * len(questions)

    solved = real_rows(real_data / "eval" / "gsm8k_example_model_solutions.jsonl")
    found = index.find([f"{r['question']}\n{r['175b_finetuning']}" for r in solved])
    assert [c.row for c in found] == list(range(len(solved)))
    texts = {q.id: normal_form(q.text) for q in questions if q.source == files[0]}
    assert all(c.evidence in texts[c.id] for c in found)

    sources = [
        Source(path=str(real_data / "sft" / name))
        for name in ("alpaca_5000_subset.jsonl.gz", "alpaca_zh_carbonz0_part00.jsonl")
    ]
    unrelated = [row_text(row) for row in read_sft(sources, on_error="drop").rows]
    assert len(index.find(unrelated)) < 0.001 * len(unrelated)
