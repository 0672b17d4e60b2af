"""Check and count the rows of each SFT stage before anything is trained."""

import difflib
import logging
import math
import os
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from datasets import Dataset
from transformers import PreTrainedTokenizerBase
from trl import SFTConfig

from sft.chat_template.encoding import EncodedChat
from sft.chat_template.system_prompt import KEEP, default_system, quoted
from sft.config.sections import DpoStage, Preset, SftStage
from sft.context import RunContext
from sft.data.mixture import PAPER_SHARES
from sft.errors import UserError
from sft.model.adapter_settings import adapter_settings
from sft.model.placement import Placement
from sft.planning.mask_display import marking, print_chat
from sft.run.adapters import is_adapter
from sft.run.stage_folders import find_local_model
from sft.system.atomic_files import read_json, read_record, write_record
from sft.tokenization.prepare import Example, StageRows, row_lengths, rows_of_stage
from sft.tokenization.row_checks import Rules, as_facts, mix_table, stage_table, total
from sft.training.lr_schedules import long_warmup
from sft.training.stage import PlannedStage
from sft.training.trainer import training_arguments

log = logging.getLogger(__name__)


def check_sft(preset: Preset, placement: Placement) -> None:
    """Check the SFT stages: TRL's arguments, batch sizes, the adapter that training starts from."""
    lora, stages = preset.lora, _enabled(preset)
    trains = bool(stages) or bool(preset.dpo.enabled)
    found = find_local_model(preset.model.name_or_path)
    if found is not None and is_adapter(str(found)):
        if not lora.r and stages:
            raise UserError(
                f"model.name_or_path={preset.model.name_or_path} is a LoRA adapter, which lora.r=0 "
                "(all weights) does not train; set lora.r, or give a whole model (peft's "
                "merge_and_unload makes one)"
            )
        if trains and lora.between_stages == "continue":
            _check_adapter(found, preset)
    # accelerate's launcher sets the variable.
    if lora.use_dora and os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE") == "3":
        raise UserError(
            "lora.use_dora=true reads full weight matrices outside of their layers, and ZeRO-3 "
            "shards them over devices; launch without it, or set lora.use_dora=false"
        )
    merges = lora.r and lora.between_stages == "merge" and trains
    if merges and placement.compute != torch.float32:
        log.warning(
            "lora.between_stages=merge rounds the change of a stage to %s, which can erase that of "
            "a short stage: if more than a tenth is lost, the next stage does not start; "
            "model.dtype=float32 or lora.between_stages=continue loses nothing",
            str(placement.compute).removeprefix("torch."),
        )
    for name, section in stages:
        training_arguments(SFTConfig, section, folder=Path(name), placement=placement)


def _check_adapter(path: Path, preset: Preset) -> None:
    """Check that LoRA options equal those of the adapter that training continues."""
    stored = adapter_settings(str(path), given=preset.model.name_or_path)
    for key in ("r", "lora_alpha", "lora_dropout", "use_rslora", "use_dora"):
        given, value = getattr(preset.lora, key), stored.get(key, False)
        if given != value:
            raise UserError(
                f"lora.{key}={str(given).lower()}, but the adapter {path} that is trained on has "
                f"{str(value).lower()}; set that, or lora.between_stages=merge to begin a new one"
            )


def fit_lengths(preset: Preset, window: int | None) -> Preset:
    """Return the preset with every stage's `max_length` within the model's context of `window`
    tokens; upstream would compute positions beyond it, which the model was never trained on."""

    def fit(name: str, section: Any) -> Any:
        given = section.trl["max_length"]
        if window is None or (given is not None and given <= window):
            return section
        if section.enabled:
            log.info("%s.max_length: %d (the model's context; given: %s)", name, window, given)
        return replace(section, trl=section.trl | {"max_length": window})

    names = ("sft_all", "sft_dialogue", "dpo")
    return replace(preset, **{name: fit(name, getattr(preset, name)) for name in names})


def _enabled(preset: Preset) -> list[tuple[str, SftStage]]:
    stages = (("sft-all", preset.sft_all), ("sft-dialogue", preset.sft_dialogue))
    return [(name, section) for name, section in stages if section.enabled]


def split_length(preset: Preset) -> int | None:
    """Return the smallest `max_length` of the enabled SFT stages; None if none has a limit."""
    lengths = [section.trl["max_length"] for _, section in _enabled(preset)]
    return min((n for n in lengths if n is not None), default=None)


