"""Targets of a LoRA adapter: which matrices of a model it is added to, stacked experts included.

PEFT's `all-linear` finds modules of `torch.nn.Linear`. Most mixtures of experts keep all experts of
a layer in one parameter [experts, out, in] and the router's matrix in a module of its own; those
are reached through PEFT's `target_parameters`. So are subclasses of `torch.nn.Linear` with a
forward pass of their own: Llama 4's router returns two tensors, which PEFT's layer cannot. PEFT
also takes the names `gate_proj`, `up_proj` and `down_proj` of some model types for names of experts
(checkpoints of transformers 4 had them) and then drops linear layers of the same name, those of
shared experts and dense layers.
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
# Layers that all-linear does not speak of.
OTHERS = (torch.nn.Embedding, torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d)
# A class of layers that holds more of the weights than this is not left out without being named.
LEFT_OUT = 0.05


@dataclass(frozen=True)
class Reach:
    """How many of a model's weights lie in matrices that an adapter is added to."""

    weights: int  # of the model without the adapter
    reached: int
    left_out: tuple[tuple[str, int], ...]  # weights not reached by class of module, largest first
    unreached: frozenset[str]  # classes of modules of which nothing is reached

    @property
    def share(self) -> float:
        return self.reached / self.weights

    def __str__(self) -> str:
        rest = [(name, n / self.weights) for name, n in self.left_out if n >= 0.001 * self.weights]
        others = ", ".join(f"{name} {share:.1%}" for name, share in rest)
        return f"{self.share:.1%} of the weights" + (f"; not reached: {others}" if others else "")


def lora_config(lora: LoraSection) -> LoraConfig:
    """PEFT's configuration of a new adapter.

    rsLoRA is arXiv 2312.03732, equation 3; DoRA arXiv 2402.09353, equation 5.
    """
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
    """The model with a new adapter (`get_peft_model`); `config` stays as it is.

    Args:
        config: where its `target_modules` are `all-linear` and `target_parameters` is None, every
            linear layer but the head gets an adapter, stacked experts and routers too.
        in_4bit: the linear layers are, or will be, quantized.
        revision: of the base on the hub, kept in the adapter's configuration.

    Raises:
        UserError: a named layer does not exist, PEFT or the loss cannot do with an adapter on one,
            or a class of layers would be left out.
    """
    refuse_ends(model, config)
    try:
        targets = resolve_targets(model, config, in_4bit=in_4bit)
        # PEFT creates the adapter's weights on the default device, also over a meta model.
        on_meta = model.device.type == "meta"
        with torch.device("meta") if on_meta else nullcontext():
            adapted: PeftModel = get_peft_model(model, targets, revision=revision)
    except UserError:  # a ValueError too
        raise
    except (ValueError, TypeError, NotImplementedError) as error:
        named = f"lora.target_modules={shown_targets(config.target_modules)}"
        if config.target_parameters:
            named += f" and lora.target_parameters={shown_targets(config.target_parameters)}"
        raise UserError(
            f"{named}: PEFT cannot adapt this "
            f"{model.config.model_type!r} model ({_first_sentence(error)}); name other layers of "
            f"it, such as {_plain_names(model, without=_quoted(error))}"
        ) from None
    if config.target_modules == ALL and config.target_parameters is None:
        _refuse_left_out(adapted, model.config.model_type)
    return adapted


def resolve_targets(model: Any, config: LoraConfig, *, in_4bit: bool = False) -> LoraConfig:
    """A copy of `config` with the targets that it means in this model.

    Raises:
        UserError: a name matches nothing, or an option excludes a target.
        ValueError: PEFT refuses the targets.
    """
    config = copy.deepcopy(config)
    every = config.target_modules == ALL
    linear = _linear_names(model)
    if not every:
        linear = {name for name in linear if check_target_module_exists(config, name)}
    converted = copy.deepcopy(config)
    if every:
        converted.target_modules = sorted(linear)
    convert_peft_config_for_transformers(converted, model, None)
    kept = {name for name in linear if check_target_module_exists(converted, name)}
    kept -= {name for name in linear if _own_forward(model.get_submodule(name))}
    dropped = {f"{name}.weight" for name in linear - kept}
    asked = config.target_parameters
    if every:
        known = _stacked_names(model)
        stacked = known if asked is None else _matching(model, asked)
        if not known | stacked | dropped:
            config.target_parameters = None
            return config
        config.target_modules = sorted(kept)
    else:
        _refuse_unknown(model, config, converted)
        stacked = _matching(model, converted.target_parameters or ())
        if not stacked and not dropped:
            return config
        config.target_modules = sorted(kept | _others(model, converted))
        config.rank_pattern, config.alpha_pattern = converted.rank_pattern, converted.alpha_pattern
    _refuse_options(model, config, stacked=stacked, dropped=dropped, in_4bit=in_4bit)
    config.target_parameters = _shortened(model, stacked | dropped) or None
    return config


