"""Check the rules between a preset's values that types cannot express."""

import math
import re
from collections.abc import Mapping
from datetime import date
from typing import Any

from sft.config.sections import (
    SOURCE_OPTIONS,
    DpoStage,
    EvalSection,
    LoraSection,
    Preset,
    SftStage,
    Source,
)

MOST_WORKERS = 256  # dataloader processes per training process
# transformers treats any other name as random.
SAMPLING = ("random", "sequential", "group_by_length", "batch_rebalance")
NO_SOURCE = "data.sft is empty; list at least one source of chats"
NO_PREFERENCE = (
    "dpo.enabled=true needs data.preference (given pairs) or pairs.prompts (to sample from)"
)
STAGES = ("sft_all", "sft_dialogue", "dpo")


def check_rules(preset: Preset) -> list[str]:
    """Return a sentence for each rule between values that the preset breaks."""
    problems = _check_date(preset.run.date) + _check_model(preset) + _check_data(preset)
    problems += check_measuring(preset.eval) + _check_pairs(preset)
    for name in ("spike_factor", "collapse_nats", "loop_checks", "loop_rise", "loop_budget"):
        value = getattr(preset.run, name)
        if value < 0:
            problems.append(f"run.{name}={value:g} must be positive, or 0 for no limit")
    problems += _check_dialogue(preset) + _check_lora(preset)
    for stage in STAGES:
        problems += _check_stage(stage, getattr(preset, stage))
    return problems


def _check_model(preset: Preset) -> list[str]:
    problems = []
    if not preset.model.name_or_path:
        problems.append("model.name_or_path is missing; name a local directory or a hub id")
    if not 0 <= preset.model.max_unknown <= 1:
        problems.append(
            f"model.max_unknown={preset.model.max_unknown:g} must be a share of characters from 0 "
            "to 1 (any text is trained and measured, however much of it the tokenizer loses)"
        )
    return problems


def _check_data(preset: Preset) -> list[str]:
    problems = []
    if not preset.data.sft and (preset.sft_all.enabled or preset.sft_dialogue.enabled):
        problems.append(NO_SOURCE)
    if preset.dpo.enabled and not (preset.data.preference or preset.pairs.prompts):
        problems.append(NO_PREFERENCE)
    if not 0 <= preset.data.near_duplicates <= 1:
        problems.append(
            f"data.near_duplicates={preset.data.near_duplicates} must be an overlap from 0 (exact "
            "duplicates only) to 1"
        )
    if not preset.data.system_prompt.strip():
        problems.append(
            "data.system_prompt is empty; give a text, none, or template (what the template writes)"
        )
    for where in SOURCE_OPTIONS:
        section, key = where.split(".")
        for i, source in enumerate(getattr(getattr(preset, section), key)):
            problems += _check_source(source, where=where, at=f"{where}[{i}]")
    return problems


def _check_dialogue(preset: Preset) -> list[str]:
    problems = []
    if preset.sft_dialogue.enabled == "auto" and not preset.sft_all.enabled:
        problems.append(
            "sft_dialogue.enabled=auto asks how often stage 1 repeats itself, and sft_all.enabled="
            "false leaves it out; set one of them"
        )
    if not 0 <= preset.sft_dialogue.min_repetition <= 1:
        problems.append(
            f"sft_dialogue.min_repetition={preset.sft_dialogue.min_repetition:g} is not a rate in "
            "[0, 1]"
        )
    return problems


def _check_stage(stage: str, section: SftStage | DpoStage) -> list[str]:
    """Check the options of one training stage, ours and TRL's."""
    problems = _check_numbers(stage, section.trl)
    if section.train_batch_size < 0:
        problems.append(
            f"{stage}.train_batch_size={section.train_batch_size} must not be negative; 0 "
            "leaves it to per_device_train_batch_size and gradient_accumulation_steps"
        )
    order = section.trl.get("train_sampling_strategy", "random")
    if order not in SAMPLING:
        problems.append(
            f"{stage}.train_sampling_strategy={order!r} is not one of {', '.join(SAMPLING)}"
        )
    if isinstance(section, SftStage) and section.trl.get("loss_type", "nll") != "nll":
        problems.append(f"{stage}.loss_type is nll here; remove it")
    if section.train_batch_size and "gradient_accumulation_steps" in section.trl:
        problems.append(
            f"{stage} sets both train_batch_size and gradient_accumulation_steps; the first "
            "decides the second, remove one"
        )
    return problems