def plan_stages(chats: Dataset, preset: Preset, context: RunContext) -> list[PlannedStage]:
    """Return the enabled SFT stages in order with their rows, each checked, and print a table of
    every stage; the counts are stored in data/checks.json."""
    planned, facts = [], {}
    rules = Rules.of(context.tokenizer)
    kinds = chats["kind"][:]
    tokens: Counter[str] = Counter()
    for kind, length in zip(kinds, row_lengths(chats), strict=True):
        tokens[kind] += length
    rows = Counter(kinds)
    context.show(mix_table(rows, tokens))
    _show_system_prompt(preset, context)
    _warn_of_near_kinds(rows, preset)
    for name, section in _enabled(preset):
        max_length = section.trl["max_length"]
        found = rows_of_stage(
            chats,
            kinds=section.kinds,
            max_length=max_length,
            rules=rules,
            section=preset.data,
            where=name.replace("-", "_"),
        )
        title = f"{name}: max_length={max_length}, data.too_long={preset.data.too_long}"
        context.show(stage_table(found.checked, title=title, rules=rules))
        batch = step_rows(section, processes=PartialState().num_processes)
        steps = count_steps(len(found.rows), batch=batch, options=section.trl)
        log.info("%s: %s", name, _summary(found, steps=steps))
        if note := long_warmup(section.trl, total_steps=steps):
            log.warning("%s: %s", name, note)
        _warn_of_untrained(found, preset.data.turns, name=name)
        planned.append(PlannedStage(name, section, found.rows, found.examples))
        facts[name] = as_facts(found.checked)
    # Written only if it changed, so that a second start of a finished run writes nothing.
    file = context.folder / "data" / "checks.json"
    if PartialState().is_main_process and read_record(file) != facts:
        write_record(file, facts)
    return planned


def _warn_of_untrained(found: StageRows, turns: str, *, name: str) -> None:
    """Warn of answers that are not trained although `data.turns` includes them."""
    counts = total(found.checked)
    if not counts.untrained or turns == "last":
        return
    reasons = {
        "all": "the template writes them differently in a chat's history; data.turns=each "
        "trains every turn with its own prompt",
        "each": "the template cannot write them as the last turn of a chat, or max_length cuts "
        "them off",
    }
    log.warning(
        "%s: %d of %d assistant turns are context and not trained: %s",
        *(name, counts.untrained, counts.turns + counts.untrained, reasons[turns]),
    )


def _show_system_prompt(preset: Preset, context: RunContext) -> None:
    """Print the system prompt of rows without a system turn, and the number of these rows."""
    default = default_system(context.tokenizer)
    facts = read_json(context.folder / "data" / "data.json")
    if (
        default is None or not facts["without_system"]
    ):  # the template writes no system prompt, or every row has its own
        return
    owner = "the template's own" if preset.data.system_prompt == KEEP else "data.system_prompt"
    context.show(
        f"system prompt: {facts['without_system']:,} of {sum(facts['kinds'].values()):,} rows have "
        f"no system turn, and the template writes {quoted(default)} there ({owner}; "
        "data.system_prompt=none or a text changes it)\n"
    )


def _warn_of_near_kinds(counts: Counter[str], preset: Preset) -> None:
    """Warn of a misspelled kind, whose rows the stages of the right one would leave out."""
    known = {*PAPER_SHARES, *(kind for _, section in _enabled(preset) for kind in section.kinds)}
    for kind, count in counts.items():
        # Sorted, since ties between equally near names are resolved by order.
        near = difflib.get_close_matches(kind, sorted(known - {kind}), n=1, cutoff=0.8)
        if kind not in known and near:
            log.warning(
                "kind %s, of %d rows, resembles %s but is another: a stage of that kind leaves "
                "these rows out; correct it in data.sft if it is the same",
                *(kind, count, near[0]),
            )


def _summary(found: StageRows, *, steps: int) -> str:
    counted = total(found.checked)
    plural, shared = "s" * (steps != 1), ""
    if "branches" in found.rows.column_names:
        shared = (
            f"in {len(found.rows):,} documents, in which rows of a chat share their prefix, of "
            f"{sum(row_lengths(found.rows)):,} tokens; "
        )
    return (
        f"{shared}{counted.rows:,} rows, {counted.tokens:,} tokens an epoch "
        f"({counted.trained_tokens / counted.tokens:.0%} trained), {steps:,} step{plural}"
    )


def step_rows(section: SftStage | DpoStage, *, processes: int) -> int:
    """Return the rows of an optimizer step over all processes."""
    micro: int = section.trl["per_device_train_batch_size"] * processes
    accumulation: int = section.trl.get("gradient_accumulation_steps", 1)
    return section.train_batch_size or micro * accumulation


def count_steps(num_rows: int, *, batch: int, options: Mapping[str, Any]) -> int:
    """Return the optimizer steps as transformers' Trainer counts them."""
    if (steps := int(options.get("max_steps", -1))) > 0:
        return steps
    # A short last step of an epoch counts as a step.
    epochs: float = options["num_train_epochs"]
    return math.ceil(max(1, math.ceil(num_rows / batch)) * epochs)


def show_examples(stages: Sequence[PlannedStage], tokenizer: PreTrainedTokenizerBase) -> None:
    """Print each stage's first row of each kind and the first row that `max_length` cuts, with
    trained tokens marked; rows that an earlier stage showed are skipped."""
    print(f"trained tokens are {marking(sys.stdout)[1]}")
    shown: list[Example] = []
    for stage in stages:
        for row in stage.examples:
            if row not in shown:
                shown.append(row)
                cut = f", cut at {stage.name} max_length" if row.cut else ""
                print(f"\n{row.kind} ({row.origin}){cut}")
                print_chat(tokenizer, EncodedChat(row.input_ids, row.trained))
