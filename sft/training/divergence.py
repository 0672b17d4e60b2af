"""Divergence checks: bad steps, collapsing preferences and looping answers.

Each step is checked before it changes a weight. A step with a loss or gradient that is not finite,
a jump of the loss, or repeated zero gradients is recorded with its rows in bad_steps.jsonl, and
stops the run or is skipped (`run.on_bad_step`).
"""

import json
import logging
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import gather_object

from sft.config.sections import RunSection
from sft.errors import UserError
from sft.system.atomic_files import write_text, writing
from sft.system.record_hash import unsealed_line

log = logging.getLogger(__name__)

FILE = "bad_steps.jsonl"
PLACE = "place"  # the column with the index of a row in its stage; -1: a filler
WINDOW = 20  # steps of the median loss that a jump is compared with
MIN_STEPS = 5  # steps before the first check for a jump
MIN_LOSS = 0.5  # nats; a loss after a smaller median is compared with this
MAX_ZERO_GRADIENTS = 3  # steps in a row
MAX_SKIPPED = 10  # steps in a row
COLLAPSE_OVER = 10  # steps of the mean change of the chosen answers
MIN_LOOPING = 5  # additional looping answers; fewer are within chance
MAX_TEXT = 500  # characters of a recorded row


@dataclass
class Recent:
    """The recent steps; part of a checkpoint."""

    losses: list[float] = field(default_factory=list)
    chosen: list[float] = field(default_factory=list)  # change since the reference, nats per token
    dead: int = 0
    skipped: int = 0


def step_problem(
    recent: Recent, bounds: RunSection, *, loss: float, norm: float | None, scaled: bool = False
) -> str | None:
    """Return why a step is bad, or None.

    Args:
        loss: mean over all micro-batches and processes.
        norm: gradient norm; None if the engine does not report it.
        scaled: whether a float16 loss scaler handles gradients that are not finite.
    """
    if not math.isfinite(loss):
        return f"the loss is {loss}"
    if norm is not None and not math.isfinite(norm) and not scaled:
        return f"the gradient's norm is {norm}"
    if bounds.spike_factor and len(recent.losses) >= MIN_STEPS:
        usual = max(statistics.median(recent.losses), MIN_LOSS)
        if loss > bounds.spike_factor * usual:
            return (
                f"the loss jumped to {loss:.4g}, {loss / usual:.1f} times the median of the "
                f"{len(recent.losses)} steps before (run.spike_factor={bounds.spike_factor:g})"
            )
    if recent.dead + (norm == 0) >= MAX_ZERO_GRADIENTS:
        return (
            f"the gradient was exactly 0 in {MAX_ZERO_GRADIENTS} steps in a row: the model no "
            "longer learns"
        )
    return None


def collapse_problem(recent: Recent, bounds: RunSection) -> str | None:
    """Return how far the chosen answers have become less likely in DPO, or None."""
    if not bounds.collapse_nats or len(recent.chosen) < COLLAPSE_OVER:
        return None
    change = statistics.fmean(recent.chosen)
    if change > -bounds.collapse_nats:
        return None
    return (
        f"the chosen answers have lost {-change:.2f} nats per token against the reference over the "
        f"last {COLLAPSE_OVER} steps (run.collapse_nats={bounds.collapse_nats:g})"
    )


def loop_problem(rates: Mapping[int, float], bounds: RunSection, *, answers: int) -> str | None:
    """Return how far the rate of looping answers has risen in a stage, or None.

    Args:
        rates: the rate at each step, in order.
        answers: the number of answers of each rate.
    """
    # The rise counts from the lowest rate, since a base model's answers often loop at the start.
    *before, last = rates
    if not bounds.loop_rise or not before:
        return None
    best = min(before, key=rates.__getitem__)
    rise = rates[last] - rates[best]
    if rise < bounds.loop_rise or rise * answers < MIN_LOOPING:
        return None
    return (
        f"{rates[last]:.0%} of short answers repeat themselves without end, {rates[best]:.0%} did "
        f"at step {best} (run.loop_rise={bounds.loop_rise:g})"
    )


