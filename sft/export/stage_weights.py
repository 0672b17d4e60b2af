"""Writes the weights of a finished stage for publication, with notes on its chat template."""

from dataclasses import replace
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from sft.chat_template.system_prompt import default_system, quoted
from sft.chat_template.template_date import writes_date
from sft.config.sections import ModelSection, Preset
from sft.export.merge import export_weights, stored_dtype
from sft.export.merge_check import TrainedModel, compare_with_4bit, describe_check
from sft.model.loading import resolve_model_path
from sft.model.placement import choose_placement, on_cpu
from sft.model.quantization import require_bitsandbytes


def write_weights(
    run: Path,
    preset: Preset,
    section: ModelSection,
    *,
    tokenizer: PreTrainedTokenizerBase,
    rows: list[list[int]],
    folder: Path,
    dtype: str | None,
) -> list[str]:
    """Merge and round the trained weights into `folder`; return comparison results for the card.

    `section` is the trained model, `rows` are token ids to compare logits on; `dtype` None is the
    base's, or float32 if that loses too much.
    """
    model, trust = preset.model, section.trust_remote_code
    base = str(run / "base" / "model")  # exists if tokens were added to the base
    if not Path(base).is_dir():
        base = resolve_model_path(model.name_or_path, revision=model.revision)
    published = getattr(torch, dtype) if dtype else stored_dtype(base, trust_remote_code=trust)
    placement = choose_placement(replace(model, load_in_4bit=False))
    in_4bit = replace(placement, load_in_4bit=True) if model.load_in_4bit else None
    if in_4bit:  # the device has no memory for the weights in 16 bits
        require_bitsandbytes()
        placement = on_cpu(placement)
    trained = TrainedModel(section.name_or_path, base, rows, placement, trust)
    check = export_weights(trained, tokenizer, folder=folder, dtype=published, or_float32=not dtype)
    why = f", since {check.instead_of}" if check.instead_of else ""
    checked = [f"weights: published in {check.dtype}{why}; {describe_check(check)}"]
    if in_4bit:
        found = compare_with_4bit(trained, str(folder), in_4bit=in_4bit, use=placement)
        checked.append(
            "quantization: trained over 4-bit weights and merged into the unquantized ones; "
            f"between the two, {describe_check(found)}"
        )
    return checked


def template_notes(
    tokenizer: PreTrainedTokenizerBase, *, date: str | None, modelfile: bool
) -> list[str]:
    """Return notes on texts that the chat template adds: a system prompt, a date."""
    notes = []
    if default := default_system(tokenizer):
        where = "the template and the Modelfile write" if modelfile else "the template writes"
        prompt = f"{where} {quoted(default)}, as in training"
        notes.append(f"system prompt: where a chat has no system turn, {prompt}")
    if writes_date(tokenizer):
        fixed = ", the Modelfile always this one" if modelfile else ""
        notes.append(
            f"date: the chat template writes the date; training and measuring wrote "
            f"{date} (run.date), the published template writes the day of use{fixed}"
        )
    return notes
