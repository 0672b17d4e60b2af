"""An answer's outcome: right or wrong, ended or not, and why."""

import pytest

from eval.report.outcomes import REASON, ended, judged


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
