"""Decisions on stages: by the repetition rate before, and by paired tests after."""

import pytest

from eval.results.stage_gate import check_gates, no_regression, stage_needed
from sft.config.sections import DialogueStage, EvalSection, Preset, RepetitionSection
from sft.errors import UserError
from sft.system.atomic_files import write_json, write_jsonl

CAP = 4


def write_model(folder, name, *, right, endless, n=200):
    """Stored rows of one task and of repetition: the first `right` and `endless` of n count."""
    place = folder / "eval" / name
    (place / "samples").mkdir(parents=True)
    rows = [
        {"doc_id": str(i), "doc_hash": str(i), "metric": "acc", "score": float(i < right)}
        for i in range(n)
    ]
    write_jsonl(place / "samples" / "sums.jsonl", rows)
    answers = [{"id": str(i), "messages": [], "cap": CAP, "repeats": i < endless} for i in range(n)]
    write_jsonl(place / "generations.jsonl", answers)
    scores = {"benchmarks": {"sums": {}}, "repetition": {"rate": endless / n}}
    write_json(place / "scores.json", scores)


@pytest.mark.parametrize(("endless", "verdict"), [(4, "skipped"), (5, "runs")])
def test_a_stage_runs_where_the_model_before_repeats_itself_too_often(tmp_path, endless, verdict):
    write_model(tmp_path, "sft-all", right=0, endless=endless)
    decision = stage_needed(tmp_path, stage="sft-dialogue", after="sft-all", above=0.02)
    assert decision.verdict == verdict and f"{endless / 200:.1%}" in decision.reason


@pytest.mark.parametrize(
    ("right", "endless", "verdict", "named"),
    [
        (100, 20, "kept", "nowhere"),  # nothing changed
        (97, 0, "kept", "nowhere"),  # three questions lost: within noise
        (80, 0, "set aside", "on sums"),  # twenty lost, none won
        (120, 60, "set aside", "on repetition"),  # better answers, forty more of them endless
        (80, 60, "set aside", "on sums, repetition"),
        (160, 0, "kept", "nowhere"),  # significantly better is no reason
    ],
)
def test_a_model_is_kept_unless_something_is_significantly_worse(
    tmp_path, right, endless, verdict, named
):
    write_model(tmp_path, "sft-all", right=100, endless=20)
    write_model(tmp_path, "sft-dialogue", right=right, endless=endless)
    decision = no_regression(tmp_path, stage="sft-dialogue", before="sft-all")
    assert decision.verdict == verdict and named in decision.reason
    assert [row["task"] for row in decision.evidence] == ["sums", "repetition"]


@pytest.mark.parametrize(
    ("section", "words"),
    [
        (EvalSection(), "eval.tasks names none"),
        (EvalSection(tasks=["sums"], repetition=RepetitionSection(None)), "prompts is null"),
    ],
)
def test_what_nothing_would_decide_is_refused(section, words):
    preset = Preset(sft_dialogue=DialogueStage(enabled="auto"), eval=section)
    with pytest.raises(UserError, match=words):
        check_gates(preset)
