"""Check on the meta device that an adapter can be trained or loaded over its base."""

import copy
from collections.abc import Container, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import safe_open
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from sft.config.sections import LoraSection, Preset
from sft.errors import UserError
from sft.model.adapter_settings import adapter_settings, check_patterns
from sft.model.architecture import meta_model
from sft.model.lora_targets import (
    adapted_weights,
    add_adapter,
    lora_config,
    refuse_ends,
    shown_targets,
)
from sft.model.model_files import loading
from sft.model.vocabulary import token_rows
from sft.model.weight_files import ADAPTER_FILE, FLOATING, check_values
from sft.run.adapters import CONFIG, adapter_base, is_adapter

AS_TRAINED = f"give it with its own {CONFIG} and the base that it was trained over"


def check_adapters(
    preset: Preset, base: str, tokenizer: PreTrainedTokenizerBase, *, config: PreTrainedConfig
) -> None:
    """Check that the adapters of a preset can be trained over `base`.

    Raises:
        UserError: PEFT, the trainer or the loss would refuse an adapter, or the base of
            `model.add_tokens` is one.
    """
    adapter = is_adapter(base)
    known = config.get_text_config().vocab_size
    tokens = [tokenizer.get_vocab()[token] for token in preset.model.add_tokens]
    if adapter and any(token >= known for token in tokens):
        raise UserError(
            f"model.add_tokens={preset.model.add_tokens}: {base} is an adapter, which has no "
            "embeddings to add to; merge it into its base first"
        )
    if not preset.lora.r:
        return
    if not (adapter and preset.lora.between_stages == "continue"):
        check_new_adapter(config, preset.lora, tokens=tokens, in_4bit=preset.model.load_in_4bit)
    elif preset.sft_all.enabled or preset.sft_dialogue.enabled or preset.dpo.enabled:
        check_continued_adapter(base, config, preset.lora)


def check_new_adapter(
    config: PreTrainedConfig, lora: LoraSection, *, tokens: Sequence[int], in_4bit: bool = False
) -> None:
    """Check that PEFT, the trainer and the loss accept a new adapter.

    Args:
        config: configuration of the base.
        tokens: ids of `model.add_tokens`, whose embeddings are trained.
    """
    config = copy.deepcopy(config)
    text = config.get_text_config()
    text.vocab_size = max(text.vocab_size, *(token + 1 for token in tokens), 0)
    model, adapter = meta_model(config), lora_config(lora)
    adapter.trainable_token_indices = token_rows(model, tokens) if tokens else None
    add_adapter(model, adapter, in_4bit=in_4bit)


def check_continued_adapter(path: str, config: PreTrainedConfig, lora: LoraSection) -> None:
    """Check that the preset's targets are those of the adapter that it continues.

    Args:
        path: the adapter's directory.
        config: configuration of its base.
    """

    def weights_of(section: LoraSection) -> set[str]:
        return adapted_weights(add_adapter(meta_model(config), lora_config(section)))

    stored = LoraConfig.from_pretrained(path)
    with torch.device("meta"):
        adapted = adapted_weights(PeftModel(meta_model(config), stored))
    if weights_of(lora) == adapted:
        return
    layers: Any = stored.target_modules or []
    if not isinstance(layers, str):
        layers = sorted({name.rsplit(".", 1)[-1] for name in layers})
    same = replace(lora, target_modules=layers, target_parameters=stored.target_parameters)
    targets = f"lora.target_modules={shown_targets(layers)}"
    if stored.target_parameters:
        targets += f" lora.target_parameters={shown_targets(stored.target_parameters)}"
    remedy = f"set {targets}, or " if weights_of(same) == adapted else "set "
    raise UserError(
        f"lora.target_modules={shown_targets(lora.target_modules)} are not the layers that the "
        f"adapter {path} has, whose training continues; {remedy}lora.between_stages=merge to begin "
        "a new one"
    )


