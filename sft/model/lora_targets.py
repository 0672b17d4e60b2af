"""Choose the matrices that a LoRA adapter is added to, stacked experts and routers included.

PEFT's `all-linear` finds modules of type `torch.nn.Linear`. Most mixtures of experts keep all
experts of a layer in one parameter [experts, out, in] and the router in another module; PEFT adapts
both through `target_parameters`.
"""

import copy
import re
from collections import Counter
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer, ParamWrapper
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers
from transformers.pytorch_utils import Conv1D

from sft.config.sections import LoraSection
from sft.errors import UserError
from sft.model.adapter_settings import MERGE_FIRST

ALL = "all-linear"
LINEAR = (torch.nn.Linear, Conv1D)
# Layer types that `all-linear` does not cover by definition.
OTHERS = (torch.nn.Embedding, torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d)
# `all-linear` is refused where it misses a class of layers with a larger share of the weights.
LEFT_OUT = 0.05


@dataclass(frozen=True)
class AdapterCoverage:
    """Number of a model's weights in matrices with an adapter."""

    weights: int  # of the model without the adapter
    adapted: int
    left_out: tuple[tuple[str, int], ...]  # not adapted weights by class of module, largest first
    not_adapted: frozenset[str]  # classes of modules without any adapter

    @property
    def share(self) -> float:
        return self.adapted / self.weights

    def __str__(self) -> str:
        rest = [(name, n / self.weights) for name, n in self.left_out if n >= 0.001 * self.weights]
        others = ", ".join(f"{name} {share:.1%}" for name, share in rest)
        return f"{self.share:.1%} of the weights" + (f"; not adapted: {others}" if others else "")


def lora_config(lora: LoraSection) -> LoraConfig:
    """Return PEFT's configuration of a new adapter."""
    # rsLoRA is arXiv 2312.03732, equation 3; DoRA arXiv 2402.09353, equation 5.
    return LoraConfig(
        r=lora.r,
        lora_alpha=lora.lora_alpha,
        lora_dropout=lora.lora_dropout,
        target_modules=lora.target_modules,
        target_parameters=lora.target_parameters,
        use_rslora=lora.use_rslora,
        use_dora=lora.use_dora,
        task_type="CAUSAL_LM",
    )


def add_adapter(
    model: Any, config: LoraConfig, *, in_4bit: bool = False, revision: str | None = None
) -> PeftModel:
    """Add a new adapter to a model, without changing `config`.

    Args:
        config: `all-linear` without `target_parameters` adapts every linear layer but the head,
            stacked experts and routers too.
        in_4bit: whether the linear layers are, or will be, quantized.
        revision: revision of the base on the Hub, recorded in the adapter's configuration.

    Raises:
        UserError: a named layer does not exist or cannot have an adapter, or a class of layers
            would be left out.
    """
    refuse_ends(model, config)
    try:
        targets = resolve_targets(model, config, in_4bit=in_4bit)
        # PEFT creates the adapter's weights on the default device, also over a meta model.
        on_meta = model.device.type == "meta"
        with torch.device("meta") if on_meta else nullcontext():
            adapted: PeftModel = get_peft_model(model, targets, revision=revision)
    except UserError:  # a subclass of ValueError
        raise
    except (ValueError, TypeError, NotImplementedError) as error:
        named = f"lora.target_modules={shown_targets(config.target_modules)}"
        if config.target_parameters:
            named += f" and lora.target_parameters={shown_targets(config.target_parameters)}"
        quoted = re.findall(r"'(\w+)'", str(error))
        raise UserError(
            f"{named}: PEFT cannot adapt this {model.config.model_type!r} model "
            f"({_first_sentence(error)}); name other layers of it, such as "
            f"{_plain_names(model, without=quoted)}"
        ) from None
    if config.target_modules == ALL and config.target_parameters is None:
        _refuse_left_out(adapted, model.config.model_type)
    return adapted


def resolve_targets(model: Any, config: LoraConfig, *, in_4bit: bool = False) -> LoraConfig:
    """Return a copy of `config` with the names of its targets in this model."""
    config = copy.deepcopy(config)
    every = config.target_modules == ALL
    linear = _linear_names(model)
    if not every:
        linear = {name for name in linear if check_target_module_exists(config, name)}
    converted = copy.deepcopy(config)
    if every:
        converted.target_modules = sorted(linear)
    # PEFT takes `gate_proj`, `up_proj` and `down_proj` of some model types for names of experts, as
    # in checkpoints of transformers 4, and drops linear layers of the same name (shared experts).
    convert_peft_config_for_transformers(converted, model, None)
    kept = {name for name in linear if check_target_module_exists(converted, name)}
    kept -= {name for name in linear if _own_forward(model.get_submodule(name))}
    dropped = {f"{name}.weight" for name in linear - kept}
    parameters = config.target_parameters
    if every:
        known = _stacked_names(model)
        stacked = known if parameters is None else _matching(model, parameters)
        if not known | stacked | dropped:
            config.target_parameters = None
            return config
        config.target_modules = sorted(kept)
    else:
        _refuse_unknown(model, config, converted)
        stacked = _matching(model, converted.target_parameters or ())
        if not stacked and not dropped:
            return config
        modules = [name for name, _ in model.named_modules() if name]
        others = {n for n in modules if check_target_module_exists(converted, n)}
        config.target_modules = sorted(kept | (others - _linear_names(model)))
        config.rank_pattern, config.alpha_pattern = converted.rank_pattern, converted.alpha_pattern
    _refuse_options(model, config, stacked=stacked, dropped=dropped, in_4bit=in_4bit)
    config.target_parameters = _shortened(model, stacked | dropped) or None
    return config


