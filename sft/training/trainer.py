"""SFT trainer on trl's, with packed rows and a loss on answers only.

SFT and DPO share `PackedTrainer`. tests/sft/training/test_trainer.py checks the methods of
transformers and trl that it overrides or calls.
"""

import functools
import logging
import math
from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from datasets import Dataset
from torch.utils.data import RandomSampler
from transformers import PrinterCallback, TrainingArguments
from trl import SFTConfig, SFTTrainer

from sft.config.sections import DpoStage, SftStage
from sft.context import RunContext
from sft.distributed.workers import Workers, forks_by_default
from sft.errors import UserError
from sft.model.placement import Placement
from sft.packing.fillers import FillersLast, fill_last_step
from sft.packing.logprobs import disable_router_logits, log_probs
from sft.run.checkpoint import resume_point
from sft.run.stage_summary import StageFacts, smoothed_losses
from sft.training.divergence import PLACE, StepWatch, row_facts, with_places
from sft.training.eval_callbacks import EPOCH_SCHEDULE, EvalCallback, loop_schedule
from sft.training.lr_schedules import SCHEDULES, long_warmup, transformers_schedule
from sft.training.micro_batches import Layout, collate_chats
from sft.training.optimizer import check_options
from sft.training.progress_log import StageLog
from sft.training.resumable import GuardedTrainer
from sft.training.throughput import Meter, matrix_peak

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingStage:
    """A training stage: its options, its run, its folder and the label of its log lines."""

    section: SftStage | DpoStage
    context: RunContext
    folder: Path
    label: str


@dataclass(frozen=True)
class StageArguments:
    """transformers' arguments of a stage, and its schedule of `lr_schedules` if it names one."""

    upstream: Any  # a `TrainingArguments` of transformers or trl
    schedule: functools.partial[Any] | None


