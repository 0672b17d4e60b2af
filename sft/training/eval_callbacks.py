"""Evaluation callback that measures a model while it trains, on a schedule.

RNG state and modes are restored, so training is bit-identical with and without it. Each measure
appends a row to a file in the stage's folder after its samples are on the disk. A kill can leave
rows newer than the checkpoint that training resumes from, or that checkpoint without a row: when
training begins, the former are dropped and measured again, and the latter is measured.
"""

import logging
import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from accelerate.utils.memory import clear_device_cache
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from sft.context import EvalPoint, TrainingEval
from sft.distributed.collectives import run_on_main
from sft.distributed.fsdp_forward import synchronized_forwards
from sft.distributed.sharding import sharded
from sft.distributed.watchdog import step_ends
from sft.system.atomic_files import read_file, write_jsonl
from sft.system.record_hash import sealed, unsealed_line
from sft.system.signals import run_until_signal
from sft.training.resumable import GuardedTrainer

log = logging.getLogger(__name__)

EPOCHS_FILE, LOOPS_FILE = "epochs.jsonl", "loops.jsonl"


class OutOfTime(Exception):
    """A measure took longer than its time limit."""


@dataclass(frozen=True)
class Schedule:
    """When a model is measured, and where the results go.

    Args:
        file: receives the rows; the folder of its stem receives the samples.
        unit: whether `due` is evaluated at the end of each epoch or of each step.
        due: returns whether the model is measured now.
    """

    file: str
    unit: Literal["epoch", "step"]
    due: Callable[[TrainerState], bool]

    @property
    def name(self) -> str:
        return Path(self.file).stem

    def samples(self, state: TrainerState) -> Path:
        """Return the folder of the samples of one measure, relative to the stage's."""
        epoch = f"{float(state.epoch or 0):g}"
        return Path(self.name, str(state.global_step) if self.unit == "step" else epoch)


def _epoch_ended(state: TrainerState) -> bool:
    epoch_is_complete = float(state.epoch or 0).is_integer()
    return state.global_step > 0 and (epoch_is_complete or state.global_step >= state.max_steps)


EPOCH_SCHEDULE = Schedule(EPOCHS_FILE, "epoch", _epoch_ended)


def loop_schedule(checks: int) -> Schedule:
    """Return the schedule of `run.loop_checks`."""
    return Schedule(
        LOOPS_FILE,
        "step",
        lambda state: state.global_step in loop_check_steps(state.max_steps, checks=checks),
    )


