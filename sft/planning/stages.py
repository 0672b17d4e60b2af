"""What each stage is about to do, counted from its real rows before anything is paid for."""

import difflib
import logging
import math
import os
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from datasets import Dataset
from transformers import PreTrainedTokenizerBase
from trl import SFTConfig

from sft.chat_template.encoding import EncodedChat
from sft.chat_template.system_prompt import OWN, default_system, quoted
from sft.config.sections import DpoStage, Preset, SftStage
from sft.context import RunContext
from sft.data.mixture import PAPER_SHARES
from sft.errors import UserError
from sft.model.adapter_settings import adapter_settings
from sft.model.placement import Placement
from sft.planning.highlight import marking
from sft.run.adapters import is_adapter
from sft.run.stage_folders import find_local_model
from sft.run.terminal import raw
from sft.system.atomic_files import read_json, read_record, write_record
from sft.tokenization.prepare import Example, StageRows, row_lengths, rows_of_stage
from sft.tokenization.row_checks import Rules, as_facts, mix_table, stage_table, total
from sft.training.lr_schedules import long_warmup
from sft.training.stage import PlannedStage
from sft.training.trainer import training_arguments

log = logging.getLogger(__name__)


def check_sft(preset: Preset, placement: Placement) -> None:
    """Refuse settings that a stage could not follow, before anything is loaded.

    Raises:
        UserError: arguments that upstream refuses, a batch that does not divide, an adapter as the
            base of full fine-tuning or of another adapter's options, or DoRA under ZeRO-3.
    """
    found = find_local_model(preset.model.name_or_path)
    if found is not None and is_adapter(str(found)) and not preset.lora.r and _enabled(preset):
        raise UserError(
            f"model.name_or_path={preset.model.name_or_path} is a LoRA adapter, which lora.r=0 (all"
            " weights) does not train; set lora.r, or give a whole model (peft's merge_and_unload "
            "makes one)"
        )
    trains = bool(_enabled(preset)) or preset.dpo.enabled
    goes_on = trains and preset.lora.between_stages == "continue"
    if found is not None and is_adapter(str(found)) and goes_on:
        _check_adapter(found, preset)
    if preset.lora.use_dora and os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE") == "3":
        raise UserError(
            "lora.use_dora=true reads whole weight matrices outside of their layers, and ZeRO-3 "
            "spreads them over devices; launch without it, or set lora.use_dora=false"
        )
    merges = preset.lora.r and preset.lora.between_stages == "merge" and trains
    if merges and placement.compute != torch.float32:
        log.warning(
            "lora.between_stages=merge rounds what a stage changed to %s, which a short stage does "
            "not survive: where more than a tenth is lost the next stage does not begin; "
            "model.dtype=float32 or lora.between_stages=continue loses nothing",
            str(placement.compute).removeprefix("torch."),
        )
    for name, section in _enabled(preset):
        training_arguments(SFTConfig, section, folder=Path(name), placement=placement)


def _check_adapter(path: Path, preset: Preset) -> None:
    """Refuse options of a new adapter that the given one, which is trained on, does not have.

    Raises:
        UserError: one differs.
    """
    its = adapter_settings(str(path), given=preset.model.name_or_path)
    for key in ("r", "lora_alpha", "lora_dropout", "use_rslora", "use_dora"):
        asked, has = getattr(preset.lora, key), its.get(key, False)
        if asked != has:
            raise UserError(
                f"lora.{key}={str(asked).lower()}, but the adapter {path} that is trained on has "
                f"{str(has).lower()}; set that, or lora.between_stages=merge to begin a new one"
            )


def fit_lengths(preset: Preset, window: int | None) -> Preset:
    """The preset with every stage's `max_length` within the model's context of `window` tokens.

    Positions beyond it were never trained; upstream computes them all the same.
    """

    def fit(name: str, section: Any) -> Any:
        asked = section.trl["max_length"]
        if window is None or (asked is not None and asked <= window):
            return section
        if section.enabled:
            log.info("%s.max_length: %d (the model's context; asked: %s)", name, window, asked)
        return replace(section, trl=section.trl | {"max_length": window})

    names = ("sft_all", "sft_dialogue", "dpo")
    return replace(preset, **{name: fit(name, getattr(preset, name)) for name in names})


def _enabled(preset: Preset) -> list[tuple[str, SftStage]]:
    stages = (("sft-all", preset.sft_all), ("sft-dialogue", preset.sft_dialogue))
    return [(name, section) for name, section in stages if section.enabled]


def split_length(preset: Preset) -> int | None:
    """The tokens that every enabled SFT stage has room for."""
    lengths = [section.trl["max_length"] for _, section in _enabled(preset)]
    return min((n for n in lengths if n is not None), default=None)


