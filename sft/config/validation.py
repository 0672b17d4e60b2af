"""Check the rules between a preset's values that types cannot express."""

import math
import re
import sys
from collections.abc import Iterator, Mapping
from datetime import date
from typing import Any

from sft.config.sections import (
    SOURCE_OPTIONS,
    DpoStage,
    EvalSection,
    LoraSection,
    Preset,
    RunSection,
    SftStage,
    Source,
)

# Dataloader processes per training process; no machine has cores for more.
MOST_WORKERS = 256
# transformers treats any other name as random (Trainer._get_train_sampler).
SAMPLING = ("random", "sequential", "group_by_length", "batch_rebalance")
NO_SOURCE = "data.sft is empty; list at least one source of chats"
NO_PREFERENCE = (
    "dpo.enabled=true needs data.preference (given pairs) or pairs.prompts (to sample from)"
)
# Sections of the stages, in their order.
STAGES = ("sft_all", "sft_dialogue", "dpo")


# Bounds as (least, most). NaN is within none of them.
NOT_NEGATIVE = (0, sys.float_info.max)
POSITIVE = (math.nextafter(0, 1), sys.float_info.max)
AT_LEAST_1 = (1, math.inf)
SHARE = (0, 1)


def check_rules(preset: Preset) -> Iterator[str]:
    """Yield a sentence for each rule between values that the preset breaks."""
    yield from _check_run(preset.run)
    if not preset.model.name_or_path:
        yield "model.name_or_path is missing; name a local directory or a hub id"
    loses = "1: any text is trained and measured, however much the tokenizer loses"
    rule = f"must be a share of characters from 0 to 1 ({loses})"
    yield from _check_bounds(preset.model, "model", max_unknown=(SHARE, rule))
    yield from _check_data(preset)
    yield from check_measuring(preset.eval)
    yield from _check_preference(preset)
    yield from _check_dialogue(preset)
    yield from _check_lora(preset)
    for stage in STAGES:
        yield from _check_stage(stage, getattr(preset, stage))


def _check_bounds(section: Any, at: str, **rules: tuple[tuple[float, float], str]) -> Iterator[str]:
    """Yield a sentence for each number of a section, or of a mapping, that is out of its bounds."""
    values = section if isinstance(section, Mapping) else vars(section)
    for name, ((least, most), rule) in rules.items():
        value = values.get(name)
        # A value of the wrong type has its own sentence; null means no limit.
        if isinstance(value, int | float) and not least <= value <= most:
            shown = f"{value:g}" if isinstance(value, float) else value
            yield f"{at}.{name}={shown} {rule}"


def _check_run(run: RunSection) -> Iterator[str]:
    try:
        # Python 3.11 accepts other ISO forms (20260131), which would give one day two hashes.
        valid = run.date is None or date.fromisoformat(run.date).isoformat() == run.date
    except ValueError:
        valid = False
    if not valid:
        yield (
            f"run.date={run.date!r} is not a date; write it as year, month and day, like 2026-01-31"
        )
    limits = ("spike_factor", "collapse_nats", "loop_checks", "loop_rise", "loop_budget")
    rule = ((0, math.inf), "must be positive, or 0 for no limit")
    yield from _check_bounds(run, "run", **dict.fromkeys(limits, rule))


def _check_data(preset: Preset) -> Iterator[str]:
    data = preset.data
    if not data.sft and (preset.sft_all.enabled or preset.sft_dialogue.enabled):
        yield NO_SOURCE
    if preset.dpo.enabled and not (data.preference or preset.pairs.prompts):
        yield NO_PREFERENCE
    rule = "must be an overlap from 0 (exact duplicates only) to 1"
    yield from _check_bounds(data, "data", near_duplicates=(SHARE, rule))
    if not data.system_prompt.strip():
        yield "data.system_prompt is empty; give a text, none, or template (the template's default)"
    for where in SOURCE_OPTIONS:
        section, key = where.split(".")
        for i, source in enumerate(getattr(getattr(preset, section), key)):
            yield from _check_source(source, where=where, at=f"{where}[{i}]")