def refuse_ends(model: Any, config: LoraConfig, *, given: str | None = None) -> None:
    """Check that no adapter is on the LM head or on an embedding tied to it.

    Args:
        model: the model without the adapter.
        given: the adapter's path as the user wrote it; None for the preset's new adapter.
    """
    # The loss multiplies with the head's weight directly and would skip the adapter.
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    tied = embedding.weight is head.weight
    for name, module in model.named_modules():
        as_module = bool(name) and check_target_module_exists(config, name)
        if not as_module and not _is_named(f"{name}.weight", config.target_parameters or ()):
            continue
        if module is head or (tied and module is embedding):
            why = "the head, whose weight the loss is computed from, past any adapter"
            if module is embedding:
                why = "the head's matrix too, which would stay without it"
            key = "target_modules" if as_module else "target_parameters"
            at, remedy = f"model.name_or_path={given}: adapter_config.json: {key}", MERGE_FIRST
            if given is None:
                at = f"lora.{key}"
                remedy = "leave it out (model.add_tokens trains the embeddings of single tokens)"
            raise UserError(f"{at}: {_last(name)} is {why}; {remedy}")


def adapter_coverage(model: PeftModel) -> AdapterCoverage:
    """Count the weights that a model's adapter is added to."""
    adapted = _adapted_ids(model)
    seen: set[int] = set()
    left: Counter[str] = Counter()
    classes = set()
    total = found = 0
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) in seen or parameter.requires_grad:
                continue
            seen.add(id(parameter))
            total += parameter.numel()
            if id(parameter) in adapted:
                found += parameter.numel()
                classes.add(type(module).__name__)
            elif parameter.ndim > 1 and not name.endswith("bias"):
                left[type(module).__name__] += parameter.numel()
    return AdapterCoverage(total, found, tuple(left.most_common()), frozenset(left) - classes)


def adapted_weights(model: PeftModel) -> set[str]:
    """Return the names, in the base model, of the weights that an adapter is added to."""
    ids = _adapted_ids(model)
    base: Any = model.get_base_model()
    return {
        name.replace(".base_layer", "")
        for name, parameter in base.named_parameters()
        if id(parameter) in ids
    }


def wrapped_parameters(model: Any) -> set[int]:
    """Return the ids of the parameters that PEFT adapts as whole tensors."""
    return {id(m.get_param()) for m in model.modules() if isinstance(m, ParamWrapper)}


def _adapted_ids(model: PeftModel) -> set[int]:
    layers = [m for m in model.modules() if isinstance(m, LoraLayer)]
    plain: list[Any] = [m.get_base_layer() for m in layers if not isinstance(m, ParamWrapper)]
    matrices = {id(p) for base in plain for p in base.parameters(recurse=False) if p.ndim > 1}
    return matrices | wrapped_parameters(model)


def _linear_names(model: Any) -> set[str]:
    head = model.get_output_embeddings()
    return {n for n, m in model.named_modules() if isinstance(m, LINEAR) and m is not head}


def _stacked_names(model: Any) -> set[str]:
    """Stacks of experts (three dimensions) and matrices `weight` of other modules (routers)."""
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    outside = {id(p) for end in ends if end for p in end.parameters()}
    names = set()
    for module_name, module in model.named_modules():
        if type(module).__module__.startswith("torch.nn") or isinstance(module, LINEAR + OTHERS):
            continue
        for name, parameter in module.named_parameters(recurse=False):
            stack = parameter.ndim == 3 and min(parameter.shape[1:]) > 1
            matrix = parameter.ndim == 2 and name == "weight"
            if (stack or matrix) and id(parameter) not in outside:
                names.add(f"{module_name}.{name}")
    return names


def _own_forward(module: Any) -> bool:
    """Whether a linear layer of the model's code overrides `forward`."""
    # Llama 4's router returns two tensors, which PEFT's linear layer cannot.
    kind = type(module)
    libraries = ("torch", "bitsandbytes", "transformers.pytorch_utils", "transformers.integrations")
    return kind.forward is not torch.nn.Linear.forward and not kind.__module__.startswith(libraries)


