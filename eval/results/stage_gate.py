"""`enabled: auto`: run a stage where it is needed, and keep its model unless a score falls.

DeepSeek LLM (arXiv 2401.02954, section 4) trains its 67B model in one stage of SFT, since it hardly
repeats itself, and its 7B model in two. Both decisions are made from stored samples.
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

LEVEL = 0.05  # significance, after Holm's correction over the comparisons of a decision


@dataclass(frozen=True)
class Decision:
    """A decision about a stage; `evidence` has the form of `deltas` in results.json."""

    stage: str
    verdict: Literal["runs", "skipped", "kept", "set aside"]
    reason: str
    evidence: Sequence[dict[str, Any]] = ()


def check_gates(preset: Preset) -> None:
    """Check that what decides on stages with `enabled: auto` is measured."""
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


def stage_needed(folder: Path, *, stage: str, after: str, above: float) -> Decision:
    """Decide that a stage runs if the model `after` repeats itself in a share over `above`."""
    rate = read_json(folder / "eval" / after / "scores.json")["repetition"]["rate"]
    compared = "more" if rate > above else "not more"
    reason = f"{after} repeats itself in {rate:.1%} of its answers, {compared} than {above:.1%}"
    return _logged(Decision(stage, "runs" if rate > above else "skipped", reason))


def no_regression(folder: Path, *, stage: str, before: str) -> Decision:
    """Decide that a stage's model is kept unless it is significantly worse than the one `before`.

    Worse is a lower benchmark score or a higher repetition rate, in paired tests with Holm's
    correction.
    """
    names, measured = (before, stage), folder / "eval"
    entries = {name: read_json(measured / name / "scores.json")["benchmarks"] for name in names}
    deltas = [
        compare(
            *(task, *(read_jsonl(measured / name / "samples" / f"{task}.jsonl") for name in names)),
            names=names,
            left_out=left_out({name: own[task] for name, own in entries.items()}, *names),
        )
        for task in entries[stage]
    ]
    answers = [read_jsonl(measured / name / "generations.jsonl") for name in names]
    deltas.append(compare(REPETITION, *answers, names=names))
    rows = [{"from": before, "to": stage, **row} for row in adjust(deltas)]
    # A lower score is worse, and so is a higher repetition rate.
    worse = [
        row["task"]
        for row in rows
        if row["p_holm"] < LEVEL and (row["delta"] > 0) == (row["task"] == REPETITION)
    ]
    if worse:
        reason = f"significantly worse than {before} on {', '.join(worse)}"
        return _logged(Decision(stage, "set aside", reason, rows))
    return _logged(Decision(stage, "kept", f"nowhere significantly worse than {before}", rows))


def write_decisions(folder: Path, decisions: Sequence[Decision]) -> None:
    """Write decisions.json, or remove it where no stage is decided on."""
    if decisions:
        write_json(folder / DECISIONS, [asdict(decision) for decision in decisions])
    else:
        (folder / DECISIONS).unlink(missing_ok=True)  # from a preset with `enabled: auto`


def _logged(decision: Decision) -> Decision:
    log.info("%s: %s (%s)", decision.stage, decision.verdict, decision.reason)
    return decision
