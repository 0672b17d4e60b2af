"""Settings of a given adapter, held against bounds before PEFT reads them."""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from sft.errors import UserError
from sft.model.model_files import read_settings
from sft.run.adapters import CONFIG
from sft.system.time_limit import cpu_seconds

# What can be done with an adapter that is not loaded here.
MERGE_FIRST = "merge it into its base with peft first, where peft can, or train one without"
HIGHEST_RANK = 1 << 16
FLAGS = (
    *("use_rslora", "use_dora", "fan_in_fan_out", "inference_mode"),
    *("lora_bias", "ensure_weight_tying"),
)
MATCHING = 2.0  # seconds of computing for all names of a model's modules
# PEFT initializes the weights again before it loads them. PiSSA and OLoRA subtract their first
# product from the base there, as they did before training; both are exact.
REPEATED = re.compile(r"gaussian|orthogonal|olora|eva|pissa")
# These subtract from the base, too, and PEFT cannot do the same again: pissa_niter_N takes a random
# approximation, CorDA needs data, and LoRA-GA gradients, without which PEFT leaves the base whole.
UNREPEATABLE = re.compile(r"pissa_niter_.*|corda.*|lora_ga", re.DOTALL)


def adapter_settings(path: str, *, given: str) -> dict[str, Any]:
    """The adapter_config.json of an adapter's directory.

    Args:
        given: as the user wrote it.

    Raises:
        UserError: it is damaged, or a setting is of another type than PEFT's or out of bounds.
    """
    config = read_settings(Path(path) / CONFIG, given=given)
    for field, rule in _flaws(config):
        raise UserError(
            f"model.name_or_path={given}: {CONFIG}: {field}={str(config.get(field))[:80]!r} {rule}"
        )
    return config


def _flaws(config: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """(field, what is wrong with it and what to do)."""
    rank = config.get("r", 8)
    if not _whole(rank) or not 1 <= rank <= HIGHEST_RANK:
        yield "r", f"is no rank from 1 to {HIGHEST_RANK:,}; correct it"
    for field, least in (("lora_alpha", 0.0), ("lora_dropout", 0.0)):
        value = config.get(field, least)
        if not isinstance(value, int | float) or isinstance(value, bool) or not value >= least:
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
        plain = isinstance(value, str) and field.endswith("_modules")
        if not (value is None or plain or _texts(value)):
            yield field, "is no list of names; correct it"
    for field in ("rank_pattern", "alpha_pattern"):
        value = config.get(field)
        if value and not (isinstance(value, dict) and _ranks(value.values())):
            yield field, f"must give each pattern a number up to {HIGHEST_RANK:,}; correct it"
    begin = config.get("init_lora_weights", True)
    if isinstance(begin, str) and UNREPEATABLE.fullmatch(begin):
        yield (
            "init_lora_weights",
            "changes the base by values that PEFT does not find again when it loads the adapter, "
            "so that it computes other logits than were trained; in the process that trains it, "
            "save it with path_initial_model_for_weight_conversion (PEFT's save_pretrained) or "
            "save its merge_and_unload(), or train again with init_lora_weights=pissa",
        )
    elif not (
        isinstance(begin, bool | None) or (isinstance(begin, str) and REPEATED.fullmatch(begin))
    ):
        yield (
            "init_lora_weights",
            f"is an initialization with which no adapter is loaded here; {MERGE_FIRST}",
        )


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


def _ids(value: Any) -> bool:
    return isinstance(value, list) and all(_whole(one) and one >= 0 for one in value)


def _ranks(values: Iterable[Any]) -> bool:
    return all(
        isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= HIGHEST_RANK
        for value in values
    )


def check_patterns(config: dict[str, Any], names: Iterable[str], *, given: str) -> None:
    """Refuse regular expressions of an adapter that are none, or that never end on these names.

    Args:
        names: of the model's modules.

    Raises:
        UserError: naming the field.
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
    """Every regular expression of the settings, as PEFT completes it."""
    for field in ("target_modules", "exclude_modules"):
        if isinstance(config.get(field), str):
            yield field, rf"(?:{config[field]})\Z"
    for field in ("rank_pattern", "alpha_pattern"):
        for key in config.get(field) or ():
            yield field, rf"(.*\.)?({key})$"
    layers = config.get("layers_pattern") or ()
    for pattern in [layers] if isinstance(layers, str) else layers:
        yield "layers_pattern", rf".*\.{pattern}\.(\d+)\."
