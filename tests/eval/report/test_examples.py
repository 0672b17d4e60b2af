"""The report shows prompts and questions by rule, and loses no character of an answer."""

from pathlib import Path

import pytest
from made_up_run import ANSWERS, LOOPS, MODELS, SCORES, make_run

from eval.report import examples


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "mine")


def test_prompts_shown_follow_the_rule(finished: Path) -> None:
    files = {model: finished / "eval" / model / "generations.jsonl" for model in MODELS}
    prompts = examples.choose_prompts(files)
    assert len(prompts) == len({prompt.id for prompt in prompts}) == examples.PROMPTS
    assert {prompt.language for prompt in prompts} == {"en", "zh"}
    looping = [[m for m in MODELS if prompt.answers[m]["repeats"]] for prompt in prompts]
    cured = [loops for loops in looping if loops and loops[-1] != "dpo"]
    assert len(cured) >= examples.CURED and any("sft-all" in loops for loops in cured)
    assert any(loops and loops[-1] == "dpo" for loops in looping)


def test_questions_shown_differ_in_verdict_where_any_do(finished: Path) -> None:
    files = {
        task: {m: finished / "eval" / m / "samples" / f"{task}.jsonl" for m in MODELS}
        for task in SCORES
    }
    questions = examples.choose_questions(files)
    for task in SCORES:
        answers = [question.answers for question in questions if question.task == task]
        scores = [(row["base"]["score"], row["dpo"]["score"]) for row in answers]
        assert (0.0, 1.0) in scores and (1.0, 0.0) in scores
        assert len(scores) == examples.QUESTIONS_PER_TASK
    assert all("What is 2 + 2" not in question.prompt for question in questions)


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("lead_copies", [0, 1, 9])
def test_loop_is_shown_twice_and_no_character_is_lost(language: str, lead_copies: int) -> None:
    lead, loop = ANSWERS[language] * lead_copies, LOOPS[language]
    # The answer ends in the middle of a copy and, as byte tokens may, in that of a character.
    text = lead + loop * 40 + loop[:5] + "\ufffd"
    row = {
        "text": text,
        "token_ids": list(range(len(text))),
        "loop": {"period": len(loop), "copies": 40, "start": len(lead)},
    }
    parts = examples.shown(row)
    assert "".join(part.text for part in parts) == text
    copies = [part.text for part in parts if part.kind == "copy"]
    assert len(copies) == 2 and copies[0] == copies[1]
    assert copies[0] in loop * 3 and len(copies[0]) % len(loop) == 0
    seen = sum(len(part.text) for part in parts if part.kind in ("text", "copy"))
    assert seen <= examples.FOLD_AT + 2 * examples.FOLD_TAIL + examples.FOLD_MIN + 2 * len(loop)


def test_long_answer_folds_and_short_one_does_not() -> None:
    short, long = "word " * 40, "word " * 400
    assert [part.kind for part in examples.folded(short)] == ["text"]
    parts = examples.folded(long)
    assert "".join(part.text for part in parts) == long
    assert [part.kind for part in parts if part.text] == ["text", "fold"]


def test_a_fold_says_how_much_of_it_is_not_on_the_page() -> None:
    text = "word " * 20_000
    first, fold, last = examples.folded(text)
    assert first.size + fold.size + last.size == len(text)
    assert len(fold.text) == examples.FOLD_MOST < fold.size
    assert text.startswith(first.text + fold.text)


def test_a_loop_known_in_characters_is_shown_where_it_is() -> None:
    lead, loop = "She went out. ", "and then it rained "
    text = lead + loop * 30 + "and th"
    row = {"answer": text, "loop": {"period": len(loop), "copies": 30, "start": len(lead)}}
    parts = examples.shown(row)
    assert "".join(part.text for part in parts) == text
    assert [part.text for part in parts if part.kind == "copy"] == [loop, loop]
    other = lead + "and then it rained, and that was all there was to it. "
    parts = examples.shown(row | {"answer": other})
    assert [(part.kind, part.text) for part in parts] == [("text", other)]
