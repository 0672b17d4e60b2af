"""Evaluation callbacks that run during training; here at the end of each epoch.

RNG state and modes are restored, so training is bit-identical with and without them. Each measure
appends a row to `epochs.jsonl` in the stage's folder after its samples are on the disk. A kill can
leave rows newer than the checkpoint that training resumes from, or that checkpoint without a row:
when training begins, the former are dropped and measured again, and the latter is measured.
`sft.training.loop_callback` holds the callback that runs between epochs.
"""

import logging
import math
import random
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils.memory import clear_device_cache
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from sft.context import EvalPoint, InTraining
from sft.distributed.collectives import run_on_main
from sft.distributed.fsdp_forward import synchronized_forwards
from sft.distributed.sharding import sharded
from sft.system.atomic_files import read_file, write_jsonl
from sft.system.seal import sealed, unsealed_line
from sft.system.signals import interruptible
from sft.training.resumable import GuardedTrainer

log = logging.getLogger(__name__)

FILE = "epochs.jsonl"
FOLDER = "epochs"


class OutOfTime(Exception):
    """A measure took longer than its time limit."""


class EvalCallback(TrainerCallback, ABC):
    """Call `measure` at the steps that a subclass schedules; every process holds one.

    The main process measures; the others wait for it, or take part in its forward passes with
    their shards of the weights. A signal interrupts the measure: the trainer saves a checkpoint
    and ends, and the next start measures first.
    """

    file: str  # takes the rows

    def __init__(
        self, trainer: GuardedTrainer, measure: InTraining, *, folder: Path, label: str
    ) -> None:
        self.trainer, self.measure = trainer, measure
        self.folder, self.label = folder, label

    @abstractmethod
    def due(self, state: TrainerState) -> bool:
        """Return whether the model is measured at this step."""

    @abstractmethod
    def place(self, state: TrainerState) -> Path:
        """Return the folder for the samples of the measure at this step."""

    def seconds(self, state: TrainerState) -> float:
        """Return the time limit of the measure."""
        return math.inf

    def judge(self, step: int) -> None:
        """Act on the new row of this step; called in all processes."""

    def rows(self) -> list[dict[str, Any]]:
        """Return the rows so far; call it in one process."""
        return read_rows(self.folder / self.file)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        path = self.folder / self.file
        if state.is_world_process_zero and path.is_file():
            _write_rows(path, [row for row in self.rows() if row["step"] <= state.global_step])
        self.measure_if_due(state, control)

    def measure_if_due(self, state: TrainerState, control: TrainerControl) -> None:
        """Measure if it is due; call it between two steps in all processes."""
        if not self.due(state):
            return
        began = time.monotonic()
        model: Any = self.trainer.model
        # The other processes wait in `run_on_main`, or run dummy passes there.
        with synchronized_forwards(model), preserve_rng_and_modes(model):
            fresh = run_on_main(lambda: self._measure(state))
        self.trainer.share_signals()
        if self.trainer.stop_signal:
            control.should_save = control.should_training_stop = True
        self.trainer.meter.leave_out(time.monotonic() - began)
        if fresh:
            self.judge(state.global_step)

    def _measure(self, state: TrainerState) -> bool:
        """Measure and return whether a row was added."""
        step, rows = state.global_step, self.rows()
        if any(row["step"] == step for row in rows):
            return False
        epoch, place = float(state.epoch or 0), self.place(state)
        place.mkdir(parents=True, exist_ok=True)
        with interruptible(at_once=not sharded()):
            moment = EvalPoint(self.label, epoch, step, place, self.seconds(state))
            found = self.measure(self.trainer.model, moment)
            _write_rows(self.folder / self.file, [*rows, {"epoch": epoch, "step": step} | found])
        clear_device_cache()
        return len(self.rows()) > len(rows)


class EpochEvalCallback(EvalCallback):
    """Measures at the end of each epoch and of training."""

    file = FILE

    def due(self, state: TrainerState) -> bool:
        whole = float(state.epoch or 0).is_integer()
        return state.global_step > 0 and (whole or state.global_step >= state.max_steps)

    def place(self, state: TrainerState) -> Path:
        return self.folder / FOLDER / f"{float(state.epoch or 0):g}"

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if not self.trainer.stop_signal:  # upstream ends the epoch early after a signal
            self.measure_if_due(state, control)


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
    own = device.get_rng_state() if device is not None else None
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
        if device is not None and own is not None:
            device.set_rng_state(own)
        for module, training in modes:
            module.training = training
