"""The model in training, measured at the end of each epoch by a callable that this room is handed.

Training never knows: what it would have done next, it does, to the bit. A row an epoch goes into
`epochs.jsonl` of the stage's folder, when what stands behind it is on the disk. A kill may leave
rows ahead of the checkpoint that training goes on from, or that checkpoint without its row: at the
start the former are dropped, to be measured again, and the latter is measured.
"""

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils.memory import clear_device_cache
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from sft.guarded import GuardedTrainer
from sft.signals import leaving_on_signal
from sft.storage import read_jsonl, write_jsonl

FILE = "epochs.jsonl"
FOLDER = "epochs"


@dataclass(frozen=True)
class EpochEnd:
    """Where a stage stands when it is measured: behind `step`, with `epoch` epochs done (no whole
    number where training ends within one); `folder` takes what the row rests on."""

    stage: str
    epoch: float
    step: int
    folder: Path


# Given the model and where it stands, returns the row's content. One process calls it; the model
# comes without a distributed wrapper, and is to be read only.
AfterEpoch = Callable[[Any, EpochEnd], dict[str, Any]]


class EpochMeasures(TrainerCallback):
    """Calls `measure` where an epoch ends, and where training does; all processes have one.

    The main process measures and the others wait for it. A signal leaves the measure where it is:
    the trainer saves a checkpoint and ends, and the next start measures first.
    """

    def __init__(
        self, trainer: GuardedTrainer, measure: AfterEpoch, *, folder: Path, label: str
    ) -> None:
        self.trainer, self.measure = trainer, measure
        self.folder, self.label = folder, label

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        path = self.folder / FILE
        if state.is_world_process_zero and path.is_file():
            write_jsonl(path, [row for row in read_rows(path) if row["step"] <= state.global_step])
        if state.global_step:
            self._measure_if_due(state, control)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if not self.trainer.stop_signal:  # else this is where training was told to end
            self._measure_if_due(state, control)

    def _measure_if_due(self, state: TrainerState, control: TrainerControl) -> None:
        epoch = float(state.epoch or 0)
        if not (epoch.is_integer() or state.global_step >= state.max_steps):
            return
        began = time.monotonic()
        if state.is_world_process_zero:
            self._measure(epoch, state.global_step)
        # Here the others wait.
        self.trainer.share_signals()
        if self.trainer.stop_signal:
            control.should_save = control.should_training_stop = True
        self.trainer.meter.leave_out(time.monotonic() - began)

    def _measure(self, epoch: float, step: int) -> None:
        path = self.folder / FILE
        rows = read_rows(path)
        if any(row["step"] == step for row in rows):
            return
        place = self.folder / FOLDER / f"{epoch:g}"
        place.mkdir(parents=True, exist_ok=True)
        model: Any = self.trainer.model
        with untouched(model), leaving_on_signal():
            found = self.measure(model, EpochEnd(self.label, epoch, step, place))
            write_jsonl(path, [*rows, {"epoch": epoch, "step": step} | found])
        clear_device_cache()


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of an epochs.jsonl, which may not be there."""
    return read_jsonl(path) if path.is_file() else []


@contextmanager
def untouched(model: torch.nn.Module) -> Iterator[None]:
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