def _check_date(day: str | None) -> list[str]:
    try:
        if day is None or date.fromisoformat(day).isoformat() == day:
            return []
    except ValueError:
        pass
    return [f"run.date={day!r} is not a date; write it as year, month and day, like 2026-01-31"]


def check_measuring(section: EvalSection) -> list[str]:
    """Check the rules of the measurements, from a preset or a command line."""
    problems = []
    for where, value in (
        ("repetition.cap", section.repetition.cap),
        ("safety.cap", section.safety.cap),
    ):
        if value < 1:
            problems.append(f"eval.{where}={value} must be at least one token")
    for where, own in (("repetition", section.repetition), ("safety", section.safety)):
        if own.prompts and own.limit is not None and own.limit < 1:
            problems.append(
                f"eval.{where}.limit={own.limit} must be at least one prompt, or null for all; "
                f"eval.{where}.prompts=null leaves the measure out"
            )
    if section.repetition.temperature < 0:
        problems.append(
            f"eval.repetition.temperature={section.repetition.temperature:g} must not be "
            "negative; 0 leaves the sampled measure out"
        )
    problems += _check_limits(section)
    problems += _check_each_epoch(section)
    return problems + _check_backend(section)


def _check_numbers(stage: str, options: Mapping[str, Any]) -> list[str]:
    """Find numbers that TRL accepts but that train nothing or fail during training."""
    problems = []
    length = options.get("max_length")
    if isinstance(length, int) and length < 2:
        problems.append(f"{stage}.max_length={length} must be at least 2, or null for no limit")
    for name in ("per_device_train_batch_size", "gradient_accumulation_steps"):
        count = options.get(name)
        if isinstance(count, int) and count < 1:
            problems.append(f"{stage}.{name}={count} must be at least 1")
    workers = options.get("dataloader_num_workers")
    if isinstance(workers, int) and not 0 <= workers <= MOST_WORKERS:
        problems.append(
            f"{stage}.dataloader_num_workers={workers} must be from 0 to {MOST_WORKERS} processes"
        )
    often = options.get("save_steps")
    if isinstance(often, int | float) and not often > 0:
        problems.append(
            f"{stage}.save_steps={often:g} keeps no checkpoint to go on from; give a number of "
            "steps, or a share of them below 1"
        )
    rate = options.get("learning_rate")
    if isinstance(rate, float) and not 0 <= rate < math.inf:
        problems.append(f"{stage}.learning_rate={rate:g} must be a number, zero or above")
    noise = options.get("neftune_noise_alpha")
    if isinstance(noise, float) and not 0 <= noise < math.inf:
        problems.append(
            f"{stage}.neftune_noise_alpha={noise:g} must be a number, zero or above, or null"
        )
    epochs = options.get("num_train_epochs")
    steps = options.get("max_steps")
    counted = isinstance(steps, int) and steps > 0
    if isinstance(epochs, float) and not counted and not 0 < epochs < math.inf:
        problems.append(
            f"{stage}.num_train_epochs={epochs:g} trains nothing or never ends; give a number "
            f"above 0, or set {stage}.enabled=false"
        )
    return problems


def _check_pairs(preset: Preset) -> list[str]:
    """Check the preference stage and the sampling for it, which would fail last."""
    if not preset.dpo.enabled:
        return []
    problems = []
    beta = preset.dpo.trl.get("beta")
    if isinstance(beta, float) and not 0 < beta < math.inf:
        problems.append(f"dpo.beta={beta:g} must be above 0, or no preference is learned")
    if preset.data.preference:
        return problems
    own = preset.pairs
    if own.samples_per_prompt < 2:
        problems.append(
            f"pairs.samples_per_prompt={own.samples_per_prompt} must be at least 2, an answer to "
            "choose and one to reject"
        )
    if own.max_new_tokens < 1:
        problems.append(f"pairs.max_new_tokens={own.max_new_tokens} must be at least 1")
    if not 0 < own.temperature < math.inf:
        problems.append(
            f"pairs.temperature={own.temperature:g} must be above 0, or all answers to a prompt "
            "are one"
        )
    return problems


