"""Numbers that go wrong: every step is looked at before it changes a weight.

A step whose loss or gradient is not finite, whose loss jumps, or whose gradient is dead is put on
record with its rows, and then stops the run or is skipped, as `run.on_bad_step` says. So is a model
whose answers begin to loop (`sft.training.eval_callbacks`), which stops the run or is warned of.
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
from sft.system.seal import unsealed_line

log = logging.getLogger(__name__)

FILE = "bad_steps.jsonl"
PLACE = "place"  # the column that numbers a stage's rows; -1 fills up the last step
WINDOW = 20  # steps whose median loss a jump is measured against
ENOUGH = 5  # steps before which no jump is seen
FLOOR = 0.5  # nats: below, a loss is small whatever it was before
DEAD = 3  # steps in a row without any gradient
SKIPS = 10  # steps in a row that may be skipped
COLLAPSE_OVER = 10  # steps that the mean change of the chosen answers is taken over
LOOPS = 5  # answers more that loop: fewer are chance
TEXT = 500  # characters of a row on record


@dataclass
class Recent:
    """The steps just before, which a checkpoint keeps."""

    losses: list[float] = field(default_factory=list)
    chosen: list[float] = field(default_factory=list)  # change since the reference, nats per token
    dead: int = 0
    skipped: int = 0


def verdict(
    recent: Recent, bounds: RunSection, *, loss: float, norm: float | None, scaled: bool = False
) -> str | None:
    """What is wrong with a step, in words, or None.

    Args:
        loss: of the whole step, over all processes.
        norm: of its gradient; None where the engine does not say it.
        scaled: a float16 loss scaler is at work, whose overflowing gradients are its own business.
    """
    if not math.isfinite(loss):
        return f"the loss is {loss}"
    if norm is not None and not math.isfinite(norm) and not scaled:
        return f"the gradient's norm is {norm}"
    if bounds.spike_factor and len(recent.losses) >= ENOUGH:
        usual = max(statistics.median(recent.losses), FLOOR)
        if loss > bounds.spike_factor * usual:
            return (
                f"the loss jumped to {loss:.4g}, {loss / usual:.1f} times the median of the "
                f"{len(recent.losses)} steps before (run.spike_factor={bounds.spike_factor:g})"
            )
    if recent.dead + (norm == 0) >= DEAD:
        return f"the gradient was exactly 0 in {DEAD} steps in a row: nothing is learned any more"
    return None


def collapse(recent: Recent, bounds: RunSection) -> str | None:
    """A preference run that makes the answers it should prefer ever less likely."""
    if not bounds.collapse_nats or len(recent.chosen) < COLLAPSE_OVER:
        return None
    change = statistics.fmean(recent.chosen)
    if change > -bounds.collapse_nats:
        return None
    return (
        f"the chosen answers have lost {-change:.2f} nats per token against the reference over the "
        f"last {COLLAPSE_OVER} steps (run.collapse_nats={bounds.collapse_nats:g})"
    )


def looping(rates: Mapping[int, float], bounds: RunSection, *, answers: int) -> str | None:
    """A stage whose answers begin to repeat themselves, by how far it had come down before: a base
    model's often do from the start.

    Args:
        rates: by the step, in their order, the share of so many `answers` that repeat themselves.
    """
    *before, last = rates
    if not bounds.loop_rise or not before:
        return None
    best = min(before, key=rates.__getitem__)
    rise = rates[last] - rates[best]
    if rise < bounds.loop_rise or rise * answers < LOOPS:
        return None
    return (
        f"{rates[last]:.0%} of short answers repeat themselves without end, {rates[best]:.0%} did "
        f"at step {best} (run.loop_rise={bounds.loop_rise:g})"
    )


class StepWatch:
    """Judges each step of a training run, and keeps the record of those that went wrong."""

    def __init__(
        self,
        folder: Path,
        *,
        label: str,
        bounds: RunSection,
        describe: Callable[[int], dict[str, Any]],
    ) -> None:
        self.path = folder / FILE
        self.label = label
        self.bounds = bounds
        self.describe = describe
        self.recent = Recent()
        self.places: list[int] = []

    def begin(self, batches: Sequence[dict[str, Any]]) -> None:
        """Remember which rows the step is made of."""
        self.places = [int(p) for batch in batches for p in batch[PLACE] if p >= 0]

    def bad(
        self, *, step: int, loss: float, norm: float | None, chosen: float | None, scaled: bool
    ) -> bool:
        """Whether the step is to be skipped; all processes call it with the same numbers.

        Raises:
            UserError: the step is bad and the policy is to stop, or skipping has not helped.
        """
        reason = verdict(self.recent, self.bounds, loss=loss, norm=norm, scaled=scaled)
        self.recent.dead = self.recent.dead + 1 if norm == 0 else 0
        final = False
        if reason is None:
            self._remember(loss, chosen)
            reason = collapse(self.recent, self.bounds)
            final = reason is not None  # a state of the model, which no skipped step mends
        if reason is None:
            self.recent.skipped = 0
            return False
        self.recent.skipped += 1
        final = final or self.recent.skipped >= SKIPS
        stop = final or self.bounds.on_bad_step != "skip"
        # A NaN is no JSON.
        self._record(
            step,
            reason,
            action="stopped" if stop else "skipped",
            loss=str(loss),
            grad_norm=str(norm),
        )
        if not stop:
            log.warning("%s: step %d is skipped: %s", self.label, step, reason)
            return True
        again = f" ({SKIPS} steps in a row were skipped)" if self.recent.skipped >= SKIPS else ""
        ways = "lower learning_rate" if final else "lower learning_rate, mend the rows, or set "
        raise UserError(
            f"{self.label}: step {step}: {reason}{again}; its rows are in {self.path}, the last "
            f"good checkpoint is kept: {ways}{'' if final else 'run.on_bad_step=skip (--rerun)'}"
        )

    def judge_loops(self, measures: Sequence[dict[str, Any]], folder: Path, *, stops: bool) -> None:
        """Check the last measure of a stage for a rise of looping answers, in all processes.

        Args:
            measures: rows of `{"step", "repetition"}`, all of the stage.
            folder: has the answers of the last measure.
            stops: whether a rise stops the stage if `run.on_bad_step` is stop.

        Raises:
            UserError: answers begin to loop, and that stops the stage.
        """
        rates = {row["step"]: row["repetition"]["rate"] for row in measures}
        reason = looping(rates, self.bounds, answers=measures[-1]["repetition"]["n"])
        if reason is None:
            return
        step, stop = list(rates)[-1], stops and self.bounds.on_bad_step != "skip"
        self._record(step, reason, action="stopped" if stop else "warned", answers=str(folder))
        found = f"{self.label}: step {step}: {reason}; they are in {folder}"
        if stop:
            raise UserError(
                f"{found}, the last good checkpoint is kept: lower learning_rate, or let it go on "
                "with run.loop_rise=0"
            )
        log.warning("%s: lower learning_rate if it stays so", found)

    def _remember(self, loss: float, chosen: float | None) -> None:
        self.recent.losses = [*self.recent.losses, loss][-WINDOW:]
        if chosen is not None:
            self.recent.chosen = [*self.recent.chosen, chosen][-COLLAPSE_OVER:]

    def resume(self, recent: dict[str, Any], *, step: int) -> None:
        """Go on behind `step` with what the checkpoint remembers; later records are undone."""
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
    """The step of a recorded line; beyond all steps where a kill cut it short, or it is damaged."""
    step = (unsealed_line(line, "step") or {}).get("step")
    return step if isinstance(step, int | float) else math.inf


def row_facts(row: dict[str, Any], *, place: int, tokenizer: Any) -> dict[str, Any]:
    """A row for the record: its place in the stage, where it came from, and its text."""
    texts = {name: row[name] for name in row if name.endswith("_ids")}
    return {
        "row": place,
        "origin": row.get("origin"),
        "tokens": sum(len(ids) for ids in texts.values()),
        "text": {name[:-4]: tokenizer.decode(ids)[:TEXT] for name, ids in texts.items()},
    }


def with_places(
    examples: Sequence[dict[str, Any]], *, collate: Callable[[Sequence[dict[str, Any]]], Any]
) -> dict[str, Any]:
    """A micro-batch as `collate` makes it, and the places of its rows."""
    batch: dict[str, Any] = collate(examples)
    return batch | {PLACE: torch.tensor([example[PLACE] for example in examples])}
