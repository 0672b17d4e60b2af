"""Merges a trained adapter into its base, and writes the full model in one dtype.

An adapter is merged in float32, then all weights are rounded once, to nearest, to the exported
dtype. Rounding to bfloat16 is harmless unless training changed little. `sft.export.merge_check`
measures what it loses; if that is too much, the model is exported in float32. An adapter trained
over 4-bit weights is merged into the unquantized ones; that difference is measured as well.
"""

import logging
import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedTokenizerBase

from sft.chat_template.encoding import ids_of, stop_ids
from sft.context import RunContext
from sft.distributed.collectives import run_on_main
from sft.errors import UserError
from sft.export.merge_check import (
    EQUAL,
    LOST,
    MergeCheck,
    TrainedModel,
    compare_logits,
    compare_with_4bit,
    describe_check,
)
from sft.model.loading import save_model
from sft.model.model_config import read_model_config
from sft.model.placement import on_cpu
from sft.run.adapters import adapter_base
from sft.run.stage_cache import Stage
from sft.system.atomic_files import writing

log = logging.getLogger(__name__)

# Fewer rows between stages: a large model is slow on the CPU.
MERGE_ROWS, MERGE_LENGTH = 8, 128


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


def stored_dtype(path: str, *, trust_remote_code: bool = False) -> torch.dtype:
    """Return the dtype of a model's weights according to its configuration, or float32."""
    config = read_model_config(path, trust_remote_code=trust_remote_code)
    return config.dtype or torch.float32