def plan_stages(chats: Dataset, preset: Preset, context: RunContext) -> list[PlannedStage]:
    """The enabled SFT stages in order, with a table of what each trains on, checked row by row.

    The tables' counts are kept in data/checks.json.

    Raises:
        UserError: no row is of a stage's kinds, most are longer than its `max_length`, or a row
            breaks a rule.
    """
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
        log.info("%s: %s", name, _summary(found, section))
        if note := long_warmup(section.trl, total_steps=stage_steps(len(found.rows), section)):
            log.warning("%s: %s", name, note)
        _warn_of_untrained(found, preset.data.turns, name=name)
        planned.append(PlannedStage(name, section, found.rows, found.examples))
        facts[name] = as_facts(found.checked)
    file = context.folder / "data" / "checks.json"
    if PartialState().is_main_process and read_record(file) != facts:
        write_record(file, facts)
    return planned


def _warn_of_untrained(found: StageRows, turns: str, *, name: str) -> None:
    """Answers that are no target although `data.turns` asks for them."""
    counts = total(found.checked)
    if not counts.untrained or turns == "last":
        return
    ways = {
        "all": "the template writes them differently once they are history; data.turns=each "
        "trains every turn behind its own prompt",
        "each": "the template cannot write them as the last turn of a chat, or max_length cuts "
        "them off",
    }
    log.warning(
        "%s: %d of %d assistant turns are context and not trained: %s",
        *(name, counts.untrained, counts.turns + counts.untrained, ways[turns]),
    )


def _show_system_prompt(preset: Preset, context: RunContext) -> None:
    """What the template writes in rows without a system turn, and how many these are."""
    default = default_system(context.tokenizer)
    facts = read_json(context.folder / "data" / "data.json")
    if default is None or not facts["without_system"]:
        return
    whose = "the template's own" if preset.data.system_prompt == OWN else "data.system_prompt"
    context.show(
        f"system prompt: {facts['without_system']:,} of {sum(facts['kinds'].values()):,} rows have "
        f"no system turn, and the template writes {quoted(default)} there ({whose}; "
        "data.system_prompt=none or a text changes it)\n"
    )


def _warn_of_near_kinds(counts: Counter[str], preset: Preset) -> None:
    """A misspelt kind leaves its rows out of the stages that are of the right one."""
    known = {*PAPER_SHARES, *(kind for _, section in _enabled(preset) for kind in section.kinds)}
    for kind, count in counts.items():
        near = difflib.get_close_matches(kind, sorted(known - {kind}), n=1, cutoff=0.8)
        if kind not in known and near:
            log.warning(
                "kind %s, of %d rows, is near %s and another: a stage of that kind leaves these "
                "rows out; correct it in data.sft if it is the same",
                *(kind, count, near[0]),
            )


def _summary(found: StageRows, section: SftStage) -> str:
    steps = stage_steps(len(found.rows), section)
    counted = total(found.checked)
    plural = "s" * (steps != 1)
    shared = ""
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
    """Rows of an optimiser step, over all processes."""
    micro = section.trl["per_device_train_batch_size"] * processes
    return section.train_batch_size or micro * section.trl.get("gradient_accumulation_steps", 1)


def stage_steps(num_rows: int, section: SftStage | DpoStage) -> int:
    """Optimiser steps of a stage over so many rows, by the processes of this start."""
    batch = step_rows(section, processes=PartialState().num_processes)
    return count_steps(num_rows, batch=batch, options=section.trl)


def count_steps(num_rows: int, *, batch: int, options: dict[str, Any]) -> int:
    """Optimiser steps as the Trainer counts them: a short last step counts, once an epoch."""
    if options.get("max_steps", -1) > 0:
        return int(options["max_steps"])
    return math.ceil(max(1, math.ceil(num_rows / batch)) * float(options["num_train_epochs"]))


def show_examples(stages: Sequence[PlannedStage], tokenizer: PreTrainedTokenizerBase) -> None:
    """Print the first row of each kind as the model will see it, trained tokens marked, and the
    first that `max_length` cuts; of each stage what was not shown before."""
    show, how = marking(sys.stdout)
    print(f"trained tokens are {how}")
    shown: list[Example] = []
    for stage in stages:
        for row in stage.examples:
            if row in shown:
                continue
            shown.append(row)
            cut = f", cut at {stage.name} max_length" if row.cut else ""
            print(f"\n{row.kind} ({row.origin}){cut}")
            print(show(tokenizer, EncodedChat(row.input_ids, row.trained)), file=raw(sys.stdout))