def _check_limits(section: EvalSection) -> list[str]:
    problems = []
    if section.limit is not None and section.limit < 1:
        problems.append(
            f"eval.limit={section.limit} must be at least one document of each task, or null for "
            "all; eval.tasks=[] leaves the benchmarks out"
        )
    asked = {"eval": section} | {f"eval.per_task.{t}": own for t, own in section.per_task.items()}
    for at, own in asked.items():
        for name in ("base_shots", "chat_shots"):
            count = getattr(own, name)
            if count is not None and count < 0:
                problems.append(f"{at}.{name}={count} must be a number of examples, 0 or more")
    for task, one in section.per_task.items():
        if one.max_gen_toks is not None and one.max_gen_toks < 1:
            problems.append(
                f"eval.per_task.{task}.max_gen_toks={one.max_gen_toks} must be at least one token"
            )
    return problems


def _check_each_epoch(section: EvalSection) -> list[str]:
    own = section.each_epoch
    problems = []
    if own.prompts < 0 or own.limit < 1:
        problems.append(
            f"eval.each_epoch: prompts={own.prompts} must not be negative and limit={own.limit} at "
            "least one document"
        )
    for task in own.tasks or ():
        if task not in section.tasks:
            problems.append(
                f"eval.each_epoch.tasks lists {task!r}, which eval.tasks lacks; list it there too, "
                "so that no row with its questions is trained"
            )
    tasks = section.tasks if own.tasks is None else own.tasks
    if own.enabled and not tasks and not (own.prompts and section.repetition.prompts):
        problems.append(
            "eval.each_epoch.enabled=true measures nothing: give it prompts (and "
            "eval.repetition.prompts) or tasks, or set it to false"
        )
    return problems


def _check_backend(section: EvalSection) -> list[str]:
    if section.in_parts is True and section.backend == "vllm":
        return [
            "eval.in_parts=true is for eval.backend=transformers; vLLM loads a whole model in each "
            "process; remove one of them"
        ]
    if not section.vllm_python or section.backend == "vllm":
        return []
    return [
        f"eval.vllm_python={section.vllm_python} has no effect on eval.backend={section.backend}; "
        "set eval.backend=vllm or remove it"
    ]


def _check_lora(preset: Preset) -> list[str]:
    """Check the adapter and the options that need one."""
    lora, plain = preset.lora, LoraSection()
    if lora.r < 0:
        return [f"lora.r={lora.r} must be 0 (full fine-tuning) or positive"]
    if lora.r > 0:
        problems = []
        if not 0 <= lora.lora_dropout < 1:
            problems.append(f"lora.lora_dropout={lora.lora_dropout:g} must be a share in [0, 1)")
        if lora.lora_alpha < 1:
            problems.append(
                f"lora.lora_alpha={lora.lora_alpha} must be at least 1, or the adapter adds nothing"
            )
        return problems
    problems = [
        f"lora.{key}={str(getattr(lora, key)).lower()} has no effect with lora.r=0 (full "
        "fine-tuning); set lora.r or remove it"
        for key in ("use_rslora", "use_dora", "between_stages")
        if getattr(lora, key) != getattr(plain, key)
    ]
    if preset.model.load_in_4bit:
        problems.append(
            "model.load_in_4bit=true freezes the weights, and lora.r=0 trains them; set lora.r"
        )
    return problems


def _check_source(source: Source, *, where: str, at: str) -> list[str]:
    """Check one source; `where` is the key of its list."""
    problems = []
    for name in sorted(set.union(*SOURCE_OPTIONS.values()) - SOURCE_OPTIONS[where]):
        if getattr(source, name) != getattr(Source(), name):
            problems.append(f"{at}.{name} has no effect on {where}; remove it")
    if source.weight < 0:
        problems.append(f"{at}.weight={source.weight} must not be negative")
    if source.count is not None and (source.count < 1 or source.weight != 1.0):
        problems.append(f"{at}.count={source.count} must be positive and stand without weight")
    for kind, pattern in source.kind_rule.items():
        try:
            re.compile(pattern)
        except (re.error, TypeError) as error:
            problems.append(f"{at}.kind_rule.{kind}={pattern!r} is no regular expression ({error})")
    return problems