class StepWatch:
    """Checks each step of a training run and records bad ones."""

    def __init__(
        self,
        folder: Path,
        *,
        label: str,
        bounds: RunSection,
        describe: Callable[[int], dict[str, Any]],
    ) -> None:
        self.path, self.label = folder / FILE, label
        self.bounds, self.describe = bounds, describe
        self.recent = Recent()
        self.places: list[int] = []

    def begin(self, batches: Sequence[dict[str, Any]]) -> None:
        """Remember the rows of the step."""
        self.places = [int(p) for batch in batches for p in batch[PLACE] if p >= 0]

    def should_skip(
        self, *, step: int, loss: float, norm: float | None, chosen: float | None, scaled: bool
    ) -> bool:
        """Return whether to skip the step; all processes call it with the same numbers.

        Raises:
            UserError: the step is bad and `run.on_bad_step` is stop, or too many were skipped.
        """
        reason = step_problem(self.recent, self.bounds, loss=loss, norm=norm, scaled=scaled)
        self.recent.dead = self.recent.dead + 1 if norm == 0 else 0
        final = False
        if reason is None:
            self.recent.losses = [*self.recent.losses, loss][-WINDOW:]
            if chosen is not None:
                self.recent.chosen = [*self.recent.chosen, chosen][-COLLAPSE_OVER:]
            reason = collapse_problem(self.recent, self.bounds)
            final = reason is not None  # the weights are at fault: skipping the step does not help
        if reason is None:
            self.recent.skipped = 0
            return False
        self.recent.skipped += 1
        too_many = self.recent.skipped >= MAX_SKIPPED
        final = final or too_many
        stop = final or self.bounds.on_bad_step != "skip"
        action = "stopped" if stop else "skipped"
        # Strings, since JSON has no NaN.
        self._record(step, reason, action=action, loss=str(loss), grad_norm=str(norm))
        if not stop:
            log.warning("%s: step %d is skipped: %s", self.label, step, reason)
            return True
        again = f" ({MAX_SKIPPED} steps in a row were skipped)" if too_many else ""
        others = ", correct the rows, or set run.on_bad_step=skip (--rerun)"
        raise UserError(
            f"{self.label}: step {step}: {reason}{again}; its rows are in {self.path}, the last "
            f"good checkpoint is kept: lower learning_rate{'' if final else others}"
        )

    def check_loops(self, measures: Sequence[dict[str, Any]], folder: Path, *, stops: bool) -> None:
        """Check the last measure of a stage for a rise of looping answers, in all processes.

        Args:
            measures: rows of `{"step", "repetition"}`, all of the stage.
            folder: has the answers of the last measure.
            stops: whether a rise stops the stage if `run.on_bad_step` is stop.

        Raises:
            UserError: answers begin to loop, and that stops the stage.
        """
        rates = {row["step"]: row["repetition"]["rate"] for row in measures}
        reason = loop_problem(rates, self.bounds, answers=measures[-1]["repetition"]["n"])
        if reason is None:
            return
        step, stop = list(rates)[-1], stops and self.bounds.on_bad_step != "skip"
        self._record(step, reason, action="stopped" if stop else "warned", answers=str(folder))
        found = f"{self.label}: step {step}: {reason}; the answers are in {folder}"
        if stop:
            raise UserError(
                f"{found}, the last good checkpoint is kept: lower learning_rate, or continue "
                "with run.loop_rise=0"
            )
        log.warning("%s: lower learning_rate if the rate stays high", found)

    def resume(self, recent: dict[str, Any], *, step: int) -> None:
        """Continue after `step` with the state of a checkpoint; remove later records."""
        self.recent = Recent(**recent)
        if PartialState().is_main_process and self.path.is_file():
            lines = self.path.read_text("utf-8", "replace").splitlines(keepends=True)
            write_text(self.path, "".join(line for line in lines if _step(line) <= step))

    def _record(self, step: int, reason: str, *, action: str, **facts: str) -> None:
        rows = [self.describe(place) for place in gather_object(self.places)]
        entry = {"step": step, "reason": reason, **facts, "action": action, "rows": rows}
        if PartialState().is_main_process:
            with writing(self.path), self.path.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(entry, ensure_ascii=False) + "\n")


def _step(line: str) -> float:
    """Return the step of a recorded line; infinity if the line is cut off or damaged."""
    step = (unsealed_line(line, "step") or {}).get("step")
    return step if isinstance(step, int | float) else math.inf


def row_facts(row: dict[str, Any], *, place: int, tokenizer: Any) -> dict[str, Any]:
    """Return the place, origin, length and text of a row for the record."""
    texts = {name: row[name] for name in row if name.endswith("_ids")}
    return {
        "row": place,
        "origin": row.get("origin"),
        "tokens": sum(len(ids) for ids in texts.values()),
        "text": {name[:-4]: tokenizer.decode(ids)[:MAX_TEXT] for name, ids in texts.items()},
    }


def with_places(
    examples: Sequence[dict[str, Any]], *, collate: Callable[[Sequence[dict[str, Any]]], Any]
) -> dict[str, Any]:
    """Return the micro-batch of `collate` with the places of its rows."""
    batch: dict[str, Any] = collate(examples)
    return batch | {PLACE: torch.tensor([example[PLACE] for example in examples])}