def _check_source(source: Source, *, where: str, at: str) -> Iterator[str]:
    """Check one source; `where` is the key of its list."""
    # A key that the list would ignore is a mistake: the user expects an effect.
    for name in sorted(set.union(*SOURCE_OPTIONS.values()) - SOURCE_OPTIONS[where]):
        if getattr(source, name) != getattr(Source(), name):
            yield f"{at}.{name} has no effect on {where}; remove it"
    yield from _check_bounds(source, at, weight=((0, math.inf), "must not be negative"))
    if source.count is not None and (source.count < 1 or source.weight != 1.0):
        yield f"{at}.count={source.count} must be positive and used without weight"
    for kind, pattern in source.kind_rule.items():
        try:
            re.compile(pattern)
        except (re.error, TypeError) as error:
            yield f"{at}.kind_rule.{kind}={pattern!r} is not a regular expression ({error})"


def _check_dialogue(preset: Preset) -> Iterator[str]:
    dialogue = preset.sft_dialogue
    if dialogue.enabled == "auto" and not preset.sft_all.enabled:
        yield (
            "sft_dialogue.enabled=auto depends on the repetition rate of stage 1, and "
            "sft_all.enabled=false skips stage 1; set one of them"
        )
    rule = "is not a rate in [0, 1]"
    yield from _check_bounds(dialogue, "sft_dialogue", min_repetition=(SHARE, rule))


def _check_stage(stage: str, section: SftStage | DpoStage) -> Iterator[str]:
    """Check the options of one training stage, ours and TRL's."""
    options = section.trl
    batch_rule = (
        "must not be negative; 0 leaves it to per_device_train_batch_size and "
        "gradient_accumulation_steps"
    )
    yield from _check_bounds(section, stage, train_batch_size=(NOT_NEGATIVE, batch_rule))
    # Numbers that TRL accepts, but that train nothing or fail during training.
    yield from _check_bounds(
        options,
        stage,
        max_length=((2, math.inf), "must be at least 2, or null for no limit"),
        per_device_train_batch_size=(AT_LEAST_1, "must be at least 1"),
        gradient_accumulation_steps=(AT_LEAST_1, "must be at least 1"),
        dataloader_num_workers=((0, MOST_WORKERS), f"must be from 0 to {MOST_WORKERS} processes"),
        save_steps=(
            (math.nextafter(0, 1), math.inf),
            "saves no checkpoint to resume from; give a number of steps, or a share of them below "
            "1",
        ),
        learning_rate=(NOT_NEGATIVE, "must be a number, zero or above"),
        neftune_noise_alpha=(NOT_NEGATIVE, "must be a number, zero or above, or null"),
    )
    steps = options.get("max_steps")
    if not (isinstance(steps, int) and steps > 0):  # otherwise the Trainer ignores the epochs
        rule = "trains nothing or never ends; give a number above 0, or set "
        rule += f"{stage}.enabled=false"
        yield from _check_bounds(options, stage, num_train_epochs=(POSITIVE, rule))
    order = options.get("train_sampling_strategy", "random")
    if order not in SAMPLING:
        yield f"{stage}.train_sampling_strategy={order!r} is not one of {', '.join(SAMPLING)}"
    if isinstance(section, SftStage) and options.get("loss_type", "nll") != "nll":
        yield f"{stage}.loss_type is nll here; remove it"
    if section.train_batch_size and "gradient_accumulation_steps" in options:
        yield (
            f"{stage} sets both train_batch_size and gradient_accumulation_steps; the first "
            "decides the second, remove one"
        )


def _check_preference(preset: Preset) -> Iterator[str]:
    """Check the preference stage and its sampling, which would fail hours into a run."""
    if not preset.dpo.enabled:
        return
    rule = "must be above 0, or no preference is learned"
    yield from _check_bounds(preset.dpo.trl, "dpo", beta=(POSITIVE, rule))
    if preset.data.preference:
        return
    yield from _check_bounds(
        preset.pairs,
        "pairs",
        samples_per_prompt=(
            (2, math.inf),
            "must be at least 2, an answer to choose and one to reject",
        ),
        max_new_tokens=(AT_LEAST_1, "must be at least 1"),
        temperature=(POSITIVE, "must be above 0, or all answers to a prompt are the same"),
    )


