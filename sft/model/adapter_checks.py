"""Whether an adapter can be trained, asked of a model without data before anything is measured."""

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
from sft.model.weight_files import check_values
from sft.run.adapters import CONFIG, adapter_base, is_adapter

AS_TRAINED = f"give it with its own {CONFIG} and the base that it was trained over"
FLOATING = ("F64", "F32", "F16", "BF16")  # types of numbers, as safetensors names them


def check_adapters(
    preset: Preset, base: str, tokenizer: PreTrainedTokenizerBase, *, config: PreTrainedConfig
) -> None:
    """Refuse the adapters that a preset asks for where they cannot be trained over `base`.

    Raises:
        UserError: PEFT, the trainer or the loss would refuse one, or tokens are to be added to an
            adapter.
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
    """Refuse an adapter that PEFT, the trainer or the loss would refuse.

    Args:
        config: of the base.
        tokens: ids of `model.add_tokens`, whose embeddings are trained.

    Raises:
        UserError: it cannot be trained.
    """
    config = copy.deepcopy(config)
    text = config.get_text_config()
    text.vocab_size = max(text.vocab_size, *(token + 1 for token in tokens), 0)
    model, adapter = meta_model(config), lora_config(lora)
    adapter.trainable_token_indices = token_rows(model, tokens) if tokens else None
    add_adapter(model, adapter, in_4bit=in_4bit)


def check_continued_adapter(path: str, config: PreTrainedConfig, lora: LoraSection) -> None:
    """Refuse targets of a preset that are not those of the adapter that it trains on.

    Args:
        path: the adapter's directory.
        config: of its base.

    Raises:
        UserError: the preset's mean other weights.
    """

    def weights_of(section: LoraSection) -> set[str]:
        return adapted_weights(add_adapter(meta_model(config), lora_config(section)))

    its = LoraConfig.from_pretrained(path)
    with torch.device("meta"):
        has = adapted_weights(PeftModel(meta_model(config), its))
    if weights_of(lora) == has:
        return
    layers: Any = its.target_modules or []
    if not isinstance(layers, str):
        layers = sorted({name.rsplit(".", 1)[-1] for name in layers})
    same = replace(lora, target_modules=layers, target_parameters=its.target_parameters)
    targets = f"lora.target_modules={shown_targets(layers)}"
    if its.target_parameters:
        targets += f" lora.target_parameters={shown_targets(its.target_parameters)}"
    way = f"set {targets}, or " if weights_of(same) == has else "set "
    raise UserError(
        f"lora.target_modules={shown_targets(lora.target_modules)} are not the layers that the "
        f"adapter {path} has, which is trained on; {way}lora.between_stages=merge to begin a new "
        "one"
    )


def check_given_adapter(path: str, config: PreTrainedConfig, *, given: str) -> None:
    """Refuse an adapter directory whose weights do not fit its base. Anything that is no adapter is
    left alone.

    Args:
        config: of its base.
        given: as the user wrote it.

    Raises:
        UserError: a tensor is of another shape than the base asks for, as where the vocabulary grew
            while the adapter was trained; or it is on the head.
    """
    if not is_adapter(path):
        return
    base = adapter_base(path)
    with torch.device("meta"):
        model = meta_model(config)
        own = {name: tuple(p.shape) for name, p in model.named_parameters()}
        with loading(
            given,
            what=f"PEFT cannot add this adapter to {base}",
            remedy="give the base that it was trained over, or correct its adapter_config.json",
        ):
            check_patterns(
                adapter_settings(path, given=given),
                (name for name, _ in model.named_modules()),
                given=given,
            )
            its = LoraConfig.from_pretrained(path)
            refuse_ends(model, its, given=given)
            adapted = PeftModel(model, its)
    found = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    due = own | {name: tuple(tensor.shape) for name, tensor in found.items()}
    its_weights = _without_values(Path(path), given=given)
    for name, tensor in its_weights.items():
        plain = name.removeprefix("base_model.model.")
        wanted, shape = due.get(name, due.get(plain)), tuple(tensor.shape)
        if wanted is not None and wanted != shape:
            raise UserError(_other_shape(path, given=given, name=plain, shape=shape, wanted=wanted))
    _check_names(adapted, its_weights, due=found, given=given, base=base)


def _check_names(
    adapted: PeftModel,
    its_weights: dict[str, torch.Tensor],
    *,
    due: Container[str],
    given: str,
    base: str,
) -> None:
    """Refuse weights that lack some of the adapter's, which PEFT would leave as they began, or hold
    others, which it would leave out.

    Args:
        adapted: the base with the adapter, without values.
        its_weights: of the adapter's file, without values.
        due: names of the weights that PEFT would save of it.
    """
    at = f"model.name_or_path={given}: its weights"
    with loading(given, what=f"PEFT cannot load its weights over {base}", remedy=AS_TRAINED):
        try:
            result: Any = set_peft_model_state_dict(adapted, its_weights)
        except KeyError as error:  # of a module that is saved whole, or of tokens
            raise UserError(f"{at} lack {str(error.args[0])[:100]!r}; {AS_TRAINED}") from None
    parameters = dict(adapted.named_parameters(remove_duplicate=False))
    missing = set(result.missing_keys)
    there = {id(parameter) for name, parameter in parameters.items() if name not in missing}
    lacking = [
        name
        for name in missing
        if ("default" in name.split(".") or name in due) and id(parameters.get(name)) not in there
    ]  # a parameter may have two names, as in a tied head
    for names, rest in (
        (lacking, "lack {}, which would stay as they began"),
        (result.unexpected_keys, "hold {}, which nothing reads"),
    ):
        if names:
            told = rest.format(f"{sorted(names)[0][:100]!r} ({len(names)} such)")
            raise UserError(f"{at} {told}; {AS_TRAINED}")


def _other_shape(path: str, *, given: str, name: str, shape: Any, wanted: Any) -> str:
    base = adapter_base(path)
    at = f"model.name_or_path={given}: its {name} is {list(shape)}, its base {base}"
    ends = name.endswith(".weight") and any(part in name for part in ("embed", "wte", "head"))
    if not (ends and shape[1:] == wanted[1:]):
        return f"{at} with its {CONFIG} asks for {list(wanted)}; {AS_TRAINED}"
    at += " asks for"
    whole = path.rstrip("/") + "-merged"
    steps = (
        "from transformers import AutoModelForCausalLM as M, AutoTokenizer as T; "
        "from peft import PeftModel as P; "
        f"m = M.from_pretrained({base!r}, dtype='auto'); m.resize_token_embeddings({shape[0]}); "
        f"P.from_pretrained(m, {path!r}).merge_and_unload().save_pretrained({whole!r}); "
        f"T.from_pretrained({path!r}).save_pretrained({whole!r})"
    )
    return (
        f"{at} {list(wanted)}: the vocabulary grew when it was trained; merge it into the grown "
        f'base and give that: python -c "{steps}"'
    )


def _without_values(folder: Path, *, given: str) -> dict[str, torch.Tensor]:
    """The weights of an adapter, of their shapes, on the meta device.

    Raises:
        UserError: some are no floating-point numbers, or not finite.
    """
    file = folder / "adapter_model.safetensors"
    if not file.is_file():
        return {}  # which `sft.model.weight_files` refuses
    found = {}
    with safe_open(file, "pt") as opened:
        for name in opened.keys():  # noqa: SIM118  it is no dictionary
            part = opened.get_slice(name)
            if (kind := part.get_dtype()) not in FLOATING:
                raise UserError(
                    f"model.name_or_path={given}: {file.name}: {name[:100]!r} holds numbers of "
                    f"type {kind}, and adapters are read as {', '.join(FLOATING)}; save it again "
                    "with peft, unquantised"
                )
            check_values([(name, opened.get_tensor(name))], given=given)
            found[name] = torch.empty(part.get_shape(), device="meta")
    return found