def _is_named(name: str, keys: Iterable[str]) -> bool:
    """Whether a full name equals one of the keys or ends with it."""
    return any(name == key or name.endswith(f".{key}") for key in keys)


def _matching(model: Any, keys: Iterable[str]) -> set[str]:
    """Return the full names of the parameters that `keys` name; each key must match one."""
    names, found = [n for n, _ in model.named_parameters()], set()
    for key in keys:
        own = {name for name in names if _is_named(name, [key])}
        if not own:
            known = _shortened(model, _stacked_names(model))
            raise UserError(
                f"lora.target_parameters names {key}, and this {model.config.model_type!r} model "
                f"has no such parameter; its stacked ones are {', '.join(known) or 'none'}"
            )
        found |= own
    return found


def _shortened(model: Any, names: set[str]) -> list[str]:
    """Shorten to suffixes that match no other parameter: `experts.down_proj` for all layers."""
    every = [name for name, _ in model.named_parameters()]
    short = set()
    for name in names:
        suffix = ".".join(name.split(".")[-2:])
        alike = (n for n in every if _is_named(n, [suffix]))
        short.add(suffix if all(n in names for n in alike) else name)
    return sorted(short)


def _refuse_unknown(model: Any, config: LoraConfig, converted: LoraConfig) -> None:
    """Check that a module has each listed name; PEFT ignores one if another matches."""
    if isinstance(config.target_modules, str) or config.target_modules is None:
        return
    modules = [name for name, _ in model.named_modules()]
    for target in sorted(config.target_modules):
        if any(_is_named(name, [target]) for name in modules):
            continue
        if target not in (converted.target_modules or ()):
            continue  # PEFT converted the name of experts
        remedy = f"its linear layers are {_plain_names(model)}"
        if any(name.endswith(f".{target}") for name, _ in model.named_parameters()):
            remedy = "it is a parameter: name it in lora.target_parameters"
        raise UserError(
            f"lora.target_modules names {target}, and this {model.config.model_type!r} model has no"
            f" such layer; {remedy}"
        )


def _refuse_options(
    model: Any, config: LoraConfig, *, stacked: set[str], dropped: set[str], in_4bit: bool
) -> None:
    """Check that PEFT can apply the options to whole tensors (`peft...lora.layer.ParamWrapper`)."""
    options = (
        ("lora.use_dora=true", config.use_dora),
        (f"lora.lora_dropout={config.lora_dropout:g}", config.lora_dropout),
        ("model.load_in_4bit=true", in_4bit and dropped),
    )
    option = next((text for text, is_on in options if is_on), None)
    if option is None or not stacked | dropped:
        return
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    share = sum(sizes[name] for name in stacked | dropped) / sum(sizes.values())
    names = ", ".join(_shortened(model, stacked | dropped))
    raise UserError(
        f"{option} cannot be applied to {names}, which PEFT adapts as whole tensors ({share:.0%} "
        f"of the weights of this {model.config.model_type!r} model); leave that option out, or "
        "leave these out by name: set lora.target_parameters=[] and lora.target_modules="
        f"{_plain_names(model, without=dropped)}"
    )


def _refuse_left_out(model: PeftModel, kind: str) -> None:
    """Check that `all-linear` adapts every class of layers with matrices."""
    coverage = adapter_coverage(model)
    others = {type(m).__name__ for m in model.modules() if isinstance(m, OTHERS)}
    base: Any = model.get_base_model()
    others.add(type(base.get_output_embeddings()).__name__)
    classes = [
        (name, weights / coverage.weights)
        for name, weights in coverage.left_out
        if name in coverage.not_adapted - others and weights > LEFT_OUT * coverage.weights
    ]
    if classes:
        missed = ", ".join(f"{name} ({share:.0%} of the weights)" for name, share in classes)
        raise UserError(
            f"lora.target_modules=all-linear does not adapt {missed} of this {kind!r} model; name "
            "the layers to adapt in lora.target_modules, or train all weights with lora.r=0"
        )


def _plain_names(model: Any, *, without: Iterable[str] = ()) -> str:
    """List the last parts of the names of linear layers for the command line."""
    names = {_last(name) for name in _linear_names(model) if ".lora_" not in name}
    return f"[{', '.join(sorted(names - {_last(name) for name in without}))}]"


def _last(name: str) -> str:
    return name.removesuffix(".weight").removesuffix(".base_layer").rsplit(".", 1)[-1]


def shown_targets(targets: Any) -> str:
    """Format targets for the command line."""
    return targets if isinstance(targets, str) else f"[{', '.join(sorted(targets or ()))}]"


def _first_sentence(error: Exception) -> str:
    return " ".join(str(error).split()).split(". ")[0].removesuffix(".")
