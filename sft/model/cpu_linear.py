"""Linear layers over the few rows of decoding, on AMD processors in float32.

For 1 to 8 rows MKL's kernels take 1.3 to 3 times as long there where the rows come first, x W^T, as
where the weight does, W x^T (`python tests/benchmarks/kernel_speed.py`); for more rows there is
little difference. On other processors nothing was measured, and nothing is changed.
"""

import functools
import platform
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

FEW = 8


@contextmanager
def weight_first_layers(model: torch.nn.Module) -> Iterator[None]:
    """Within, plain linear layers of `model` put the weight first where that is faster."""
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
    """rows W^T + bias: [N, I], [O, I], [O] -> [N, O]."""
    if not 0 < len(rows) <= FEW or not weight_first(weight):
        return torch.nn.functional.linear(rows, weight, bias)
    # One row would go another way, which reads the weight at half the speed.
    pair = torch.cat([rows, rows]) if len(rows) == 1 else rows
    product = (weight @ pair.T).T[: len(rows)].contiguous()
    return product if bias is None else product + bias


def weight_first(weight: torch.Tensor) -> bool:
    """Whether W x^T is faster than x W^T for a few rows."""
    return weight.device.type == "cpu" and weight.dtype == torch.float32 and _mkl_on_amd()


def _forward(self: Any, x: torch.Tensor) -> torch.Tensor:
    """Of a linear layer: [..., I] -> [..., O]."""
    out = linear(x.reshape(-1, x.shape[-1]), self.weight, self.bias)
    return out.view(*x.shape[:-1], out.shape[-1])


@functools.cache
def _mkl_on_amd() -> bool:
    if platform.system() != "Linux" or not torch.backends.mkl.is_available():
        return False
    return "AuthenticAMD" in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
