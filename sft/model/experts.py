"""Experts of a model: which of its parameters are theirs, and what share of them a token visits."""

from fractions import Fraction
from typing import Any

import torch
from peft.tuners.lora import ParamWrapper

from sft.errors import UserError

# Names of the number of experts that a token visits, and of all routed experts, by family.
VISITED = ("num_experts_per_tok", "num_experts_per_token", "top_k_experts", "moe_topk", "moe_top_k")
ROUTED = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
# Classes whose code has every expert compute every token, those that it does not choose on zeros
# (transformers.models.llama4.modeling_llama4.Llama4TextMoe).
ALL_COMPUTE = frozenset({"Llama4TextExperts"})


def visited_shares(model: Any) -> dict[int, Fraction]:
    """The share of each parameter of routed experts that a token is multiplied with, by its id.

    Experts are stacks [experts, ., .] (or [experts * ., .], as DBRX has them) of a module with
    `expert` in its name or class, a `ModuleList` of that name, and the adapters of either. Experts
    with `shared` in their name, which every token visits, are not among them.

    Raises:
        UserError: the configuration does not say how many experts a token visits.
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
    """The class of a module, and of what an adapter wraps."""
    inner = [module.get_base_layer()] if isinstance(module, ParamWrapper) else []
    return {type(each).__name__ for each in (module, *inner)}


def _of_experts(module: Any, name: str, config: Any) -> list[tuple[torch.nn.Parameter, int]]:
    """Parameters of experts that a module holds, each with the number of experts in it."""
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
        routed = _first(config, ROUTED)
        found += [(p, routed) for p in flat if routed and p.shape[0] % routed == 0]
    return found


def _visited(config: Any) -> Fraction:
    """How many experts with weights a token visits."""
    used = _first(config, VISITED)
    if used is None:
        raise UserError(
            f"model type {config.model_type!r} has experts, and its configuration does not say "
            "num_experts_per_tok; choose a model whose configuration does"
        )
    if isinstance(used, list):  # by layer
        used = Fraction(sum(used), len(used))
    without = getattr(config, "zero_expert_num", None) or 0  # they pass their input on
    routed = _first(config, ROUTED)
    return Fraction(used) * (Fraction(routed, routed + without) if without else 1)


def _first(config: Any, names: tuple[str, ...]) -> Any:
    for section in (config, getattr(config, "ffn_config", None)):
        for name in names:
            if (value := getattr(section, name, None)) is not None:
                return value
    return None
