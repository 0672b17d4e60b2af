"""DPO trainer on trl's, with shared prompts and cached reference log-probs.

tests/dpo/test_dpo_trainer.py checks the methods of trl that it overrides or calls.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel
from trl import DPOConfig, DPOTrainer
from trl.trainer import dpo_trainer

from dpo.loss import PairScores, preference_loss
from dpo.reference import pair_document, reference_log_probs
from sft.config.sections import DpoStage
from sft.context import RunContext
from sft.errors import UserError
from sft.packing.layout import Batch
from sft.packing.logprobs import log_probs, sequence_sums
from sft.run.stage_summary import StageFacts
from sft.training.micro_batches import Layout, in_passes
from sft.training.trainer import (
    PackedTrainer,
    TrainingStage,
    make_trainer,
    run_training,
    training_arguments,
)

# Largest mean log-prob difference per token by rounding between two passes of the same weights.
SAME_WEIGHTS = {torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 5e-3}

# Values of a log line besides the loss, by trl's names if it has them.
MEANS = (
    "rewards/chosen",
    "rewards/rejected",
    "rewards/margins",
    "rewards/accuracies",
    "logps/chosen_per_token",
    "logps/rejected_per_token",
    "logps/chosen_change_per_token",  # since the reference
)


class DpoTrainer(PackedTrainer, DPOTrainer):
    """trl's DPOTrainer on token rows with reference log-probs (see `collate_pairs`)."""

    stops_at_loops = True
    compute_dtype = torch.float32
    sums = torch.zeros(1 + len(MEANS))  # of the step: pairs, then MEANS

    def _prepare_dataset(self, dataset: Dataset, *_: Any, **__: Any) -> Dataset:
        return dataset  # has token rows

    def _precompute_ref_logps(self, dataset: Dataset, *_: Any, **__: Any) -> Dataset:
        return dataset  # has log-probs of dpo.reference, which survive a kill

    def loss_sum(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        """Return the preference loss of the pairs of a pass."""
        rows, weight = inputs["rows"], inputs["weight"]
        per_token = log_probs(model, rows)
        sums = sequence_sums(per_token, rows).view(-1, 2)
        lengths = sequence_sums(torch.ones_like(per_token), rows).view(-1, 2)
        scores = PairScores(
            chosen=sums[:, 0],
            rejected=sums[:, 1],
            ref_chosen=inputs["reference"][:, 0],
            ref_rejected=inputs["reference"][:, 1],
            chosen_tokens=lengths[:, 0],
            rejected_tokens=lengths[:, 1],
        )
        if self.state.global_step == 0:
            self._check_same_weights(scores, weight)
        losses = preference_loss(
            scores,
            beta=self.beta,
            loss_type=self.loss_types,
            loss_weights=self.loss_weights,
            label_smoothing=self.label_smoothing,
        )
        self._record(scores, weight)
        return torch.sum(losses * weight)

    def _check_same_weights(self, scores: PairScores, weight: torch.Tensor) -> None:
        """Check that the margin is 0 before the first update."""
        tolerance = SAME_WEIGHTS[self.compute_dtype]
        drift = ((scores.chosen - scores.ref_chosen) / scores.chosen_tokens).abs() * weight
        worst = drift.max().item()
        if not worst <= tolerance:
            raise UserError(
                "the reference is not the model that DPO starts from: log-probs differ by "
                f"{worst:.3g} nats per token before the first step (at most {tolerance:g} is "
                "rounding); remove the folder reference/ of the DPO stage and start again"
            )

    def _record(self, scores: PairScores, weight: torch.Tensor) -> None:
        """Add the metrics of the pairs to the sums of the step."""
        with torch.no_grad():
            chosen_change = scores.chosen - scores.ref_chosen
            values = [
                torch.ones_like(weight),
                self.beta * chosen_change,
                self.beta * (scores.rejected - scores.ref_rejected),
                self.beta * scores.h,
                preferred(scores),
                scores.chosen / scores.chosen_tokens,
                scores.rejected / scores.rejected_tokens,
                chosen_change / scores.chosen_tokens,
            ]
            self.sums = self.sums.to(weight.device) + (torch.stack(values) * weight).sum(1)

    def chosen_change(self) -> float | None:
        """Store the step's means over all processes and return the mean change of the chosen
        answers' log-probs since the reference, per token."""
        count, *sums = self.accelerator.reduce(self.sums).tolist()
        self.sums = torch.zeros_like(self.sums)
        if not count:
            return None
        for name, value in zip(MEANS, sums, strict=True):
            self._metrics["train"][name].append(value / count)
        return float(sums[-1] / count)


def preferred(scores: PairScores) -> torch.Tensor:
    """Return 1 where chosen has the larger reward, 0 where rejected has it, 0.5 for ties, [B]."""
    # trl's `chosen_rewards > rejected_rewards` is noise before the first update: differences within
    # the rounding of the four sums count as ties.
    sums = (scores.chosen, scores.rejected, scores.ref_chosen, scores.ref_rejected)
    rounding = torch.finfo(torch.float32).eps * torch.stack(sums).abs().sum(0)
    return torch.where(scores.h.abs() <= rounding, 0.5, (scores.h > 0).float())


def collate_pairs(examples: Sequence[dict[str, Any]], *, layout: Layout) -> dict[str, Any]:
    """Return the pairs of a micro-batch as trunk-and-branch rows; `num_items` counts pairs.

    Adds `reference` [B, 2] and `weight` [B], which is 0 for fillers of the last step.
    """

    def inputs(rows: Sequence[dict[str, Any]], batch: Batch) -> dict[str, Any]:
        weight = torch.tensor([row["weight"] for row in rows])
        return {
            "rows": batch,
            "num_items": weight.sum().long(),
            "weight": weight,
            "reference": torch.tensor([[row["ref_chosen"], row["ref_rejected"]] for row in rows]),
        }

    return in_passes(examples, pair_document, inputs, layout=layout)


def train_dpo(
    model: Any,
    rows: Dataset,
    *,
    section: DpoStage,
    context: RunContext,
    folder: Path,
    cache: Path,
    label: str = "dpo",
) -> StageFacts:
    """Train `model` in place on preferences, with its current weights as the reference.

    Args:
        rows: columns `prompt_ids`, `chosen_ids`, `rejected_ids` and `chosen_scored`,
            `rejected_scored` (whether each token of the answer is scored).
        folder: receives checkpoints and log.jsonl.
        cache: folder of the reference log-probs of these rows under these weights.
        label: the name on the progress bar.
    """
    placement = context.placement
    stage = TrainingStage(section, context, folder, label)
    arguments = training_arguments(
        DPOConfig,
        section,
        folder=folder,
        placement=placement,
        seed=context.seed,
        precompute_ref_log_probs=True,
    )
    reference = reference_log_probs(
        model,
        rows.to_list(),
        folder=cache,
        device=placement.device,
        autocast=placement.compute if placement.autocast else None,
    )
    rows = rows.add_column("ref_chosen", [chosen for chosen, _ in reference])
    rows = rows.add_column("ref_rejected", [rejected for _, rejected in reference])
    rows = rows.add_column("weight", [1.0] * len(rows))
    with _skip_weight_hash():
        trainer = make_trainer(
            DpoTrainer,
            model,
            arguments,
            rows,
            stage=stage,
            filler={"weight": 0.0},
            collate=collate_pairs,
        )
    trainer.compute_dtype = placement.compute
    if isinstance(model, PeftModel):
        model.delete_adapter("ref")  # trl's copy of the adapter, which the cache replaces
    return run_training(trainer, model, stage=stage)


@contextmanager
def _skip_weight_hash() -> Iterator[None]:
    """Skip trl's hash of all weights, the key of its unused cache of reference log-probs."""
    original = dpo_trainer.hash_module
    dpo_trainer.hash_module = lambda module: ""
    try:
        yield
    finally:
        dpo_trainer.hash_module = original