def refuse_ends(model: Any, config: LoraConfig, *, given: str | None = None) -> None:
    """Refuse an adapter on the head, from whose weight the loss is computed directly, or on an
    embedding that is the same matrix.

    Args:
        model: without the adapter.
        given: where the adapter is, if it is not one that the preset asks for.

    Raises:
        UserError: there would be one.
    """
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    tied = embedding.weight is head.weight
    for name, module in model.named_modules():
        as_module = bool(name) and check_target_module_exists(config, name)
        if not as_module and not _names(config.target_parameters or (), f"{name}.weight"):
            continue
        if module is head or (tied and module is embedding):
            why = "the head, whose weight the loss is computed from, past any adapter"
            if module is embedding:
                why = "the head's matrix too, which would stay without it"
            key = "target_modules" if as_module else "target_parameters"
            if given is not None:
                raise UserError(
                    f"model.name_or_path={given}: adapter_config.json: {key}: {_last(name)} is "
                    f"{why}; {MERGE_FIRST}"
                )
            raise UserError(
                f"lora.{key}: {_last(name)} is {why}; leave it out (model.add_tokens trains the "
                "embeddings of single tokens)"
            )


def reach_of(model: PeftModel) -> Reach:
    """The weights that an adapter is added to, of a model with one."""
    reached = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, LoraLayer)
        for parameter in _adapted(module)
    }
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
            if id(parameter) in reached:
                found += parameter.numel()
                classes.add(type(module).__name__)
            elif parameter.ndim > 1 and not name.endswith("bias"):
                left[type(module).__name__] += parameter.numel()
    return Reach(total, found, tuple(left.most_common()), frozenset(left) - classes)


def adapted_weights(model: PeftModel) -> set[str]:
    """Names of the weights that an adapter is added to, as the model without it names them."""
    ids = {id(p) for m in model.modules() if isinstance(m, LoraLayer) for p in _adapted(m)}
    base: Any = model.get_base_model()
    return {
        name.replace(".base_layer", "")
        for name, parameter in base.named_parameters()
        if id(parameter) in ids
    }


def wrapped_parameters(model: Any) -> set[int]:
    """Ids of the parameters that PEFT adds an adapter to as whole tensors."""
    return {id(m.get_param()) for m in model.modules() if isinstance(m, ParamWrapper)}


def _adapted(module: Any) -> list[torch.nn.Parameter]:
    if isinstance(module, ParamWrapper):
        return [module.get_param()]
    return [p for p in module.get_base_layer().parameters(recurse=False) if p.ndim > 1]


def _linear_names(model: Any) -> set[str]:
    head = model.get_output_embeddings()
    return {n for n, m in model.named_modules() if isinstance(m, LINEAR) and m is not head}


def _stacked_names(model: Any) -> set[str]:
    """Parameters that are linear layers outside of `torch.nn.Linear`: stacks of experts
    [experts, out, in] or [experts, in, out], and matrices named `weight` (routers)."""
    outside = {id(p) for m in _ends(model) for p in m.parameters()}
    names = set()
    for module_name, module in model.named_modules():
        if type(module).__module__.startswith("torch.nn") or isinstance(module, LINEAR + OTHERS):
            continue
        for name, parameter in module.named_parameters(recurse=False):
            stack = parameter.ndim == 3 and min(parameter.shape[1:]) > 1
            if (stack or (parameter.ndim == 2 and name == "weight")) and (
                id(parameter) not in outside
            ):
                names.add(f"{module_name}.{name}")
    return names


def _own_forward(module: Any) -> bool:
    """Whether a linear layer of the model's own code computes more than a product."""
    kind = type(module)
    libraries = ("torch", "bitsandbytes", "transformers.pytorch_utils", "transformers.integrations")
    return kind.forward is not torch.nn.Linear.forward and not kind.__module__.startswith(libraries)


def _others(model: Any, config: LoraConfig) -> set[str]:
    """Targeted modules that are no linear layers: embeddings, convolutions, the head."""
    linear = _linear_names(model)
    return {
        name
        for name, _ in model.named_modules()
        if name and name not in linear and check_target_module_exists(config, name)
    }


def _ends(model: Any) -> list[Any]:
    return [m for m in (model.get_input_embeddings(), model.get_output_embeddings()) if m]


def _names(keys: Iterable[str], name: str) -> bool:
    """Whether one of these names, of parameters or modules, means the one of this full name."""
    return any(name == key or name.endswith(f".{key}") for key in keys)


