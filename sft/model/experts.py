"""Find the parameters of routed experts and the share of them that a token is multiplied with."""

from fractions import Fraction
from typing import Any

import torch
from peft.tuners.lora import ParamWrapper

from sft.distributed.sharding import EXPERTS
from sft.errors import UserError

# Configuration names of the number of experts that a token visits, by family.
VISITED = ("num_experts_per_tok", "num_experts_per_token", "top_k_experts", "moe_topk", "moe_top_k")
# Classes in which every expert computes every token, on zeros where the router does not choose it
# (transformers.models.llama4.modeling_llama4.Llama4TextMoe).
ALL_COMPUTE = frozenset({"Llama4TextExperts"})


def visited_shares(model: Any) -> dict[int, Fraction]:
    """Return, by parameter id, the share of routed experts' parameters that a token visits.

    Shared experts, which every token visits, are not included.

    Raises:
        UserError: the configuration lacks the number of experts that a token visits.
    """
    shares: dict[int, Fraction] = {}
    for name, module in model.named_modules():
        kind = " ".join([name, *_classes(module)]).lower()
        if "expert" not in kind or "shared" in name:
            continue
        for parameter, experts in _of_experts(module, name, model.config.get_text_config()):
            visited = _visited(model.config.get_text_config())
            if ALL_COMPUTE & _classes(module):
                visited = Fraction(experts)
            shares[id(parameter)] = visited / experts
    return shares


def _classes(module: Any) -> set[str]:
    """Return the class names of a module and of the layer that it wraps."""
    inner = [module.get_base_layer()] if isinstance(module, ParamWrapper) else []
    return {type(each).__name__ for each in (module, *inner)}


def _of_experts(module: Any, name: str, config: Any) -> list[tuple[torch.nn.Parameter, int]]:
    """Return a module's parameters of experts, each with the number of experts in it.

    Experts are a `ModuleList`, or stacks [experts, ., .] or, in DBRX, [experts * ., .].
    """
    if isinstance(module, torch.nn.ModuleList) and name.endswith("experts"):
        return [(parameter, len(module)) for parameter in module.parameters()]
    if isinstance(module, ParamWrapper):
        pairs = zip(module.lora_A.values(), module.lora_B.values(), strict=True)
        layers: list[Any] = [layer for pair in pairs for layer in pair]
        return [(x.weight, module.num_experts) for x in layers if module.num_experts > 1]
    if type(module).__module__.startswith(("torch.nn", "peft")):
        return []
    named: Any = module.named_parameters(recurse=False)
    own = [p for n, p in named if not n.endswith("bias")]
    found = [(p, p.shape[0]) for p in own if p.ndim == 3]
    if flat := [p for p in own if p.ndim == 2]:
        routed = _first(config, EXPERTS)
        found += [(p, routed) for p in flat if routed and p.shape[0] % routed == 0]
    return found


def _visited(config: Any) -> Fraction:
    """Return the number of experts with weights that a token visits."""
    used = _first(config, VISITED)
    if used is None:
        raise UserError(
            f"model type {config.model_type!r} has experts, and its configuration does not set "
            "num_experts_per_tok; choose a model whose configuration does"
        )
    if isinstance(used, list):  # one number per layer
        used = Fraction(sum(used), len(used))
    without = getattr(config, "zero_expert_num", None) or 0  # LongCat's identity experts
    routed = _first(config, EXPERTS)
    return Fraction(used) * (Fraction(routed, routed + without) if without else 1)


def _first(config: Any, names: tuple[str, ...]) -> Any:
    for section in (config, getattr(config, "ffn_config", None)):
        for name in names:
            if (value := getattr(section, name, None)) is not None:
                return value
    return None