def check_measuring(section: EvalSection) -> Iterator[str]:
    """Yield a sentence for each broken rule of the measurements, of a preset or a command line."""
    for name in ("repetition", "safety"):
        own, at = getattr(section, name), f"eval.{name}"
        yield from _check_bounds(own, at, cap=(AT_LEAST_1, "must be at least one token"))
        rule = (
            f"must be at least one prompt, or null for all; {at}.prompts=null skips the measurement"
        )
        if own.prompts:
            yield from _check_bounds(own, at, limit=(AT_LEAST_1, rule))
    rule = "must not be negative; 0 skips the sampled measurement"
    temperature = ((0, math.inf), rule)
    yield from _check_bounds(section.repetition, "eval.repetition", temperature=temperature)
    rule = (
        "must be at least one document of each task, or null for all; eval.tasks=[] skips the "
        "benchmarks"
    )
    yield from _check_bounds(section, "eval", limit=(AT_LEAST_1, rule))
    shots = (NOT_NEGATIVE, "must be a number of examples, 0 or more")
    tokens = (AT_LEAST_1, "must be at least one token")
    tasks = {f"eval.per_task.{task}": options for task, options in section.per_task.items()}
    for at, own in {"eval": section, **tasks}.items():
        yield from _check_bounds(own, at, base_shots=shots, chat_shots=shots, max_gen_toks=tokens)
    yield from _check_each_epoch(section)
    if section.in_parts is True and section.backend == "vllm":
        yield (
            "eval.in_parts=true requires eval.backend=transformers; vLLM loads the full model in "
            "each process; remove one of them"
        )
    if section.vllm_python and section.backend != "vllm":
        yield (
            f"eval.vllm_python={section.vllm_python} has no effect on "
            f"eval.backend={section.backend}; set eval.backend=vllm or remove it"
        )


def _check_each_epoch(section: EvalSection) -> Iterator[str]:
    own = section.each_epoch
    if own.prompts < 0 or own.limit < 1:
        yield (
            f"eval.each_epoch: prompts={own.prompts} must not be negative and limit={own.limit} at "
            "least one document"
        )
    # Only the questions of eval.tasks are searched in the training rows.
    for task in own.tasks or ():
        if task not in section.tasks:
            yield (
                f"eval.each_epoch.tasks lists {task!r}, which eval.tasks lacks; list it there too, "
                "so that no row with its questions is trained"
            )
    tasks = section.tasks if own.tasks is None else own.tasks
    if own.enabled and not tasks and not (own.prompts and section.repetition.prompts):
        yield (
            "eval.each_epoch.enabled=true measures nothing: give it prompts (and "
            "eval.repetition.prompts) or tasks, or set it to false"
        )


def _check_lora(preset: Preset) -> Iterator[str]:
    """Check the adapter and the options that need one."""
    lora, default = preset.lora, LoraSection()
    rule = "must be 0 (full fine-tuning) or positive"
    yield from _check_bounds(lora, "lora", r=(NOT_NEGATIVE, rule))
    if lora.r > 0:
        dropout = ((0, math.nextafter(1, 0)), "must be a share in [0, 1)")
        alpha = (AT_LEAST_1, "must be at least 1, or the adapter adds nothing")
        yield from _check_bounds(lora, "lora", lora_dropout=dropout, lora_alpha=alpha)
    elif lora.r == 0:
        for key in ("use_rslora", "use_dora", "between_stages"):
            if (value := getattr(lora, key)) != getattr(default, key):
                yield (
                    f"lora.{key}={str(value).lower()} has no effect with lora.r=0 (full "
                    "fine-tuning); set lora.r or remove it"
                )
        if preset.model.load_in_4bit:
            yield (
                "model.load_in_4bit=true freezes the weights, and lora.r=0 trains them; set lora.r"
            )