class PackedTrainer(GuardedTrainer):
    """Mixin for TRL's trainers, listed before them; batches are those of `micro_batches`.

    The loss is a sum over a step's items (scored tokens, or pairs) divided by their number over
    all passes, micro-batches and processes, so it does not depend on how a step is split.
    """

    loss_is_scaled_for_ga: Any = True
    stops_at_loops = False  # whether a rise of looping answers stops the stage
    schedule: functools.partial[Any] | None = None
    filled_from: int | None = None  # index of the first filler row

    def get_train_dataloader(self) -> Any:
        """Extend the method to fillers at the end of epochs and workers that ignore signals."""
        loader: Any = super().get_train_dataloader()  # accelerate's
        if loader.num_workers and forks_by_default():
            loader.multiprocessing_context = Workers()
        sampler = loader.get_sampler()
        if self.filled_from is not None and isinstance(sampler, RandomSampler):
            loader.set_sampler(FillersLast(sampler, first=self.filled_from))
        return loader

    def _get_num_items_in_batch(self, batch_samples: Any, device: torch.device) -> torch.Tensor:
        count = torch.stack([batch["num_items"] for batch in batch_samples]).sum().to(device)
        return torch.sum(self.accelerator.gather(count))

    def training_step(
        self,
        model: Any,
        inputs: dict[str, Any],
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """Run forward and backward of each pass of a micro-batch; the last syncs gradients."""
        total = torch.zeros((), device=self.args.device)
        passes = inputs["passes"]
        for place, part in enumerate(passes):
            self.meter.add(part["rows"])
            last = place == len(passes) - 1
            with nullcontext() if last else self.accelerator.no_sync(model):
                total += super().training_step(model, part, num_items_in_batch)
        return total

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Create a schedule of `lr_schedules` or of transformers.

        A warm-up that gives every step a learning rate of 0, as in a stage of one step, is dropped.
        """
        self._make_scheduler(num_training_steps, optimizer)
        factors = getattr(self.lr_scheduler, "lr_lambdas", ())
        idle = factors and not any(map(factors[0], range(num_training_steps)))
        if idle and self.args.get_warmup_steps(num_training_steps):
            assert self.watch is not None, "see make_trainer"
            log.warning(
                "%s: no warm-up: it has %d step%s, which would have a learning rate of 0",
                *(self.watch.label, num_training_steps, "s" * (num_training_steps > 1)),
            )
            self.args.warmup_steps, self.lr_scheduler = 0, None
            self._make_scheduler(num_training_steps, optimizer)
        options = {
            "warmup_steps": self.args.warmup_steps,
            "learning_rate": self.args.learning_rate,
            "lr_scheduler_type": None if self.schedule else self.args.lr_scheduler_type,
        }
        if self.watch and (note := long_warmup(options, total_steps=num_training_steps)):
            log.warning("%s: %s", self.watch.label, note)
        return self.lr_scheduler

    def _make_scheduler(self, num_training_steps: int, optimizer: Any) -> None:
        if self.schedule is None:
            super().create_scheduler(num_training_steps, optimizer)
            return
        factor = functools.partial(
            self.schedule,
            total_steps=num_training_steps,
            warmup_steps=self.args.get_warmup_steps(num_training_steps),
        )
        target: Any = optimizer or self.optimizer
        self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(target, factor)
        self._created_lr_scheduler = True

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """Return the loss sum of a pass over the items of the step, scaled for DDP's averaging."""
        assert not return_outputs, "packed rows have no logits to return"
        items = inputs["num_items"] if num_items_in_batch is None else num_items_in_batch
        total = self.loss_sum(model, inputs) * self.accelerator.num_processes
        return torch.div(total, torch.as_tensor(items).clamp(min=1))

    @abstractmethod
    def loss_sum(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        """Return the sum of the loss over the items of a pass."""

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the throughput since the last loss."""
        # transformers' time is that of this start only and includes measures, so it is replaced.
        if "loss" in logs:
            seconds = self.meter.training_seconds()
            logs |= self.meter.read(self.accelerator.reduce)
            logs["train_runtime"] = round(seconds, 4)
            logs["train_tokens_per_second"] = round(self.state.num_input_tokens_seen / seconds, 3)
        super().log(logs)

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Return 0: transformers' count visits all modules each step; `throughput` has another."""
        return 0

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Create none: the run writes its own report."""


class SftTrainer(PackedTrainer, SFTTrainer):
    """trl's SFTTrainer on token rows `{"input_ids", "trained"}`."""

    def loss_sum(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        """Return the negative log-likelihood of the trained tokens."""
        return -log_probs(model, inputs["rows"]).sum()


def check_batch(label: str, section: SftStage | DpoStage, *, processes: int) -> int:
    """Return the rows of one micro-batch over all processes.

    Raises:
        UserError: `train_batch_size` is not a multiple of them.
    """
    micro = section.trl["per_device_train_batch_size"] * processes
    if section.train_batch_size % micro:
        raise UserError(
            f"{label}: train_batch_size={section.train_batch_size} is no multiple of "
            f"{micro}, which is per_device_train_batch_size x processes ({processes}); change "
            "one of them"
        )
    return int(micro)


def training_arguments(
    config: type[TrainingArguments],
    section: SftStage | DpoStage,
    *,
    folder: Path,
    placement: Placement,
    seed: int = 0,
    **decided: Any,
) -> StageArguments:
    """Return the arguments that a stage trains with.

    It is also called before any model is loaded, to find errors early.

    Raises:
        UserError: `train_batch_size` does not divide over devices and micro-batches, transformers
            or trl rejects a value, or an option needs a package that is not installed.
    """
    options = dict(section.trl)
    schedule = None
    # transformers deprecates trl's names.
    for name in ("checkpointing", "checkpointing_kwargs"):
        if f"gradient_{name}" in options:
            options[f"activation_{name}"] = options.pop(f"gradient_{name}")
    kind: Any = options.get("lr_scheduler_type")
    given = options.get("lr_scheduler_kwargs") or {}
    if kind in (*SCHEDULES, "cosine") and not isinstance(given, dict):
        raise UserError(
            f"{folder.name}: lr_scheduler_kwargs={given!r} is no mapping; give "
            "{name: value, ...}, or remove it"
        )
    if kind in SCHEDULES:
        schedule = functools.partial(SCHEDULES[kind], **given)
        options.pop("lr_scheduler_kwargs", None)
        options["lr_scheduler_type"] = "constant"  # ignored by `create_scheduler`
    elif kind == "cosine":
        options["lr_scheduler_type"], options["lr_scheduler_kwargs"] = transformers_schedule(
            kind, given
        )
    if section.train_batch_size:
        processes = PartialState().num_processes
        micro = check_batch(folder.name, section, processes=processes)
        options["gradient_accumulation_steps"] = section.train_batch_size // micro
    try:
        args = config(
            **options,
            **decided,
            output_dir=str(folder),
            seed=seed,
            data_seed=seed,
            bf16=placement.autocast and placement.compute == torch.bfloat16,
            fp16=placement.autocast and placement.compute == torch.float16,
            use_cpu=placement.device.type == "cpu",
            dataloader_pin_memory=placement.device.type == "cuda",
            remove_unused_columns=False,
            include_num_input_tokens_seen="non_padding",
            logging_first_step=True,
            logging_nan_inf_filter=False,
            disable_tqdm=True,
        )
    except (ValueError, TypeError) as error:
        raise UserError(f"{folder.name}: {' '.join(str(error).split())}") from None
    check_options(args, schedule, stage=folder.name.replace("-", "_"))
    return StageArguments(args, schedule)


@contextmanager
def preserve_dtypes(model: Any) -> Iterator[None]:
    """Preserve the dtype of trained weights while a trainer of trl is created."""
    # Over 4-bit weights trl rounds the adapter to bfloat16, which loses precision of the adapter of
    # the stage before, and updates that are small relative to a weight.
    kept = {name: p.data for name, p in model.named_parameters() if p.requires_grad}
    yield
    for name, parameter in model.named_parameters():
        if name in kept and parameter.dtype != kept[name].dtype:
            parameter.data = kept[name]


def make_trainer(
    kind: Any,
    model: Any,
    arguments: StageArguments,
    rows: Dataset,
    *,
    stage: TrainingStage,
    filler: dict[str, Any],
    collate: Callable[..., Any],
) -> Any:
    """Return a trainer over these rows whose steps are checked for divergence.

    Args:
        kind: a subclass of `PackedTrainer`.
        filler: the columns in which a filler of the last step differs from the first row.
        collate: makes a micro-batch of rows, given their `layout`.
    """
    section, tokenizer = stage.section, stage.context.tokenizer
    layout = Layout.of(model, packing=section.packing)
    rows = rows.add_column(PLACE, list(range(len(rows))))  # `with_places` removes it
    filler = rows[0] | filler | {PLACE: -1}
    with preserve_dtypes(model):
        trainer = kind(
            model=model,
            args=arguments.upstream,
            train_dataset=fill_last_step(rows, filler, train_batch_size=section.train_batch_size),
            processing_class=tokenizer,
            data_collator=functools.partial(
                with_places, collate=functools.partial(collate, layout=layout)
            ),
        )
    disable_router_logits(model)

    def describe(place: int) -> dict[str, Any]:
        return row_facts(rows[place], place=place, tokenizer=tokenizer)

    trainer.schedule = arguments.schedule
    if len(trainer.train_dataset) > len(rows):
        trainer.filled_from = len(rows)
    trainer.watch = StepWatch(
        stage.folder, label=stage.label, bounds=stage.context.run, describe=describe
    )
    return trainer


def run_training(trainer: Any, model: Any, *, stage: TrainingStage) -> StageFacts:
    """Train `model` to the end of its stage, from the last valid checkpoint if there is one.

    Raises:
        UserError: the last loss is not finite.
    """
    context, folder, label = stage.context, stage.folder, stage.label
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(StageLog(folder / "log.jsonl", label=label, trackers=context.trackers))
    device = trainer.args.device
    peak = matrix_peak(device, context.placement.compute)
    trainer.meter = Meter(model, device=device, peak=peak)
    if context.epoch_eval is not None:
        trainer.add_callback(
            EvalCallback(trainer, context.epoch_eval, EPOCH_SCHEDULE, folder=folder, label=label)
        )
    if context.loop_check is not None:
        trainer.add_callback(
            EvalCallback(
                *(trainer, context.loop_check, loop_schedule(context.run.loop_checks)),
                folder=folder,
                label=label,
                budget=context.run.loop_budget,
                check=functools.partial(trainer.watch.check_loops, stops=trainer.stops_at_loops),
            )
        )
    checkpoint = resume_point(folder)
    trainer.train_to_the_end(checkpoint)
    seconds = trainer.meter.training_seconds()
    losses = {e["step"]: e["loss"] for e in trainer.state.log_history if "loss" in e}
    last = list(losses.values())[-1] if losses else None
    if last is None or not math.isfinite(last):
        raise UserError(f"{label}: the loss ended at {last}; lower learning_rate")
    first_mean, last_mean = smoothed_losses(losses)
    return StageFacts(
        tokens=int(trainer.state.num_input_tokens_seen),
        steps=trainer.state.global_step,
        seconds=round(seconds, 3),
        loss_first=first_mean,
        loss_last=last_mean,
    )


def train_sft(
    model: Any, rows: Dataset, *, section: SftStage, context: RunContext, folder: Path, label: str
) -> StageFacts:
    """Fine-tune `model` in place on token rows.

    Args:
        rows: columns `input_ids` (list of int) and `trained` (list of bool), and `branches` (list
            of int) where rows share prefixes (see `sft.packing.shared_prefix`).
        folder: receives checkpoints and log.jsonl.
        label: the name on the progress bar.
    """
    stage = TrainingStage(section, context, folder, label)
    arguments = training_arguments(
        SFTConfig,
        section,
        folder=folder,
        placement=context.placement,
        seed=context.seed,
        dataset_kwargs={"skip_prepare_dataset": True},
    )
    plain: dict[str, Any] = {"branches": []} if "branches" in rows.column_names else {}
    trainer = make_trainer(
        SftTrainer,
        model,
        arguments,
        rows,
        stage=stage,
        filler={"input_ids": [context.tokenizer.eos_token_id], "trained": [False]} | plain,
        collate=collate_chats,
    )
    return run_training(trainer, model, stage=stage)
