"""Check the rules between a preset's values that types cannot express."""

import math
import re
from collections.abc import Iterator, Mapping
from datetime import date
from typing import Any

from sft.config.sections import (
    SOURCE_OPTIONS,
    DpoStage,
    EvalSection,
    LoraSection,
    PairsSection,
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
STAGES = ("sft_all", "sft_dialogue", "dpo")


def check_rules(preset: Preset) -> Iterator[str]:
    """Yield a sentence for each rule between values that the preset breaks."""
    yield from _check_run(preset.run)
    yield from _check_model(preset)
    yield from _check_data(preset)
    yield from check_measuring(preset.eval)
    yield from _check_preference(preset)
    yield from _check_dialogue(preset)
    yield from _check_lora(preset)
    for stage in STAGES:
        yield from _check_stage(stage, getattr(preset, stage))


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
    for name in ("spike_factor", "collapse_nats", "loop_checks", "loop_rise", "loop_budget"):
        if (value := getattr(run, name)) < 0:
            yield f"run.{name}={value:g} must be positive, or 0 for no limit"


def _check_model(preset: Preset) -> Iterator[str]:
    if not preset.model.name_or_path:
        yield "model.name_or_path is missing; name a local directory or a hub id"
    if not 0 <= preset.model.max_unknown <= 1:
        yield (
            f"model.max_unknown={preset.model.max_unknown:g} must be a share of characters from 0 "
            "to 1 (1: any text is trained and measured, however much the tokenizer loses)"
        )


def _check_data(preset: Preset) -> Iterator[str]:
    data = preset.data
    if not data.sft and (preset.sft_all.enabled or preset.sft_dialogue.enabled):
        yield NO_SOURCE
    if preset.dpo.enabled and not (data.preference or preset.pairs.prompts):
        yield NO_PREFERENCE
    if not 0 <= data.near_duplicates <= 1:
        yield (
            f"data.near_duplicates={data.near_duplicates} must be an overlap from 0 (exact "
            "duplicates only) to 1"
        )
    if not data.system_prompt.strip():
        yield (
            "data.system_prompt is empty; give a text, none, or template (the template's default)"
        )
    for where in SOURCE_OPTIONS:
        section, key = where.split(".")
        for i, source in enumerate(getattr(getattr(preset, section), key)):
            yield from _check_source(source, where=where, at=f"{where}[{i}]")


def _check_source(source: Source, *, where: str, at: str) -> Iterator[str]:
    """Check one source; `where` is the key of its list."""
    for name in sorted(set.union(*SOURCE_OPTIONS.values()) - SOURCE_OPTIONS[where]):
        if getattr(source, name) != getattr(Source(), name):
            yield f"{at}.{name} has no effect on {where}; remove it"
    if source.weight < 0:
        yield f"{at}.weight={source.weight} must not be negative"
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
    if not 0 <= dialogue.min_repetition <= 1:
        yield f"sft_dialogue.min_repetition={dialogue.min_repetition:g} is not a rate in [0, 1]"


def _check_stage(stage: str, section: SftStage | DpoStage) -> Iterator[str]:
    """Check the options of one training stage, ours and TRL's."""
    yield from _check_numbers(stage, section.trl)
    if section.train_batch_size < 0:
        yield (
            f"{stage}.train_batch_size={section.train_batch_size} must not be negative; 0 "
            "leaves it to per_device_train_batch_size and gradient_accumulation_steps"
        )
    order = section.trl.get("train_sampling_strategy", "random")
    if order not in SAMPLING:
        yield f"{stage}.train_sampling_strategy={order!r} is not one of {', '.join(SAMPLING)}"
    if isinstance(section, SftStage) and section.trl.get("loss_type", "nll") != "nll":
        yield f"{stage}.loss_type is nll here; remove it"
    if section.train_batch_size and "gradient_accumulation_steps" in section.trl:
        yield (
            f"{stage} sets both train_batch_size and gradient_accumulation_steps; the first "
            "decides the second, remove one"
        )


def _check_numbers(stage: str, options: Mapping[str, Any]) -> Iterator[str]:
    """Find numbers that TRL accepts but that train nothing or fail during training."""
    # A value of the wrong type has its own sentence already, so each rule skips such values.
    length = options.get("max_length")
    if isinstance(length, int) and length < 2:
        yield f"{stage}.max_length={length} must be at least 2, or null for no limit"
    for name in ("per_device_train_batch_size", "gradient_accumulation_steps"):
        count = options.get(name)
        if isinstance(count, int) and count < 1:
            yield f"{stage}.{name}={count} must be at least 1"
    workers = options.get("dataloader_num_workers")
    if isinstance(workers, int) and not 0 <= workers <= MOST_WORKERS:
        yield f"{stage}.dataloader_num_workers={workers} must be from 0 to {MOST_WORKERS} processes"
    interval = options.get("save_steps")
    if isinstance(interval, int | float) and not interval > 0:
        yield (
            f"{stage}.save_steps={interval:g} saves no checkpoint to resume from; give a number of "
            "steps, or a share of them below 1"
        )
    for name, null in (("learning_rate", ""), ("neftune_noise_alpha", ", or null")):
        value = options.get(name)
        if isinstance(value, float) and not 0 <= value < math.inf:  # NaN fails, too
            yield f"{stage}.{name}={value:g} must be a number, zero or above{null}"
    epochs, steps = options.get("num_train_epochs"), options.get("max_steps")
    overridden = isinstance(steps, int) and steps > 0  # the Trainer then ignores the epochs
    if isinstance(epochs, float) and not overridden and not 0 < epochs < math.inf:
        yield (
            f"{stage}.num_train_epochs={epochs:g} trains nothing or never ends; give a number "
            f"above 0, or set {stage}.enabled=false"
        )


def _check_preference(preset: Preset) -> Iterator[str]:
    """Check the preference stage and its sampling, which would fail hours into a run."""
    if not preset.dpo.enabled:
        return
    beta = preset.dpo.trl.get("beta")
    if isinstance(beta, float) and not 0 < beta < math.inf:
        yield f"dpo.beta={beta:g} must be above 0, or no preference is learned"
    if not preset.data.preference:
        yield from _check_pairs(preset.pairs)


def _check_pairs(pairs: PairsSection) -> Iterator[str]:
    if pairs.samples_per_prompt < 2:
        yield (
            f"pairs.samples_per_prompt={pairs.samples_per_prompt} must be at least 2, an answer to "
            "choose and one to reject"
        )
    if pairs.max_new_tokens < 1:
        yield f"pairs.max_new_tokens={pairs.max_new_tokens} must be at least 1"
    if not 0 < pairs.temperature < math.inf:
        yield (
            f"pairs.temperature={pairs.temperature:g} must be above 0, or all answers to a prompt "
            "are the same"
        )


def check_measuring(section: EvalSection) -> Iterator[str]:
    """Yield a sentence for each broken rule of the measurements, of a preset or a command line."""
    for where in ("repetition", "safety"):
        own = getattr(section, where)
        if own.cap < 1:
            yield f"eval.{where}.cap={own.cap} must be at least one token"
        if own.prompts and own.limit is not None and own.limit < 1:
            yield (
                f"eval.{where}.limit={own.limit} must be at least one prompt, or null for all; "
                f"eval.{where}.prompts=null skips the measurement"
            )
    if section.repetition.temperature < 0:
        yield (
            f"eval.repetition.temperature={section.repetition.temperature:g} must not be "
            "negative; 0 skips the sampled measurement"
        )
    yield from _check_tasks(section)
    yield from _check_each_epoch(section)
    yield from _check_backend(section)


def _check_tasks(section: EvalSection) -> Iterator[str]:
    if section.limit is not None and section.limit < 1:
        yield (
            f"eval.limit={section.limit} must be at least one document of each task, or null for "
            "all; eval.tasks=[] skips the benchmarks"
        )
    options = {"eval": section} | {f"eval.per_task.{t}": o for t, o in section.per_task.items()}
    for at, own in options.items():
        for name in ("base_shots", "chat_shots"):
            count = getattr(own, name)
            if count is not None and count < 0:
                yield f"{at}.{name}={count} must be a number of examples, 0 or more"
    for task, own in section.per_task.items():
        if own.max_gen_toks is not None and own.max_gen_toks < 1:
            yield f"eval.per_task.{task}.max_gen_toks={own.max_gen_toks} must be at least one token"


def _check_each_epoch(section: EvalSection) -> Iterator[str]:
    own = section.each_epoch
    if own.prompts < 0 or own.limit < 1:
        yield (
            f"eval.each_epoch: prompts={own.prompts} must not be negative and limit={own.limit} at "
            "least one document"
        )
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


def _check_backend(section: EvalSection) -> Iterator[str]:
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


def _check_lora(preset: Preset) -> Iterator[str]:
    """Check the adapter and the options that need one."""
    lora, default = preset.lora, LoraSection()
    if lora.r < 0:
        yield f"lora.r={lora.r} must be 0 (full fine-tuning) or positive"
    elif lora.r > 0:
        if not 0 <= lora.lora_dropout < 1:
            yield f"lora.lora_dropout={lora.lora_dropout:g} must be a share in [0, 1)"
        if lora.lora_alpha < 1:
            yield (
                f"lora.lora_alpha={lora.lora_alpha} must be at least 1, or the adapter adds nothing"
            )
    else:
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
