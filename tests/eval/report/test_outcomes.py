"""An answer's outcome: right or wrong, ended or not, and why."""

from itertools import combinations

import pytest

from eval.report.examples import shown
from eval.report.outcomes import REASON, ended, judged
from eval.schema import GenerationRow, ScoredRow
from eval.schema_checks import first_mismatch


@pytest.mark.parametrize(
    ("row", "kinds", "brief", "words"),
    [
        ({"score": 1.0}, ("right",), "right", "right"),
        ({"score": 0.0, "finish_reason": "stop_string"}, ("wrong",), "wrong", "wrong"),
        ({"score": 0.25}, ("partly",), "0.25", "0.25"),
        (
            {"score": 0.0, "finish_reason": "cap"},
            ("wrong", "cut"),
            "wrong, cut",
            "wrong, cut at the task's limit of tokens",
        ),
        (
            {"score": 1.0, "finish_reason": "cap", "loop": {"period": 9, "copies": 40, "start": 3}},
            ("right", "loops"),
            "right, loops",
            "right, cut in a loop: 9 characters × 40",
        ),
        ({"score": 1.0, "outcome": "passed"}, ("right",), "right", "right"),
        (
            {"score": 0.0, "outcome": "NameError: x", "finish_reason": "stop_id"},
            ("wrong",),
            "wrong",
            "wrong: NameError: x",
        ),
        (
            {
                "score": 0.0,
                "metric": "prompt_level_loose_acc",
                "outcome": {"strict": [False, False], "loose": [True, False]},
            },
            ("wrong",),
            "wrong",
            "wrong: 1 of 2 instructions followed",
        ),
    ],
)
def test_a_question_is_right_or_wrong_and_why(row, kinds, brief, words):
    outcome = judged(row)
    assert (outcome.kinds, outcome.brief, outcome.words) == (kinds, brief, words)


def test_a_long_error_is_cut():
    words = judged({"score": 0.0, "outcome": "e" * 10_000}).words
    assert len(words) < REASON + 20 and words.endswith("…")


@pytest.mark.parametrize(
    ("row", "kind", "words"),
    [
        ({"finish_reason": "stop_id", "token_ids": [1]}, "stops", "stops after 1 token"),
        ({"finish_reason": "cap", "token_ids": [1] * 8}, "cut", "cut at 8 tokens"),
        ({"finish_reason": "stop_id", "token_ids": [1] * 9}, "cut", "past the cap: stops after 9"),
        ({"finish_reason": "loop", "token_ids": [1], "repeats": True}, "loops", "loops"),
    ],
)
def test_an_answer_stops_loops_or_is_cut(row, kind, words):
    outcome = ended(row | {"cap": 8})
    assert outcome.kinds == (kind,) and outcome.words.startswith(words)


LOOP = {"start": 2, "period": 1, "copies": 8}
STORED = {
    "id": "a",
    "messages": [],
    "text": "a" * 40,
    "repeats": True,
    "loop": LOOP,
    "token_ids": [7] * 12,
    "cap": 8,
    "finish_reason": "stop_id",
}
MARKED = {
    **{"doc_id": "1", "doc_hash": "x", "score": 0.0, "metric": "prompt_level_loose_acc"},
    **{"answer": "a" * 40, "target": "b", "finish_reason": "cap", "loop": LOOP},
    "outcome": {"strict": [False], "loose": [True]},
}


@pytest.mark.parametrize(
    ("row", "schema", "read"),
    [
        (STORED, GenerationRow, ended),
        (STORED | {"repeats": False}, GenerationRow, ended),
        (STORED, GenerationRow, shown),
        (MARKED, ScoredRow, judged),
        (MARKED, ScoredRow, shown),
    ],
)
def test_any_row_that_fits_the_schema_is_read(row, schema, read):
    """Whichever keys it lacks, also within its loop or its outcome."""
    inner = [(key, each) for key in ("loop", "outcome") for each in row.get(key) or ()]
    fit = 0
    for size in range(4):
        for lost in combinations([*((key, None) for key in row), *inner], size):
            less = {k: dict(v) if isinstance(v, dict) else v for k, v in row.items()}
            for key, each in lost:
                if each is None:
                    less.pop(key)
                elif key in less:
                    less[key].pop(each, None)
            if first_mismatch(less, schema) is None:
                fit += 1
                assert read(less)
    assert fit > 1


def test_an_answer_that_an_earlier_version_stored_without_its_end_is_called_that():
    assert ended({"token_ids": [1]}).words == "how it ended is not recorded"
    assert ended({"token_ids": [1] * 9, "finish_reason": "stop_id"}).kinds == ("stops",)
