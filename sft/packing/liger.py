"""Liger's kernels on CUDA for what lies between matrix products, where they agree.

Norms, rotary positions and gated activations are some ten small operations each in transformers,
and one in Liger, forwards and backwards. Its losses are left out: the scored tokens have a head of
their own (`sft.packing.logprob_head`).
"""

import importlib
import logging
import sys
from collections.abc import Callable
from typing import Any

import torch
from transformers.utils import is_liger_kernel_available

from sft.packing.equivalence import ROUNDING, SLOPE_ROUNDING, Example, caught_embeddings, plain_sum

log = logging.getLogger(__name__)

OFF = {"cross_entropy": False, "fused_linear_cross_entropy": False}


def enable_liger(model: Any) -> None:
    """Put Liger's kernels into a model on CUDA if log-probs and gradients stay what they are; else
    the model is as it was. What is decided is logged.

    By model type, as transformers' `use_liger_kernel` does; rotary positions are exchanged in the
    model's module, so for all models of its type in this process.
    """
    if next(model.parameters()).device.type != "cuda":
        return
    if not is_liger_kernel_available():
        log.info("kernels: transformers' own (`pip install -e '.[cuda]'` brings Liger's)")
        return
    module = importlib.import_module("liger_kernel.transformers")
    exchange_if_same(model, module._apply_liger_kernel_to_instance)


def exchange_if_same(model: Any, exchange: Callable[..., object]) -> None:
    """Let `exchange` put kernels into a model, and take them out again if they differ."""
    before = _reading(model)
    scope: Any = vars(sys.modules[type(model).__module__])
    was, modules = dict(scope), {module: dict(vars(module)) for module in model.modules()}
    exchange(model, **OFF)
    if all(vars(module) == state for module, state in modules.items()):
        log.info("kernels: transformers' own (Liger has none for %s)", model.config.model_type)
        return
    if flaw := _flaw(before, _reading(model), model):
        for module, state in modules.items():
            vars(module).clear()
            vars(module).update(state)
        scope.update(was)
        log.info("kernels: transformers' own (Liger's: %s)", flaw)
        return
    log.info("kernels: Liger's (agree with transformers' own)")


def _reading(model: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """The log-probability of an example, and its gradient by the embeddings."""
    example = Example.draw(model)
    device = next(model.parameters()).device
    with torch.enable_grad(), caught_embeddings(model) as embeddings:
        total = plain_sum(model, example.trunk, example.first, device)
        (slope,) = torch.autograd.grad(total, embeddings)
    return total.detach() / len(example.first), slope.float()


def _flaw(before: Any, after: Any, model: Any) -> str | None:
    (own, own_slope), (fused, fused_slope) = before, after
    dtype = next(model.parameters()).dtype
    off = (own - fused).abs().item()
    turned = ((own_slope - fused_slope).norm() / own_slope.norm()).item()
    if off <= ROUNDING[dtype] and turned <= SLOPE_ROUNDING[dtype]:
        return None
    return (
        f"log-probs differ by {off:.3g} nats per token, gradients by {turned:.3g} of their length"
    )
