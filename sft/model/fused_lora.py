"""LoRA's two passes with as few operations over activations as there are.

peft makes `base(x) + B(A(x)) * scaling` of whole tensors one by one, and under autocast casts every
input to float32 and back, of which it keeps a copy that nothing needs. Here the adapter's product
is added inside its own matrix product, in both passes, and what is kept is the input and A(x).
"""

import types
from typing import Any

import torch
from peft.tuners.lora import Linear
from torch.autograd.function import once_differentiable

from sft.distributed.sharding import sharded
from sft.model.cpu_linear import linear


def fuse_adapters(model: Any) -> Any:
    """Let plain LoRA layers of `model` compute so; others, and other calls, stay peft's.

    Plain is: over a frozen `torch.nn.Linear`, one adapter, no dropout, no variant (DoRA), no bias
    of its own. Where weights are spread over devices all stay peft's, whose calls gather them.
    """
    if sharded():
        return model
    for module in model.modules():
        if type(module) is Linear and (name := _only_adapter(module)):
            layer: Any = module
            layer.forward = types.MethodType(_fused(name, layer.forward), layer)
    return model


def _only_adapter(layer: Any) -> str | None:
    """The name of the one adapter that can be fused, if it is so."""
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


def _fused(name: str, plain: Any) -> Any:
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
            unfused: torch.Tensor = plain(x, *args, **kwargs)
            return unfused
        rows = x.reshape(-1, x.shape[-1]).to(compute)
        weights = (base.weight, base.bias, down, up)
        out: torch.Tensor = _Sum.apply(rows, *weights, self.scaling[name])  # type: ignore[no-untyped-call]
        # Outside of the function, whose own views nothing may write into (Llama 4 does).
        return out.view(*x.shape[:-1], out.shape[-1])

    return forward


class _Sum(torch.autograd.Function):
    """x W^T + bias + scaling (x A^T) B^T, all products in the dtype of `x` and W.

    Shapes: x [N, I], W [O, I], A [r, I], B [O, r] -> [N, O] (LoRA, arXiv 2106.09685, equation
    3). Gradients by x, A and B; those of A and B in their own dtype.
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
        inner = _product(rows, low.T, scaling)
        out = linear(rows, weight, bias).addmm_(inner, high.T)
        ctx.save_for_backward(rows, inner, weight, low, high)
        ctx.scaling, ctx.dtypes = scaling, (down.dtype, up.dtype)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:
        rows, inner, weight, low, high = ctx.saved_tensors
        back = _product(grad, high, ctx.scaling)  # by x A^T
        by_x = None
        if ctx.needs_input_grad[0]:
            by_x = (grad @ weight).addmm_(back, low)
        by_down, by_up = (back.T @ rows).to(ctx.dtypes[0]), (grad.T @ inner).to(ctx.dtypes[1])
        return by_x, None, None, by_down, by_up, None


def _product(left: torch.Tensor, right: torch.Tensor, scaling: float) -> torch.Tensor:
    """scaling * left @ right in one operation, where `*` would be another."""
    room = left.new_empty(left.shape[0], right.shape[1])
    return room.addmm_(left, right, beta=0, alpha=scaling)
