"""The model in training, measured by a callable that this room is handed: where an epoch ends.

Training never knows: what it would have done next, it does, to the bit. A row a measure goes into
`epochs.jsonl` of the stage's folder, when what stands behind it is on the disk. A kill may leave
rows ahead of the checkpoint that training goes on from, or that checkpoint without its row: at the
start the former are dropped, to be measured again, and the latter is measured.
`sft.training.loop_callback` measures at other moments.
"""

import json
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

from sft.context import InTraining, Moment
from sft.distributed.collectives import run_on_main
from sft.distributed.fsdp_forward import synchronized_forwards
from sft.distributed.sharding import sharded
from sft.system.atomic_files import read_file, write_jsonl
from sft.system.seal import sealed, unsealed
from sft.system.signals import interruptible
from sft.training.resumable import GuardedTrainer

log = logging.getLogger(__name__)

FILE = "epochs.jsonl"
FOLDER = "epochs"


class OutOfTime(Exception):
    """A measure that was given up, since it took longer than it may."""


class EvalCallback(TrainerCallback, ABC):
    """Calls `measure` at the moments that a subclass names; all processes have one.

    The main process measures and the others wait for it, or give it their parts of the weights. A
    signal leaves the measure where it is:
    the trainer saves a checkpoint and ends, and the next start measures first.
    """

    file: str  # takes the rows

    def __init__(
        self, trainer: GuardedTrainer, measure: InTraining, *, folder: Path, label: str
    ) -> None:
        self.trainer, self.measure = trainer, measure
        self.folder, self.label = folder, label

    @abstractmethod
    def due(self, state: TrainerState) -> bool:
        """Whether training stands where it is to be measured."""

    @abstractmethod
    def place(self, state: TrainerState) -> Path:
        """The folder of what is measured now."""

    def seconds(self, state: TrainerState) -> float:
        """How long the measure may take."""
        return math.inf

    def judge(self, step: int) -> None:
        """Called by all processes when there is a row of this step that was not there before."""

    def rows(self) -> list[dict[str, Any]]:
        """What was measured so far; to be read by one process."""
        return read_rows(self.folder / self.file)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        path = self.folder / self.file
        if state.is_world_process_zero and path.is_file():
            _write_rows(path, [row for row in self.rows() if row["step"] <= state.global_step])
        self.measure_if_due(state, control)

    def measure_if_due(self, state: TrainerState, control: TrainerControl) -> None:
        """Between two steps, by all processes."""
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
        """Whether there is a row that was not there before."""
        step, rows = state.global_step, self.rows()
        if any(row["step"] == step for row in rows):
            return False
        epoch, place = float(state.epoch or 0), self.place(state)
        place.mkdir(parents=True, exist_ok=True)
        with interruptible(at_once=not sharded()):
            moment = Moment(self.label, epoch, step, place, self.seconds(state))
            found = self.measure(self.trainer.model, moment)
            _write_rows(self.folder / self.file, [*rows, {"epoch": epoch, "step": step} | found])
        clear_device_cache()
        return len(self.rows()) > len(rows)


class EpochEvalCallback(EvalCallback):
    """Where an epoch ends, and where training does."""

    file = FILE

    def due(self, state: TrainerState) -> bool:
        whole = float(state.epoch or 0).is_integer()
        return state.global_step > 0 and (whole or state.global_step >= state.max_steps)

    def place(self, state: TrainerState) -> Path:
        return self.folder / FOLDER / f"{float(state.epoch or 0):g}"

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if not self.trainer.stop_signal:  # else this is where training was told to end
            self.measure_if_due(state, control)


def _write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    write_jsonl(path, [sealed(row) for row in rows])


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a file of measures, which may not be there; without damaged ones, aloud."""
    rows = []
    for line in read_file(path).splitlines() if path.is_file() else []:
        try:
            row = unsealed(json.loads(line), "epoch", "step")
        except (ValueError, RecursionError):
            row = None
        if row is None:
            log.warning("%s is damaged; a row of it is left out", path)
        else:
            rows.append(row)
    return rows


@contextmanager
def preserve_rng_and_modes(model: torch.nn.Module) -> Iterator[None]:
    """At the end, modules are in the mode that they were in, and so are all generators of random
    numbers that training draws from."""
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