def loop_check_steps(max_steps: int, *, checks: int) -> list[int]:
    """Return step 0 and the steps that divide a stage into `checks` + 1 equal parts.

    The last step is left out: the finished model is measured after its stage.
    """
    return sorted({max_steps * part // (checks + 1) for part in range(checks + 1)})


class EvalCallback(TrainerCallback):
    """Call `measure` on a schedule; every process holds a callback.

    The main process measures; the others wait for it, or take part in its forward passes with
    their shards of the weights. A signal interrupts the measure: the trainer saves a checkpoint
    and ends, and the next start measures first.

    Args:
        budget: largest share of the stage's time that the measures may take; 0: no limit. A measure
            that takes longer is canceled.
        check: called in all processes after a measure with all rows and the new samples' folder.
    """

    def __init__(
        self,
        trainer: GuardedTrainer,
        measure: TrainingEval,
        schedule: Schedule,
        *,
        folder: Path,
        label: str,
        budget: float = 0.0,
        check: Callable[[Sequence[dict[str, Any]], Path], None] | None = None,
    ) -> None:
        self.trainer, self.measure, self.schedule = trainer, measure, schedule
        self.folder, self.label, self.budget, self.check = folder, label, budget, check
        self.path = folder / schedule.file
        self.spent = self.last = 0.0  # seconds of all measures of this start, and of the last one
        self.warned = False

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if state.is_world_process_zero and self.path.is_file():
            rows = read_rows(self.path)
            _write_rows(self.path, [row for row in rows if row["step"] <= state.global_step])
        self._measure_if_due(state, control)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if self.schedule.unit == "step":
            step_ends()  # the heartbeat would otherwise report the measure as a step that hangs
            self._measure_if_due(state, control)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if self.schedule.unit == "epoch":
            self._measure_if_due(state, control)

    def _measure_if_due(self, state: TrainerState, control: TrainerControl) -> None:
        # After a signal transformers ends the epoch early, which must not look like its end.
        if self.trainer.stop_signal or not self.schedule.due(state):
            return
        began = time.monotonic()
        model: Any = self.trainer.model
        # The other processes wait in `run_on_main`, or run dummy passes there.
        with synchronized_forwards(model), preserve_rng_and_modes(model):
            rows = run_on_main(lambda: self._measure_in_time(state))
        self.trainer.share_signals()
        if self.trainer.stop_signal:
            control.should_save = control.should_training_stop = True
        self.trainer.meter.leave_out(time.monotonic() - began)
        if rows and self.check is not None:
            self.check(rows, self.folder / self.schedule.samples(state))

    def _measure_in_time(self, state: TrainerState) -> list[dict[str, Any]]:
        """Measure within the budget and return all rows, or none if none was added."""
        seconds = self._seconds_left(state)
        began = time.monotonic()
        try:
            if seconds <= self.last:
                raise OutOfTime
            rows = self._measure(state, seconds)
            self.last = time.monotonic() - began
            return rows
        except OutOfTime:
            if not self.warned:
                log.warning(
                    "%s: step %d: %s are not measured, which would take more than %s of the "
                    "stage's time (run.loop_budget); the finished stage is measured",
                    *(self.label, state.global_step, self.schedule.name, f"{self.budget:.0%}"),
                )
            self.warned = True
            return []
        finally:
            self.spent += time.monotonic() - began

    def _seconds_left(self, state: TrainerState) -> float:
        """Return what is left of the time budget, extrapolated from the steps so far."""
        # The measure before the first step has no limit: it mostly reuses stored answers.
        if not self.budget or not state.global_step:
            return math.inf
        seconds_per_step = self.trainer.meter.training_seconds() / state.global_step
        return self.budget * seconds_per_step * state.max_steps - self.spent

    def _measure(self, state: TrainerState, seconds: float) -> list[dict[str, Any]]:
        step, rows = state.global_step, read_rows(self.path)
        if any(row["step"] == step for row in rows):
            return []
        epoch, samples = float(state.epoch or 0), self.folder / self.schedule.samples(state)
        samples.mkdir(parents=True, exist_ok=True)
        point = EvalPoint(self.label, epoch, step, samples, seconds)

        def measure() -> None:
            found = self.measure(self.trainer.model, point)
            _write_rows(self.path, [*rows, {"epoch": epoch, "step": step} | found])

        run_until_signal(measure, at_once=not sharded())
        clear_device_cache()
        after = read_rows(self.path)  # without a new row if a signal ended the block
        return after if len(after) > len(rows) else []


def _write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    write_jsonl(path, [sealed(row) for row in rows])


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a file of measures; damaged ones are skipped with a warning."""
    rows = []
    for line in read_file(path).splitlines() if path.is_file() else []:
        row = unsealed_line(line, "epoch", "step")
        if row is None:
            log.warning("%s is damaged; a row of it is left out", path)
        else:
            rows.append(row)
    return rows


@contextmanager
def preserve_rng_and_modes(model: torch.nn.Module) -> Iterator[None]:
    """Restore the training mode of every module and the state of every random number generator."""
    modes = [(module, module.training) for module in model.modules()]
    device = {"cuda": torch.cuda, "mps": torch.mps}.get(next(model.parameters()).device.type)
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    device_state = device.get_rng_state() if device is not None else None
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
        if device is not None and device_state is not None:
            device.set_rng_state(device_state)
        for module, training in modes:
            module.training = training