def check_given_adapter(path: str, config: PreTrainedConfig, *, given: str) -> None:
    """Check that an adapter's weights fit its base; does nothing for a full model.

    Args:
        config: configuration of its base.
        given: the adapter as the user wrote it.
    """
    if not is_adapter(path):
        return
    base = adapter_base(path)
    model = meta_model(config)
    own = {name: tuple(p.shape) for name, p in model.named_parameters()}
    what = f"PEFT cannot add this adapter to {base}"
    remedy = f"give the base that it was trained over, or correct its {CONFIG}"
    with torch.device("meta"), loading(given, what=what, remedy=remedy):
        modules = [name for name, _ in model.named_modules()]
        check_patterns(adapter_settings(path, given=given), modules, given=given)
        stored = LoraConfig.from_pretrained(path)
        refuse_ends(model, stored, given=given)
        adapted = PeftModel(model, stored)
    saved = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    expected = own | {name: tuple(tensor.shape) for name, tensor in saved.items()}
    weights = _meta_weights(Path(path), given=given)
    for name, tensor in weights.items():
        plain = name.removeprefix("base_model.model.")
        due, shape = expected.get(name, expected.get(plain)), tuple(tensor.shape)
        if due is not None and due != shape:
            raise UserError(_other_shape(path, given=given, name=plain, shape=shape, due=due))
    _check_names(adapted, weights, saved=saved, given=given, base=base)


def _check_names(
    adapted: PeftModel,
    weights: dict[str, torch.Tensor],
    *,
    saved: Container[str],
    given: str,
    base: str,
) -> None:
    """Check for missing weights, which PEFT initializes, and surplus ones, which it ignores.

    Args:
        adapted: the base with the adapter, on the meta device.
        weights: weights of the adapter's file, on the meta device.
        saved: names of the weights that PEFT would save for the adapter.
    """
    at = f"model.name_or_path={given}: its weights"
    with loading(given, what=f"PEFT cannot load its weights over {base}", remedy=AS_TRAINED):
        try:
            result: Any = set_peft_model_state_dict(adapted, weights)
        except KeyError as error:  # a module of `modules_to_save`, or token rows
            raise UserError(f"{at} lack {str(error.args[0])[:100]!r}; {AS_TRAINED}") from None
    parameters = dict(adapted.named_parameters(remove_duplicate=False))
    absent = set(result.missing_keys)
    # A parameter may have two names (a tied head), of which PEFT loads one.
    loaded = {id(parameter) for name, parameter in parameters.items() if name not in absent}
    own = [name for name in absent if "default" in name.split(".") or name in saved]
    missing = [name for name in own if id(parameters.get(name)) not in loaded]
    for names, problem in (
        (missing, "lack {}, which would stay as they began"),
        (result.unexpected_keys, "hold {}, which nothing reads"),
    ):
        if names:
            shown = problem.format(f"{sorted(names)[0][:100]!r} ({len(names)} such)")
            raise UserError(f"{at} {shown}; {AS_TRAINED}")


def _other_shape(path: str, *, given: str, name: str, shape: Any, due: Any) -> str:
    base = adapter_base(path)
    at = f"model.name_or_path={given}: its {name} is {list(shape)}, its base {base}"
    ends = name.endswith(".weight") and any(part in name for part in ("embed", "wte", "head"))
    if not (ends and shape[1:] == due[1:]):
        return f"{at} with its {CONFIG} asks for {list(due)}; {AS_TRAINED}"
    merged = path.rstrip("/") + "-merged"
    steps = (
        "from transformers import AutoModelForCausalLM as M, AutoTokenizer as T; "
        "from peft import PeftModel as P; "
        f"m = M.from_pretrained({base!r}, dtype='auto'); m.resize_token_embeddings({shape[0]}); "
        f"P.from_pretrained(m, {path!r}).merge_and_unload().save_pretrained({merged!r}); "
        f"T.from_pretrained({path!r}).save_pretrained({merged!r})"
    )
    return (
        f"{at} asks for {list(due)}: the vocabulary grew when it was trained; merge it into the "
        f'grown base and give that: python -c "{steps}"'
    )


def _meta_weights(folder: Path, *, given: str) -> dict[str, torch.Tensor]:
    """Return an adapter's weights on the meta device; refuse other types, NaN and infinity."""
    file = folder / ADAPTER_FILE
    if not file.is_file():
        return {}  # `check_weights` refuses the folder
    found = {}
    with safe_open(file, "pt") as opened:
        for name in opened.keys():  # noqa: SIM118  safe_open is no dictionary
            part = opened.get_slice(name)
            if (kind := part.get_dtype()) not in FLOATING:
                raise UserError(
                    f"model.name_or_path={given}: {file.name}: {name[:100]!r} holds numbers of "
                    f"type {kind}, and adapters are read as {', '.join(FLOATING)}; save it again "
                    "with peft, unquantized"
                )
            check_values([(name, opened.get_tensor(name))], given=given)
            found[name] = torch.empty(part.get_shape(), device="meta")
    return found
