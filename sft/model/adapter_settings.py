"""Check the settings of a given adapter before PEFT reads them."""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from peft import LoraConfig

from sft.errors import UserError
from sft.model.model_files import is_number, read_settings
from sft.run.adapters import BASE, CONFIG, adapter_base, is_adapter
from sft.system.time_limit import cpu_seconds

# Remedy in errors on adapters that truing does not load.
MERGE_FIRST = "merge it into its base with peft first, where peft can, or train one without"
# Fields of a LoRA adapter; any other must have PEFT's default, since it may name code
# (megatron_core), other layers than the base's, or another computation.
LORA_FIELDS = frozenset(
    {
        *("base_model_name_or_path", "revision", "peft_type", "task_type", "inference_mode"),
        *("peft_version", "auto_mapping", "r", "lora_alpha", "lora_dropout", "fan_in_fan_out"),
        *("bias", "lora_bias", "use_rslora", "use_dora", "rank_pattern", "alpha_pattern"),
        *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),
        *("target_parameters", "trainable_token_indices", "modules_to_save"),
        *("ensure_weight_tying", "init_lora_weights", "eva_config"),
        *("megatron_core", "qalora_group_size"),  # without effect on their own
    }
)
HIGHEST_RANK = 1 << 16
FLAGS = (
    *("use_rslora", "use_dora", "fan_in_fan_out", "inference_mode"),
    *("lora_bias", "ensure_weight_tying"),
)
MATCHING = 2.0  # seconds of CPU time to match one pattern with all module names
# PEFT initializes the weights again before it loads them. PiSSA and OLoRA subtract their first
# product from the base there, as they did before training; both are exact.
REPEATED = re.compile(r"gaussian|orthogonal|olora|eva|pissa")
# These subtract from the base, too, and PEFT cannot repeat it: pissa_niter_N takes a random
# approximation, CorDA needs data, and LoRA-GA gradients, without which PEFT leaves the base as is.
UNREPEATABLE = re.compile(r"pissa_niter_.*|corda.*|lora_ga", re.DOTALL)


def check_adapter(path: str, *, given: str) -> None:
    """Check that an adapter is LoRA over a full model and that its settings are within bounds.

    For other kinds of adapters PEFT may load tokenizers with their code. Does nothing for a model.

    Args:
        path: a directory or a Hub id.
        given: the model as the user wrote it.
    """
    if not is_adapter(path):
        return
    at = f"model.name_or_path={given}"
    config = read_settings(Path(path) / CONFIG, given=given)
    if (kind := config.get("peft_type")) != "LORA":
        raise UserError(
            f"{at} is an adapter of kind {str(kind)[:80]!r}, and only LORA is loaded; merge it "
            "into its base with peft first, where peft can, or train a LoRA"
        )
    _check_bounds(config, given=given)
    plain = LoraConfig().to_dict()
    others = [name for name in sorted(plain.keys() - LORA_FIELDS) if config.get(name)]
    if others := [name for name in others if config[name] != plain[name]]:
        raise UserError(
            f"{at}: its {CONFIG} sets {', '.join(others)}, with which no adapter is loaded here; "
            f"{MERGE_FIRST}"
        )
    write_base = "write the base's directory or hub id there"
    recorded = config.get(BASE)
    if not isinstance(recorded, str) or not recorded:
        raise UserError(f"{at}: its {CONFIG} names no {BASE}; {write_base}")
    try:
        again = is_adapter(base := adapter_base(path))
    except OSError as error:  # for example, a name that is too long
        raise UserError(
            f"{at}: {CONFIG}: {BASE}={recorded[:80]!r} cannot be read ({error.strerror}); "
            f"{write_base}"
        ) from None
    if again:
        raise UserError(
            f"{at} is an adapter over {base}, an adapter again; merge that into its base first"
        )


def adapter_settings(path: str, *, given: str) -> dict[str, Any]:
    """Return the content of an adapter's adapter_config.json.

    Raises:
        UserError: it is damaged, or a setting is of another type than PEFT's or out of bounds.
    """
    config = read_settings(Path(path) / CONFIG, given=given)
    _check_bounds(config, given=given)
    return config


