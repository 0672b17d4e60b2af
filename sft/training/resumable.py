"""Trainer mixin: step checks, signals, and checkpoints that resume bit-identically.

Signals end training after a step. Checkpoints are committed atomically, with the state that
transformers does not save: sums that are not logged yet.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from sft.distributed.sharding import allow_cpu_shards, ignore_output_view_warning
from sft.distributed.watchdog import step_begins, step_ends
from sft.run.checkpoint import commit_checkpoint, draft_folder
from sft.system.atomic_files import read_json, remove, write_json, writing
from sft.system.signals import Interrupted, at_next_step, requested
from sft.training.divergence import StepWatch
from sft.training.throughput import Meter


class GuardedTrainer(Trainer):
    """Mixin for TRL's trainers, listed before them."""

    watch: StepWatch | None = None
    meter: Meter
    stop_signal = 0  # the signal that all processes agree on
    _metrics: Any  # of trl: values of steps that are not logged yet

    def create_accelerator_and_postprocess(self) -> None:
        """Extend the method to shards on CPUs."""
        allow_cpu_shards()
        super().create_accelerator_and_postprocess()

    def train_to_the_end(self, checkpoint: Path | None) -> None:
        """Train, from a checkpoint if there is one.

        Raises:
            Interrupted: a signal ended training, after a checkpoint was saved.
        """
        if isinstance(self.model, FSDPModule):  # loaded in shards, so there is nothing to wrap
            self.accelerator.state.fsdp_plugin.auto_wrap_policy = None
        self.add_callback(_StepEnds(self, checkpoint))
        with at_next_step(), ignore_output_view_warning():
            self.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        if signum := self.stop_signal or requested():
            raise Interrupted(signum, saved=f" at step {self.state.global_step}, saved")

    def _run_epoch(self, *args: Any, **given: Any) -> None:
        # transformers checks for the end after a step only, so a run that resumes from the
        # checkpoint of its last step would train another. A signal may also precede the first step.
        if self.stop_signal or self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
        else:
            super()._run_epoch(*args, **given)  # type: ignore[no-untyped-call]

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], torch.Tensor | int | None]:
        """Extend the method to record the state before the step."""
        step_begins(self.state.global_step + 1)
        samples, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        if self.watch is not None:
            self.watch.begin(samples)
        self._loss_before = self._tr_loss.clone()
        self._logged_before = {name: len(values) for name, values in self._train_metrics().items()}
        return samples, items

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        """Check the step; transformers calls this between the backward pass and the optimizer."""
        norm: Any = super()._get_grad_norm(model, grad_norm=grad_norm)  # type: ignore[no-untyped-call]
        if isinstance(norm, DTensor):
            norm = norm.full_tensor()
        # One collective for the loss and for signals, which may reach only some processes.
        mine = torch.stack(
            [self._tr_loss - self._loss_before, self._tr_loss.new_tensor(requested())]
        )
        gathered = self.accelerator.gather(mine).view(-1, 2)
        self.stop_signal = int(gathered[:, 1].max())
        if self.watch is not None and self.watch.should_skip(
            step=self.state.global_step + 1,
            loss=gathered[:, 0].mean().item(),
            norm=None if norm is None else float(norm),  # DeepSpeed may not have computed it
            chosen=self.chosen_change(),
            scaled=self.accelerator.scaler is not None,
        ):
            model.zero_grad()  # without gradients the optimizer changes no weights or moments
            self._tr_loss.copy_(self._loss_before)
            self._globalstep_last_logged += 1  # so that logged means leave this step out
            for name, values in self._train_metrics().items():
                del values[self._logged_before.get(name, 0) :]
        return norm

    def share_signals(self) -> None:
        """Share a signal of any process with all of them; call it between steps."""
        mine = torch.tensor([requested()], device=self.args.device)
        self.stop_signal = int(self.accelerator.gather(mine).max())

    def chosen_change(self) -> float | None:
        """Return the change of the chosen answers since the reference in DPO, nats per token."""
        return None

    def _train_metrics(self) -> dict[str, list[float]]:
        metrics: dict[str, list[float]] = self._metrics["train"]
        return metrics

    def _get_output_dir(self, trial: Any) -> str:
        """Return the folder for drafts of checkpoints, where transformers also removes old ones."""
        return str(draft_folder(Path(str(self.args.output_dir))))

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        folder = Path(str(self.args.output_dir))
        draft = draft_folder(folder) / f"checkpoint-{self.state.global_step}"
        with writing(folder / draft.name):
            if self.args.should_save and draft.parent.exists():
                remove(draft.parent)
            self.accelerator.wait_for_everyone()
            super()._save_checkpoint(model, trial)
            write_json(draft / self._unlogged_name(), self._unlogged())
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                commit_checkpoint(draft, folder, keep=self.args.save_total_limit)
        self.accelerator.wait_for_everyone()

    def _unlogged_name(self) -> str:
        return f"unlogged-{self.args.process_index}.json"

    def _unlogged(self) -> dict[str, Any]:
        return {
            "seconds": self.meter.training_seconds(),
            "loss": self._tr_loss.item(),
            "last_logged": self._globalstep_last_logged,
            "metrics": dict(self._train_metrics()),
            "recent": None if self.watch is None else vars(self.watch.recent),
        }

    def restore_unlogged(self, checkpoint: Path) -> None:
        """Restore the sums of a checkpoint, which transformers resets."""
        kept = read_json(checkpoint / self._unlogged_name())
        self.meter.earlier = kept.get("seconds", 0.0)  # missing in checkpoints of older versions
        self._tr_loss.fill_(kept["loss"])
        self._globalstep_last_logged = kept["last_logged"]
        for name, values in kept["metrics"].items():
            self._train_metrics()[name] = values
        if self.watch is not None and kept["recent"] is not None:
            self.watch.resume(kept["recent"], step=self.state.global_step)


class _StepEnds(TrainerCallback):
    """Ends training with a checkpoint after the step in which a signal arrived."""

    def __init__(self, trainer: GuardedTrainer, checkpoint: Path | None) -> None:
        self.trainer = trainer
        self.checkpoint = checkpoint

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if self.checkpoint is not None:
            self.trainer.restore_unlogged(self.checkpoint)
        elif self.trainer.watch is not None:
            self.trainer.watch.resume({}, step=0)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        step_ends()
        if self.trainer.stop_signal:
            control.should_save = control.should_training_stop = True
