"""`enabled: auto`: a stage runs where it is needed, and its model is kept only if nothing is lost.

DeepSeek LLM (arXiv 2401.02954, section 4) trains its 67B model in one stage of SFT, since it hardly
repeats itself, and its 7B model in two. Both questions are answered from stored samples.
"""

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from eval.metrics.paired_comparison import REPETITION, adjust, compare, left_out
from sft.config.sections import Preset
from sft.errors import UserError
from sft.run.stage_folders import DECISIONS
from sft.system.atomic_files import read_json, read_jsonl, write_json

log = logging.getLogger(__name__)

LEVEL = 0.05  # of the tests, after Holm over a decision's comparisons


@dataclass(frozen=True)
class Decision:
    """What was decided about a stage, and on which evidence (rows of `deltas`, or a rate)."""

    stage: str
    verdict: Literal["runs", "skipped", "kept", "set aside"]
    reason: str
    evidence: Sequence[dict[str, Any]] = ()


def check_gates(preset: Preset) -> None:
    """Refuse stages that could not be decided on.

    Raises:
        UserError: a stage is `auto` and nothing is measured that would decide it.
    """
    auto = [name for name in ("sft_dialogue", "dpo") if getattr(preset, name).enabled == "auto"]
    if not auto:
        return
    if not preset.eval.tasks:
        raise UserError(
            f"{auto[0]}.enabled=auto keeps the stage only if benchmarks hold, and eval.tasks names "
            "none; name some, or set it to true or false"
        )
    if not preset.eval.repetition.prompts:
        raise UserError(
            f"{auto[0]}.enabled=auto looks at the repetition rate, and eval.repetition.prompts is "
            "null; give prompts, or set it to true or false"
        )


def needed(folder: Path, *, stage: str, after: str, above: float) -> Decision:
    """Whether a stage runs: the model before it repeats itself in more than `above` of answers."""
    rate = read_json(folder / "eval" / after / "scores.json")["repetition"]["rate"]
    if rate > above:
        reason = f"{after} repeats itself in {rate:.1%} of its answers, more than {above:.1%}"
        return _say(Decision(stage, "runs", reason))
    reason = f"{after} repeats itself in {rate:.1%} of its answers, not more than {above:.1%}"
    return _say(Decision(stage, "skipped", reason))


def no_regression(folder: Path, *, stage: str, before: str) -> Decision:
    """Whether a stage's model is kept: on no benchmark significantly below the model before, and
    its answers not significantly more often endless; paired tests, Holm over them."""
    names = (before, stage)
    entries = {
        name: read_json(folder / "eval" / name / "scores.json")["benchmarks"] for name in names
    }
    deltas = [
        compare(
            *(task, *(_rows(folder, model, f"samples/{task}") for model in names)),
            names=names,
            left_out=left_out({name: own[task] for name, own in entries.items()}, *names),
        )
        for task in entries[stage]
    ]
    deltas.append(
        compare(REPETITION, *(_rows(folder, m, "generations") for m in names), names=names)
    )
    rows = [{"from": before, "to": stage, **row} for row in adjust(deltas)]
    worse = [
        row["task"]
        for row in rows
        if row["p_holm"] < LEVEL and (row["delta"] > 0) == (row["task"] == REPETITION)
    ]
    if worse:
        reason = f"significantly worse than {before} on {', '.join(worse)}"
        return _say(Decision(stage, "set aside", reason, rows))
    return _say(Decision(stage, "kept", f"nowhere significantly worse than {before}", rows))


def write_decisions(folder: Path, decisions: Sequence[Decision]) -> None:
    """decisions.json, where any stage was decided on."""
    if decisions:
        write_json(folder / DECISIONS, [asdict(decision) for decision in decisions])
    else:
        (folder / DECISIONS).unlink(missing_ok=True)  # of a preset that let some be


def _rows(folder: Path, model: str, name: str) -> list[dict[str, Any]]:
    return read_jsonl(folder / "eval" / model / f"{name}.jsonl")


def _say(decision: Decision) -> Decision:
    log.info("%s: %s (%s)", decision.stage, decision.verdict, decision.reason)
    return decision
