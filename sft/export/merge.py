"""Merges a trained model into one full model on disk, and measures the change of its logits.

An adapter is merged into its base in float32, then all weights are rounded once, to nearest, to the
published dtype. Rounding to bfloat16 is harmless unless training changed little, so its loss is
measured on real rows relative to that change; if it is too large, the model is published in
float32. An adapter trained over 4-bit weights is merged into the unquantized ones; that difference
is measured and reported as well.
"""

import logging
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedTokenizerBase

from sft.chat_template.encoding import ids_of, stop_ids
from sft.context import RunContext
from sft.distributed.collectives import run_on_main
from sft.errors import UserError
from sft.model.loading import load_model, save_model
from sft.model.model_config import read_model_config
from sft.model.placement import Placement, on_cpu
from sft.run.adapters import adapter_base
from sft.run.stage_cache import Stage
from sft.system.atomic_files import writing

log = logging.getLogger(__name__)

# Largest share of the change by training that publishing may lose (root mean square of logits). An
# exact merge rounded to bfloat16 loses a few hundredths.
LOST = 0.1
# Logits that differ by less are equal: float32 sums depend on the order of terms.
EQUAL = 1e-4
POSITIONS = 16  # per row, evenly spaced: the logits of the complete vocabulary stay in memory
# Fewer rows between stages: a large model is slow on the CPU.
MERGE_ROWS, MERGE_LENGTH = 8, 128


@dataclass(frozen=True)
class MergeCheck:
    """Logits of the published model against the trained one, and of the base against it.

    Root mean squares over positions and vocabulary, after subtracting each position's mean logit,
    which softmax ignores.
    """

    positions: int
    lost: float  # published - trained
    changed: float  # base - trained
    worst: float  # the largest single |published - trained|
    agree: float  # share of positions with the same most likely token
    dtype: str = "float32"  # of the published weights
    instead_of: str | None = None  # why it is not the requested dtype

    @property
    def share(self) -> float:
        return self.lost / self.changed if self.changed else float(not self.lost <= EQUAL)


@dataclass(frozen=True)
class TrainedModel:
    """A trained model or adapter, and how it is compared with other weights."""

    path: str
    base: str  # the model that it was trained from
    rows: Sequence[Sequence[int]]  # token ids of real conversations, to compare logits on
    placement: Placement  # where it is merged and compared, in float32; not in 4 bits
    trust_remote_code: bool = False

    def load(self, path: str) -> Any:
        trust = self.trust_remote_code
        return load_model(path, self.placement, dtype=torch.float32, trust_remote_code=trust)

    @torch.no_grad()
    def logits(self, model: Any) -> torch.Tensor:
        """Return the logits at `POSITIONS` positions of each row, [P, V] float32 on the CPU."""
        device = next(model.parameters()).device
        found = []
        for row in self.rows:
            count = min(POSITIONS, len(row))
            places = torch.linspace(0, len(row) - 1, count, device=device).long()
            ids = torch.tensor([list(row)], device=device)
            logits = model(input_ids=ids, use_cache=False, logits_to_keep=places).logits[0]
            found.append(logits.float().cpu())
        return torch.cat(found)


def export_weights(
    trained: TrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    folder: Path,
    dtype: torch.dtype,
    or_float32: bool = False,
    remedy: str = "publish in float32 (--dtype float32)",
) -> MergeCheck:
    """Write a trained model to `folder` as safetensors, then load it again and compare.

    Weights are rounded once to `dtype`, or stay float32 if that loses more than `LOST` and
    `or_float32` is set. Raises UserError (with `remedy`) if too much is lost, or the written model
    differs.
    """
    assert not trained.placement.load_in_4bit, "nothing is merged into 4-bit weights"
    base = trained.logits(trained.load(trained.base))
    model = trained.load(trained.path)
    exact = expected = trained.logits(model)
    model = _merged(model)
    instead_of = None
    if dtype != torch.float32:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(parameter.to(dtype))
        expected = trained.logits(model)
        check = compare_logits(expected, trained=exact, base=base)
        if not check.share <= LOST:  # NaN too: float16 has no number above 65,504
            reason = _rounding_loses(check, dtype)
            if not or_float32:
                raise UserError(f"{folder}: {reason}; {remedy}")
            log.info("weights: published in float32, since %s", reason)
            instead_of, dtype, expected = reason, torch.float32, exact
            model = _merged(trained.load(trained.path))
    # Some programs read eos ids only from config.json.
    also = ids_of(model.generation_config.eos_token_id)
    model.config.eos_token_id = stop_ids(tokenizer, also=also)
    with writing(folder):
        save_model(model.to(dtype), tokenizer, folder)
    del model
    published = trained.logits(trained.load(str(folder)))
    written = compare_logits(published, trained=expected, base=base)
    if not (written.share <= LOST or written.lost <= EQUAL):  # NaN too
        raise UserError(
            f"{folder}: the published model is not the trained one: its logits on "
            f"{len(trained.rows)} real rows are off by {written.lost:.3g} (root mean square), "
            f"{written.share:.0%} of what training changed ({written.changed:.3g}), before any "
            "rounding; export again, and report this if it stays"
        )
    check = compare_logits(published, trained=exact, base=base)
    return replace(check, dtype=_name(dtype), instead_of=instead_of)


