"""The SFT trainer on trl's: packed rows in, a loss on answers only, sealed checkpoints.

`PackedTrainer` holds what SFT and DPO share. Upstream methods that it overrides or relies on are
held by tests/test_sft_trainer.py.
"""

import functools
import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from datasets import Dataset, concatenate_datasets
from tqdm import tqdm
from transformers import (
    PrinterCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from trl import SFTConfig, SFTTrainer

from sft.checkpoint import resume_point
from sft.config import DpoStage, SftStage, UserError
from sft.guarded import GuardedTrainer
from sft.model import Placement
from sft.packing import Batch, Document, Segment, lay_out
from sft.schedule import SCHEDULES
from sft.scoring import by_document, log_probs
from sft.setting import Setting
from sft.watch import PLACE, StepWatch, row_facts, with_places


@dataclass(frozen=True)
class StageFacts:
    """What a stage did; the `stages` entry of results.json."""

    tokens: int
    steps: int
    seconds: float
    loss_first: float
    loss_last: float


class PackedTrainer(GuardedTrainer):
    """Goes before one of trl's trainers in a class's bases; batches are those of `as_inputs`.

    The loss is a sum over a step's items (scored tokens, or pairs) divided by their number over
    all micro-batches and processes, so how a step is split never changes it.
    """

    loss_is_scaled_for_ga: Any = True
    schedule: functools.partial | None = None

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> torch.Tensor:
        count = torch.stack([batch["num_items"] for batch in batch_samples]).sum().to(device)
        return self.accelerator.gather(count).sum()

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Ours where `lr_scheduler_type` names one of `sft.schedule`, else upstream's."""
        if self.schedule is None:
            return super().create_scheduler(num_training_steps, optimizer)
        factor = functools.partial(
            self.schedule,
            total_steps=num_training_steps,
            warmup_steps=self.args.get_warmup_steps(num_training_steps),
        )
        target: Any = optimizer or self.optimizer
        self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(target, factor)
        self._created_lr_scheduler = True
        return self.lr_scheduler

    def step_share(
        self, total: torch.Tensor, inputs: dict[str, Any], items: torch.Tensor | int | None
    ) -> torch.Tensor:
        """A micro-batch's sum over the items of the whole step, as DDP's averaging expects it."""
        count = torch.as_tensor(inputs["num_items"] if items is None else items)
        return total * self.accelerator.num_processes / count.clamp(min=1)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Checkpoints carry no card; the run's report is the record."""


class SftTrainer(PackedTrainer, SFTTrainer):
    """trl's SFTTrainer on rows that are tokens already: `{"input_ids", "trained"}`."""

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """Mean negative log-likelihood of the trained tokens of the step."""
        assert not return_outputs, "packed rows have no logits to return"
        total = -log_probs(model, inputs["rows"]).sum()
        return self.step_share(total, inputs, num_items_in_batch)


def collate_chats(
    examples: Sequence[dict[str, Any]], *, packing: bool, flat: bool
) -> dict[str, Any]:
    """Chats of a micro-batch as packed rows; `num_items` counts trained tokens."""
    batch = lay_out([chat_document(e) for e in examples], packing=packing, flat=flat)
    return as_inputs(batch, num_items=len(batch.target))


def chat_document(row: dict[str, Any]) -> Document:
    """A token row as a trunk without branches."""
    return Document(Segment(row["input_ids"], row["trained"]))


def as_inputs(batch: Batch, *, num_items: int, **more: torch.Tensor) -> dict[str, Any]:
    """What the Trainer passes to `compute_loss`; upstream counts tokens by the two plain keys."""
    return {
        "rows": batch,
        "num_items": torch.tensor(num_items),
        "input_ids": batch.input_ids,
        "attention_mask": batch.document >= 0,
        **more,
    }


def training_arguments(
    config: type[TrainingArguments],
    section: SftStage | DpoStage,
    *,
    folder: Path,
    placement: Placement,
    seed: int = 0,
    **decided: Any,
) -> tuple[Any, functools.partial | None]:
    """Upstream's arguments for a stage, and our schedule where the stage names one.

    Called once with any folder before models are loaded, so that refusals come early.

    Raises:
        UserError: `train_batch_size` does not divide over devices and micro-batches, or upstream
            refuses a value.
    """
    options = dict(section.trl)
    schedule = None
    if "gradient_checkpointing" in options:  # trl's name for it, deprecated in transformers
        options["activation_checkpointing"] = options.pop("gradient_checkpointing")
    if options.get("lr_scheduler_type") in SCHEDULES:
        chosen = SCHEDULES[options.pop("lr_scheduler_type")]
        schedule = functools.partial(chosen, **(options.pop("lr_scheduler_kwargs", None) or {}))
        options["lr_scheduler_type"] = "constant"  # never used: create_scheduler takes ours
    if section.train_batch_size:
        processes = PartialState().num_processes
        micro = options["per_device_train_batch_size"] * processes
        if section.train_batch_size % micro:
            raise UserError(
                f"{folder.name}: train_batch_size={section.train_batch_size} is no multiple of "
                f"{micro}, which is per_device_train_batch_size x processes ({processes}); change "
                "one of them"
            )
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
    return args, schedule


def fill_last_step(rows: Dataset, filler: dict[str, Any], *, train_batch_size: int) -> Dataset:
    """Append rows that train nothing until every step has `train_batch_size` rows.

    Otherwise processes would round an epoch's last step up by repeating rows, each number of
    processes differently.
    """
    missing = -len(rows) % train_batch_size if train_batch_size else 0
    if not missing:
        return rows
    return concatenate_datasets([rows, Dataset.from_list([filler] * missing, rows.features)])


def watched(rows: Dataset, setting: Setting, *, folder: Path, label: str) -> StepWatch:
    """Who judges the steps over these rows and puts bad ones on record."""

    def describe(place: int) -> dict[str, Any]:
        return row_facts(rows[place], place=place, tokenizer=setting.tokenizer)

    return StepWatch(folder, label=label, limits=setting.limits, describe=describe)


def numbered(rows: Dataset) -> Dataset:
    """Rows with a column of their places, see `sft.watch.with_places`."""
    return rows.add_column(PLACE, list(range(len(rows))))


def run_training(trainer: Any, *, folder: Path, label: str) -> StageFacts:
    """Train to the end, from the last good checkpoint if there is one."""
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(StageLog(folder / "log.jsonl", label=label))
    checkpoint = resume_point(folder)
    started = time.monotonic()
    trainer.train_to_the_end(checkpoint)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    if not losses or not math.isfinite(losses[-1]):
        raise UserError(
            f"{label}: the loss ended at {losses[-1] if losses else None}; lower learning_rate"
        )
    return StageFacts(
        tokens=int(trainer.state.num_input_tokens_seen),
        steps=trainer.state.global_step,
        seconds=round(time.monotonic() - started, 3),
        loss_first=losses[0],
        loss_last=losses[-1],
    )


class StageLog(TrainerCallback):
    """One JSON line a log step in log.jsonl, and a progress bar with the time left."""

    def __init__(self, path: Path, *, label: str) -> None:
        self.path = path
        self.label = label
        self.bar: tqdm | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if state.is_world_process_zero:
            # After a kill the log may be ahead of the checkpoint: begin with what that one knew.
            lines = [entry for entry in state.log_history if "loss" in entry]
            self.path.write_text("".join(json.dumps(entry) + "\n" for entry in lines))
            self.bar = tqdm(
                total=state.max_steps, initial=state.global_step, desc=self.label, unit="step"
            )

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        if self.bar is not None and logs and "loss" in logs:
            entry = {"step": state.global_step, **logs}
            with self.path.open("a") as stream:
                stream.write(json.dumps(entry) + "\n")
            self.bar.set_postfix(loss=f"{float(logs['loss']):.3f}", refresh=False)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if self.bar is not None:
            self.bar.update(state.global_step - self.bar.n)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if self.bar is not None:
            self.bar.close()


def train_sft(
    model: Any, rows: Dataset, *, section: SftStage, setting: Setting, folder: Path, label: str
) -> StageFacts:
    """Fine-tune `model` in place on token rows.

    Args:
        rows: columns `input_ids` (list of int) and `trained` (list of bool).
        folder: where checkpoints and log.jsonl go.
        label: names the progress bar.
    """
    args, schedule = training_arguments(
        SFTConfig,
        section,
        folder=folder,
        placement=setting.placement,
        seed=setting.seed,
        dataset_kwargs={"skip_prepare_dataset": True},
    )
    rows = numbered(rows)
    filler = rows[0] | {
        "input_ids": [setting.tokenizer.eos_token_id],
        "trained": [False],
        PLACE: -1,
    }
    trainer = SftTrainer(
        model=model,
        args=args,
        train_dataset=fill_last_step(rows, filler, train_batch_size=section.train_batch_size),
        processing_class=setting.tokenizer,
        data_collator=functools.partial(
            with_places,
            collate=functools.partial(
                collate_chats, packing=section.packing, flat=by_document(model)
            ),
        ),
    )
    trainer.schedule = schedule
    trainer.watch = watched(rows, setting, folder=folder, label=label)
    return run_training(trainer, folder=folder, label=label)
