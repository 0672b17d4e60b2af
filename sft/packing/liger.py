"""Liger's CUDA kernels for norms, rotary positions and gated activations, where they agree.

Each operation is one kernel in Liger instead of about ten in transformers. Liger's losses are not
used: `sft.packing.lm_head_logprobs` computes the log-probs.
"""

import importlib
import logging
import sys
from collections.abc import Callable
from typing import Any

import torch
from transformers.utils import is_liger_kernel_available

from sft.packing.equivalence import Example, embedding_outputs, plain_log_prob
from sft.packing.tolerances import TOLERANCES, score_mismatch

log = logging.getLogger(__name__)

OFF = {"cross_entropy": False, "fused_linear_cross_entropy": False}


def enable_liger(model: Any) -> None:
    """Install Liger's kernels in a model on CUDA if its log-probs and gradients stay equal within
    rounding. The decision is logged.

    Rotary embeddings are replaced in the model's Python module, for all models of its type.
    """
    if next(model.parameters()).device.type != "cuda":
        return
    if not is_liger_kernel_available():
        log.info("kernels: transformers' own (`pip install -e '.[cuda]'` brings Liger's)")
        return
    module = importlib.import_module("liger_kernel.transformers")
    replace_if_equal(model, module._apply_liger_kernel_to_instance)


def replace_if_equal(model: Any, replace: Callable[..., object]) -> None:
    """Let `replace` install kernels in a model, and restore the model if results differ."""
    before = _probe(model)
    module_scope: Any = vars(sys.modules[type(model).__module__])
    saved = dict(module_scope)
    states = {module: dict(vars(module)) for module in model.modules()}
    replace(model, **OFF)
    if all(vars(module) == state for module, state in states.items()):
        log.info("kernels: transformers' own (Liger has none for %s)", model.config.model_type)
        return
    tolerance = TOLERANCES[next(model.parameters()).dtype]
    after, bounds = _probe(model), (tolerance.log_prob, tolerance.gradient)
    if mismatch := score_mismatch(after, before, bounds=bounds):
        for module, state in states.items():
            vars(module).clear()
            vars(module).update(state)
        module_scope.update(saved)
        log.info("kernels: transformers' own (Liger's: %s)", mismatch)
        return
    log.info("kernels: Liger's (agree with transformers' own)")


def _probe(model: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the log-prob per token of an example, and its gradient by the embeddings."""
    example = Example.draw(model)
    with torch.enable_grad(), embedding_outputs(model) as embeddings:
        total = plain_log_prob(model, example.trunk, example.first)
        (grad,) = torch.autograd.grad(total, embeddings)
    return total.detach() / len(example.first), grad.float()
