"""Evaluation callback that probes for repetition loops while a stage trains.

The probe runs before the first step and at a few evenly spaced steps, and returns the share of some
short answers that repeat endlessly. `sft.training.divergence` judges how far that share has risen.
In SFT a rise is only logged: math and code raise the rate, as DeepSeek LLM (arXiv 2401.02954)
reports, and later stages lower it.

All probes of a stage together take at most a share of its time (`run.loop_budget`): a probe that
takes longer is cancelled, and a warning reports it.
"""

import logging
import math
import time
from pathlib import Path
from typing import Any

from transformers import TrainerControl, TrainerState, TrainingArguments

from sft.context import InTraining
from sft.distributed.collectives import run_on_main
from sft.distributed.watchdog import step_ends
from sft.training.divergence import StepWatch
from sft.training.eval_callbacks import EvalCallback, OutOfTime
from sft.training.resumable import GuardedTrainer

log = logging.getLogger(__name__)

FILE = "loops.jsonl"
FOLDER = "loops"


def look_steps(max_steps: int, *, checks: int) -> list[int]:
    """Return step 0 and the steps that divide a stage into `checks` + 1 equal parts.

    The last step is left out: the finished model is measured after its stage.
    """
    return sorted({max_steps * part // (checks + 1) for part in range(checks + 1)})


class LoopProbeCallback(EvalCallback):
    """Write rows of `{"epoch", "step", "repetition"}`; the last holds a rate and its `n`."""

    file = FILE
    spent = last = 0.0  # seconds of all probes of this start, and of the last one
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
        """Return what is left of the time budget, extrapolated from the steps so far.

        The probe before the first step has no limit: it mostly reuses stored answers.
        """
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
        step_ends()  # the heartbeat would otherwise count the probe as a step that hangs
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