def _matching(model: Any, keys: Iterable[str]) -> set[str]:
    """Full names of the parameters that `target_parameters` names.

    Raises:
        UserError: a key matches none.
    """
    names, found = [n for n, _ in model.named_parameters()], set()
    for key in keys:
        own = {name for name in names if _names([key], name)}
        if not own:
            known = _shortened(model, _stacked_names(model))
            raise UserError(
                f"lora.target_parameters names {key}, and this {model.config.model_type!r} model "
                f"has no such parameter; its stacked ones are {', '.join(known) or 'none'}"
            )
        found |= own
    return found


def _shortened(model: Any, names: set[str]) -> list[str]:
    """Suffixes that name these parameters and no others: `experts.down_proj` for every layer's."""
    every = [name for name, _ in model.named_parameters()]
    short = set()
    for name in names:
        suffix = ".".join(name.split(".")[-2:])
        alike = (n for n in every if _names([suffix], n))
        short.add(suffix if all(n in names for n in alike) else name)
    return sorted(short)


def _refuse_unknown(model: Any, config: LoraConfig, converted: LoraConfig) -> None:
    """Refuse a listed name that no module has; PEFT passes over it where another one matches."""
    if isinstance(config.target_modules, str) or config.target_modules is None:
        return
    modules = [name for name, _ in model.named_modules()]
    for target in sorted(config.target_modules):
        if any(name == target or name.endswith(f".{target}") for name in modules):
            continue
        if target not in (converted.target_modules or ()):
            continue  # PEFT's name of experts
        parameters = [n for n, _ in model.named_parameters()]
        raw = any(name.endswith(f".{target}") for name in parameters)
        raise UserError(
            f"lora.target_modules names {target}, and this {model.config.model_type!r} model has no"
            f" such layer; "
            + (
                "it is a parameter: name it in lora.target_parameters"
                if raw
                else f"its linear layers are {_plain_names(model)}"
            )
        )


def _refuse_options(
    model: Any, config: LoraConfig, *, stacked: set[str], dropped: set[str], in_4bit: bool
) -> None:
    """Refuse what PEFT cannot do to whole tensors (`peft.tuners.lora.layer.ParamWrapper`)."""
    given = next(
        (
            text
            for text, on in (
                ("lora.use_dora=true", config.use_dora),
                (f"lora.lora_dropout={config.lora_dropout:g}", config.lora_dropout),
                ("model.load_in_4bit=true", in_4bit and dropped),
            )
            if on
        ),
        None,
    )
    if given is None or not stacked | dropped:
        return
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    share = sum(sizes[name] for name in stacked | dropped) / sum(sizes.values())
    names = ", ".join(_shortened(model, stacked | dropped))
    raise UserError(
        f"{given} cannot be applied to {names}, which PEFT adapts as whole tensors ({share:.0%} of "
        f"the weights of this {model.config.model_type!r} model); leave that option out, or leave "
        "these out by name: set lora.target_parameters=[] and lora.target_modules="
        f"{_plain_names(model, without=dropped)}"
    )


def _refuse_left_out(model: PeftModel, kind: str) -> None:
    """Refuse `all-linear` where a class of layers that holds matrices gets no adapter at all."""
    reach = reach_of(model)
    others = {type(m).__name__ for m in model.modules() if isinstance(m, OTHERS)}
    base: Any = model.get_base_model()
    others.add(type(base.get_output_embeddings()).__name__)
    classes = [
        (name, weights / reach.weights)
        for name, weights in reach.left_out
        if name in reach.unreached - others and weights > LEFT_OUT * reach.weights
    ]
    if classes:
        told = ", ".join(f"{name} ({share:.0%} of the weights)" for name, share in classes)
        raise UserError(
            f"lora.target_modules=all-linear does not reach {told} of this {kind!r} model; name "
            "the layers to adapt in lora.target_modules, or train all weights with lora.r=0"
        )


def _plain_names(model: Any, *, without: Iterable[str] = ()) -> str:
    """The last part of the names of linear layers, as a list for the command line."""
    names = {_last(name) for name in _linear_names(model) if ".lora_" not in name}
    return f"[{', '.join(sorted(names - {_last(name) for name in without}))}]"


def _last(name: str) -> str:
    return name.removesuffix(".weight").removesuffix(".base_layer").rsplit(".", 1)[-1]


def _quoted(error: Exception) -> list[str]:
    """The names in quotation marks of an error's text."""
    return re.findall(r"'(\w+)'", str(error))


def shown_targets(targets: Any) -> str:
    """Targets as they are written on the command line."""
    return targets if isinstance(targets, str) else f"[{', '.join(sorted(targets or ()))}]"


def _first_sentence(error: Exception) -> str:
    return " ".join(str(error).split()).split(". ")[0].removesuffix(".")
