"""Open-ended questions: files that are read or refused, and answers turn by turn."""

import pytest
from tiny_models import make_tiny_model

from eval.open_ended.judge_prompts import grading
from eval.open_ended.questions import OpenQuestion, answer, read_questions
from sft.chat_template.template import ensure_template
from sft.errors import UserError
from sft.system.atomic_files import write_jsonl

QUESTIONS = [
    OpenQuestion("81", "writing", ("Write a line about tea.", "Now about rain."), ("", "")),
    OpenQuestion("111", "math", ("What is 6 * 7?",), ("42",)),
]


@pytest.mark.real
def test_the_published_files_are_read_as_they_are(real_data):
    folder = real_data / "eval"
    references = str(folder / "mt_bench_reference_answer_gpt4.jsonl")
    bench = read_questions(str(folder / "mt_bench_question.jsonl"), references=references)
    assert len(bench) == 80 and all(len(q.turns) == len(q.references) == 2 for q in bench)
    assert sum(bool(q.references[0]) for q in bench) >= 30
    temperatures = {q.category: q.temperature for q in bench}
    assert temperatures["writing"] == 0.7 and temperatures["math"] == 0.0
    align = read_questions(str(folder / "alignbench_v1_1.jsonl"))
    assert len(align) == 683 and len({q.category for q in align}) == 8
    assert {q.temperature for q in align} == {0.1, 0.7}
    assert all(q.references[0] for q in align)


def test_references_and_categories_are_read_under_their_usual_names(tmp_path, caplog):
    """Unread fields are logged; alternatives of one turn stay together."""
    caplog.set_level("INFO")
    path = tmp_path / "q.jsonl"
    rows = [
        {"prompt": "6 * 7?", "reference_answer": "42", "type": "math", "source": "us"},
        {"instruction": "Capital?", "answers": ["Paris", "the city of Paris"], "topic": "facts"},
        {"turns": [{"role": "user", "content": "Hi"}], "ground_truth": 7, "uid": "u", "task": "t"},
        {"turns": ["a", "b"], "references": ["x", None], "category": "c", "type": "not read"},
        {"question": "Tea?", "source": "us"},
    ]
    write_jsonl(path, rows)
    found = read_questions(str(path))
    assert [(q.id, q.category, q.references) for q in found] == [
        ("0", "math", ("42",)),
        ("1", "facts", ("Paris\nor: the city of Paris",)),
        ("u", "t", ("7",)),
        ("3", "c", ("x", "")),
        ("4", "all", ("",)),
    ]
    assert "q.jsonl: 5 questions, 4 with a reference answer, 5 categories" in caplog.text
    assert "not read: source (in 2 rows), type (in 1 rows)" in caplog.text
    turns = [{"text": "?"}]
    answers = [{"id": q.id, "category": q.category, "turns": turns} for q in found[:2]]
    items = grading(found[:2], {"m": answers}, judge="j")
    assert "reference answer 1>>\n42\n" in items[0].messages[1]["content"]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "6 * 7?", "reference": {"final": "42"}},
        {"turns": ["a", "b"], "references": ["x", "y", "z"]},
    ],
)
def test_reference_answers_that_are_no_texts_are_refused(tmp_path, row):
    path = tmp_path / "q.jsonl"
    write_jsonl(path, [row])
    with pytest.raises(UserError, match=r"q.jsonl:1: the reference answer is not a text for each"):
        read_questions(str(path))


def test_references_of_other_questions_are_refused(tmp_path):
    write_jsonl(tmp_path / "q.jsonl", [{"prompt": "Hi", "prompt_id": 5}])
    choices = [{"turns": ["Hello"]}]
    for identity in (5, 6):
        write_jsonl(tmp_path / "r.jsonl", [{"question_id": identity, "choices": choices}])
        if identity == 5:
            (question,) = read_questions(
                str(tmp_path / "q.jsonl"), references=str(tmp_path / "r.jsonl")
            )
            assert question.references == ("Hello",)
        else:
            with pytest.raises(UserError, match=r"r.jsonl: its ids \(6, ...\) are those of no q"):
                read_questions(str(tmp_path / "q.jsonl"), references=str(tmp_path / "r.jsonl"))


def test_questions_that_are_none_are_refused_with_their_line(tmp_path):
    path = tmp_path / "q.jsonl"
    write_jsonl(path, [{"prompt": "Hi", "id": "a"}, {"text": "no question", "id": "b"}])
    with pytest.raises(UserError, match=r"q.jsonl:2: no question; a row holds `turns`"):
        read_questions(str(path))
    write_jsonl(path, [{"prompt": "Hi", "id": "a"}, {"prompt": "Ho", "id": "a"}])
    with pytest.raises(UserError, match=r"q.jsonl:2: question id a occurs twice"):
        read_questions(str(path))


def test_a_second_turn_is_answered_with_the_first_in_view(tiny_tokenizer):
    ensure_template(tiny_tokenizer)
    model = make_tiny_model()
    rows = answer(model, tiny_tokenizer, QUESTIONS, cap=6, seed=1)
    assert [len(row["turns"]) for row in rows] == [2, 1]
    assert rows == answer(model, tiny_tokenizer, QUESTIONS, cap=6, seed=1)
    # Writing is sampled at 0.7, so another seed writes another answer; mathematics is greedy.
    other = answer(model, tiny_tokenizer, QUESTIONS, cap=6, seed=2)
    assert other[0]["turns"] != rows[0]["turns"] and other[1] == rows[1]
    changed = [OpenQuestion("81", "math", QUESTIONS[0].turns, ("", ""))]
    (greedy,) = answer(model, tiny_tokenizer, changed, cap=6, seed=1)
    alone = [OpenQuestion("x", "math", (QUESTIONS[0].turns[1],), ("",))]
    assert greedy["turns"][1] != answer(model, tiny_tokenizer, alone, cap=6, seed=1)[0]["turns"][0]
