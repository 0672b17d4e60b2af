"""Answers that begin to loop while a stage trains, seen by a callable that this room is handed.

It is called before the first step and a few times at equal distances, and says which share of some
short answers repeats itself without end. `sft.training.divergence` judges how far that has risen.
In SFT a rise is only told: math and code raise the rate, as the paper found, and what comes after
lowers it.

All looks of a stage together take at most a share of its time (`run.loop_budget`): one that takes
longer is given up, and what is left out is said.
"""

import logging
import math
import time
from pathlib import Path
from typing import Any

from transformers import TrainerControl, TrainerState, TrainingArguments

from sft.context import InTraining
from sft.distributed.collectives import run_on_main
from sft.distributed.heartbeat import step_ends
from sft.training.divergence import StepWatch
from sft.training.eval_callbacks import EvalCallback, OutOfTime
from sft.training.resumable import GuardedTrainer

log = logging.getLogger(__name__)

FILE = "loops.jsonl"
FOLDER = "loops"


def look_steps(max_steps: int, *, checks: int) -> list[int]:
    """0, and what divides a stage into `checks` + 1 parts: its end is measured by whoever comes
    after."""
    return sorted({max_steps * part // (checks + 1) for part in range(checks + 1)})


class LoopProbeCallback(EvalCallback):
    """Rows of {"epoch", "step", "repetition"}, in which `repetition` is a rate with its `n`."""

    file = FILE
    spent = last = 0.0  # seconds of all looks of this start, and of the last of them
    told = False

    def __init__(
        self,
        trainer: GuardedTrainer,
        measure: InTraining,
        *,
        folder: Path,
        label: str,
        watch: StepWatch,
        stops: bool,
    ) -> None:
        super().__init__(trainer, measure, folder=folder, label=label)
        self.watch, self.stops = watch, stops

    def due(self, state: TrainerState) -> bool:
        checks = self.watch.limits.loop_checks
        return state.global_step in look_steps(state.max_steps, checks=checks)

    def place(self, state: TrainerState) -> Path:
        return self.folder / FOLDER / str(state.global_step)

    def seconds(self, state: TrainerState) -> float:
        """What is left of the looks' share of the stage's time, as training goes so far. The look
        before the first step, whose answers were mostly measured before, has no limit."""
        share, step = self.watch.limits.loop_budget, state.global_step
        if not share or not step:
            return math.inf
        whole = self.trainer.meter.training_seconds() / step * state.max_steps
        return share * whole - self.spent

    def _measure(self, state: TrainerState) -> bool:
        left = self.seconds(state)
        began = time.monotonic()
        try:
            if left <= self.last:
                raise OutOfTime
            fresh = super()._measure(state)
            self.last = time.monotonic() - began
            return fresh
        except OutOfTime:
            self._tell(state.global_step)
            return False
        finally:
            self.spent += time.monotonic() - began

    def _tell(self, step: int) -> None:
        if not self.told:
            log.warning(
                "%s: step %d: no look at whether answers loop, which would take more than %s of "
                "the stage's time (run.loop_budget); the measure behind the stage looks",
                *(self.label, step, f"{self.watch.limits.loop_budget:.0%}"),
            )
        self.told = True

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        step_ends()  # what follows is no part of the step, which would seem to hang
        if not self.trainer.stop_signal:
            self.measure_if_due(state, control)

    def judge(self, step: int) -> None:
        found = {row["step"]: row["repetition"] for row in run_on_main(self.rows)}
        self.watch.judge_loops(
            {at: repetition["rate"] for at, repetition in found.items()},
            answers=found[step]["n"],
            folder=self.folder / FOLDER / str(step),
            stops=self.stops,
        )