def _check_bounds(config: dict[str, Any], *, given: str) -> None:
    for field, problem in _problems(config):
        shown = f"{field}={str(config.get(field))[:80]!r}"
        raise UserError(f"model.name_or_path={given}: {CONFIG}: {shown} {problem}")


def _problems(config: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield (field, problem and remedy)."""
    rank = config.get("r", 8)
    if not (is_number(rank, int) and 1 <= rank <= HIGHEST_RANK):
        yield "r", f"is no rank from 1 to {HIGHEST_RANK:,}; correct it"
    for field in ("lora_alpha", "lora_dropout"):
        value = config.get(field, 0.0)
        if not (is_number(value) and value >= 0.0):
            yield field, "is no number of at least 0; correct it"
    if config.get("bias", "none") not in ("none", "all", "lora_only"):
        yield "bias", "is none of none, all and lora_only; correct it"
    tokens = config.get("trainable_token_indices") or []
    if not all(_ids(ids) for ids in (tokens.values() if isinstance(tokens, dict) else [tokens])):
        yield "trainable_token_indices", "is no list of token ids; correct it"
    for field in FLAGS:
        if not isinstance(config.get(field, False), bool):
            yield field, "is neither true nor false; correct it"
    for field in ("target_modules", "exclude_modules", "target_parameters", "modules_to_save"):
        value = config.get(field)
        pattern = isinstance(value, str) and field.endswith("_modules")
        if not (value is None or pattern or _texts(value)):
            yield field, "is no list of names; correct it"
    for field in ("rank_pattern", "alpha_pattern"):
        value = config.get(field)
        if value and not (isinstance(value, dict) and _ranks(value.values())):
            yield field, f"must give each pattern a number up to {HIGHEST_RANK:,}; correct it"
    begin = config.get("init_lora_weights", True)
    if isinstance(begin, str) and UNREPEATABLE.fullmatch(begin):
        yield (
            "init_lora_weights",
            "changes the base by values that PEFT cannot reproduce when it loads the adapter, so "
            "that it computes other logits than were trained; in the process that trains it, save "
            "it with path_initial_model_for_weight_conversion (PEFT's save_pretrained) or save "
            "its merge_and_unload(), or train again with init_lora_weights=pissa",
        )
    elif not (
        isinstance(begin, bool | None) or (isinstance(begin, str) and REPEATED.fullmatch(begin))
    ):
        problem = f"is an initialization with which no adapter is loaded here; {MERGE_FIRST}"
        yield "init_lora_weights", problem


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


def _ids(value: Any) -> bool:
    return isinstance(value, list) and all(is_number(i, int) and i >= 0 for i in value)


def _ranks(values: Iterable[Any]) -> bool:
    return all(is_number(value) and 0 < value <= HIGHEST_RANK for value in values)


def check_patterns(config: dict[str, Any], names: Iterable[str], *, given: str) -> None:
    """Check that an adapter's regular expressions are valid and end within a time limit.

    Args:
        names: names of the model's modules.
    """
    names = list(names)
    for field, pattern in _patterns(config):
        try:
            with cpu_seconds(MATCHING):
                compiled = re.compile(pattern)
                for name in names:
                    compiled.match(name)
        except (re.error, TimeoutError, RecursionError, OverflowError) as error:
            raise UserError(
                f"model.name_or_path={given}: {CONFIG}: {field} holds a regular expression that "
                f"cannot be used ({str(error)[:100]}); list the names of layers instead"
            ) from None


def _patterns(config: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield (field, regular expression), in the form that PEFT matches."""
    for field in ("target_modules", "exclude_modules"):
        if isinstance(config.get(field), str):
            yield field, rf"(?:{config[field]})\Z"
    for field in ("rank_pattern", "alpha_pattern"):
        for key in config.get(field) or ():
            yield field, rf"(.*\.)?({key})$"
    layers = config.get("layers_pattern") or ()
    for pattern in [layers] if isinstance(layers, str) else layers:
        yield "layers_pattern", rf".*\.{pattern}\.(\d+)\."
