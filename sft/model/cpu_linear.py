"""Compute linear layers over a few rows faster, on AMD processors in float32 (decoding)."""

import functools
import platform
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

# For 1 to 8 rows MKL on AMD takes 1.3 to 3 times as long for x W^T as for W x^T; for more rows the
# difference is small (tests/benchmarks/kernel_speed.py). Other processors were not measured.
FEW = 8


@contextmanager
def weight_first_layers(model: torch.nn.Module) -> Iterator[None]:
    """Let the linear layers of `model` compute W x^T within the context where that is faster."""
    layers: list[Any] = [
        module
        for module in model.modules()
        if type(module) is torch.nn.Linear
        and "forward" not in vars(module)
        and weight_first(module.weight)
    ]
    for layer in layers:
        layer.forward = types.MethodType(_forward, layer)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def linear(
    rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """Return rows W^T + bias: [N, I], [O, I], [O] -> [N, O]."""
    if not 0 < len(rows) <= FEW or not weight_first(weight):
        return torch.nn.functional.linear(rows, weight, bias)
    # MKL computes a single row with GEMV, which reads the weight at half the speed.
    pair = torch.cat([rows, rows]) if len(rows) == 1 else rows
    product = (weight @ pair.T).T[: len(rows)].contiguous()
    return product if bias is None else product + bias


def weight_first(weight: torch.Tensor) -> bool:
    """Whether W x^T is faster than x W^T for a few rows."""
    return weight.device.type == "cpu" and weight.dtype == torch.float32 and _mkl_on_amd()


def _forward(self: Any, x: torch.Tensor) -> torch.Tensor:
    """Forward pass of a linear layer: [..., I] -> [..., O]."""
    out = linear(x.reshape(-1, x.shape[-1]), self.weight, self.bias)
    return out.view(*x.shape[:-1], out.shape[-1])


@functools.cache
def _mkl_on_amd() -> bool:
    if platform.system() != "Linux" or not torch.backends.mkl.is_available():
        return False
    return "AuthenticAMD" in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
