"""Fuse LoRA's forward and backward passes into fewer operations over activations.

PEFT computes `base(x) + B(A(x)) * scaling` one tensor at a time, and under autocast casts every
input to float32 and keeps the copy. Here matrix products accumulate into their output (`addmm_`) in
both passes, and only the input and A(x) are saved.
"""

import types
from typing import Any

import torch
from peft.tuners.lora import Linear
from torch.autograd.function import once_differentiable

from sft.distributed.sharding import sharded
from sft.model.cpu_linear import linear


def fuse_adapters(model: Any) -> Any:
    """Fuse the LoRA layers of `model` that `_only_adapter` accepts; the others remain PEFT's."""
    if sharded():  # FSDP2 and ZeRO-3 gather the weights in the forward calls of PEFT's modules
        return model
    for module in model.modules():
        if type(module) is Linear and (name := _only_adapter(module)):
            layer: Any = module
            layer.forward = types.MethodType(_fused(name, layer.forward), layer)
    return model


def _only_adapter(layer: Any) -> str | None:
    """Return the adapter's name if it is the only one of a frozen linear layer, without dropout,
    bias or a variant such as DoRA; None otherwise."""
    base = layer.base_layer
    names = list(layer.lora_A)
    if type(base) is not torch.nn.Linear or base.weight.requires_grad or len(names) != 1:
        return None
    (name,) = names
    plain = (
        not layer.lora_variant
        and type(layer.lora_dropout[name]) is torch.nn.Identity
        and not layer.lora_bias[name]
    )
    return name if plain else None


def _fused(name: str, unfused: Any) -> Any:
    def forward(self: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        base, down, up = self.base_layer, self.lora_A[name].weight, self.lora_B[name].weight
        autocast = torch.is_autocast_enabled(x.device.type)
        compute = torch.get_autocast_dtype(x.device.type) if autocast else down.dtype
        if (
            args
            or kwargs
            or self.disable_adapters
            or self.merged
            or self.active_adapters != [name]
            or base.weight.dtype != compute
        ):
            out: torch.Tensor = unfused(x, *args, **kwargs)
            return out
        rows = x.reshape(-1, x.shape[-1]).to(compute)
        weights = (base.weight, base.bias, down, up)
        out = _LoraLinear.apply(rows, *weights, self.scaling[name])  # type: ignore[no-untyped-call]
        # A view from inside the autograd function could not be modified in place (Llama 4 does).
        return out.view(*x.shape[:-1], out.shape[-1])

    return forward


class _LoraLinear(torch.autograd.Function):
    """x W^T + bias + scaling (x A^T) B^T, in the dtype of `x` and W (arXiv 2106.09685, eq. 3).

    Shapes: x [N, I], W [O, I], A [r, I], B [O, r] -> [N, O]. Gradients by x, A and B.
    """

    @staticmethod
    def forward(
        ctx: Any,
        rows: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        down: torch.Tensor,
        up: torch.Tensor,
        scaling: float,
    ) -> torch.Tensor:
        low, high = down.to(rows.dtype), up.to(rows.dtype)
        inner = _scaled_matmul(rows, low.T, scaling)
        out = linear(rows, weight, bias).addmm_(inner, high.T)
        ctx.save_for_backward(rows, inner, weight, low, high)
        ctx.scaling, ctx.dtypes = scaling, (down.dtype, up.dtype)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:
        rows, inner, weight, low, high = ctx.saved_tensors
        grad_inner = _scaled_matmul(grad, high, ctx.scaling)
        grad_rows = None
        if ctx.needs_input_grad[0]:
            grad_rows = (grad @ weight).addmm_(grad_inner, low)
        grad_down = (grad_inner.T @ rows).to(ctx.dtypes[0])
        grad_up = (grad.T @ inner).to(ctx.dtypes[1])
        return grad_rows, None, None, grad_down, grad_up, None


def _scaled_matmul(left: torch.Tensor, right: torch.Tensor, scaling: float) -> torch.Tensor:
    """Return scaling * left @ right in one operation."""
    out = left.new_empty(left.shape[0], right.shape[1])
    return out.addmm_(left, right, beta=0, alpha=scaling)