def _merged(model: Any) -> Any:
    return model.merge_and_unload() if isinstance(model, PeftModel) else model


def _rounding_loses(check: MergeCheck, dtype: torch.dtype) -> str:
    bits = 1 - math.log2(torch.finfo(dtype).eps)
    return (
        f"{_name(dtype)} keeps {bits:.0f} significant bits of a weight, and rounding to it "
        f"loses {check.share:.0%} of the little that training changed (logits off by "
        f"{check.lost:.3g}, changed by {check.changed:.3g}, root mean squares)"
    )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def compare_with_4bit(
    trained: TrainedModel, merged: str, *, in_4bit: Placement, use: Placement
) -> MergeCheck:
    """Compare a merged model, placed as in `use`, with its adapter over 4-bit weights."""

    def logits(path: str, placement: Placement) -> torch.Tensor:
        trust = trained.trust_remote_code
        model = load_model(path, placement, dtype=in_4bit.compute, trust_remote_code=trust)
        return trained.logits(model)

    base, exact = logits(adapter_base(trained.path), in_4bit), logits(trained.path, in_4bit)
    return compare_logits(logits(merged, use), trained=exact, base=base)


def merge_before_stage(start: str, context: RunContext, *, folder: Path, rows: Any) -> str:
    """Merge an adapter with its base into `folder` for the next stage; return the model's path.

    One process merges, in float32 on the CPU, and stores the dtype that the stage computes in, so
    that measuring and training use the same weights. A 4-bit stage quantizes them again; the
    difference to the previous stage is logged. The first `MERGE_ROWS` of `rows` (token ids) are
    compared.
    """
    placement, trust = context.placement, context.trust_remote_code
    inputs = {"weights": context.weights_key(start), "dtype": str(placement.compute)}
    stage = Stage(folder, inputs)
    target = folder / "model"

    def merge() -> None:
        if stage.finished() is not None:
            return
        stage.begin()
        shown = [list(row)[:MERGE_LENGTH] for row in rows[:MERGE_ROWS]]
        trained = TrainedModel(start, adapter_base(start), shown, on_cpu(placement), trust)
        check = export_weights(
            trained,
            context.tokenizer,
            folder=target,
            dtype=placement.compute,
            remedy="set lora.between_stages=continue or model.dtype=float32",
        )
        log.info("adapter: merged into its base; %s", describe_check(check))
        facts = asdict(check)
        if placement.load_in_4bit:
            again = compare_with_4bit(trained, str(target), in_4bit=placement, use=placement)
            log.info("adapter: quantized again with its base; %s", describe_check(again))
            facts["quantised"] = asdict(again)
        stage.finish(outputs=["model"], facts=facts)

    run_on_main(merge)
    return str(target.resolve())


def describe_check(check: MergeCheck) -> str:
    change = f"{check.share:.1%} of what training changed"
    if check.changed <= EQUAL:
        change = "and training had changed none of them"
    return (
        f"on {check.positions} positions of real rows logits are off by {check.lost:.2g} (root "
        f"mean square), {change}; the same next token at {check.agree:.1%}"
    )


def compare_logits(
    published: torch.Tensor, *, trained: torch.Tensor, base: torch.Tensor
) -> MergeCheck:
    """Compare the logits [P, V] of two models, relative to the change from the base's.

    A base with a smaller vocabulary is compared on the tokens that it has.
    """
    off = published - trained
    off -= off.mean(1, keepdim=True)
    known = min(base.shape[1], trained.shape[1])
    moved = base[:, :known] - trained[:, :known]
    moved -= moved.mean(1, keepdim=True)
    return MergeCheck(
        positions=trained.shape[0],
        lost=off.square().mean().sqrt().item(),
        changed=moved.square().mean().sqrt().item(),
        worst=off.abs().max().item(),
        agree=(published.argmax(1) == trained.argmax(1)).float().mean().item(),
    )


def stored_dtype(path: str, *, trust_remote_code: bool = False) -> torch.dtype:
    """Return the dtype of a model's weights according to its configuration, or float32."""
    config = read_model_config(path, trust_remote_code=trust_remote_code)
    return config.dtype or torch.float32
