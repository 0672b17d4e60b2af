"""Compare CPU attention and linear layers of this project with torch's, as ratios.

    python tests/benchmarks/kernel_speed.py

Tiled attention in bfloat16 (`sft.packing.tiled_attention`), forward and backward, on chats of
several lengths and on an answer after a prompt as in DPO, with the error of both relative to
attention in float64. Linear layers in float32 on the few rows of decoding (`sft.model.cpu_linear`),
those of ten layers of SmolLM2-135M. Medians of interleaved repeats.
"""

if __name__ == "__main__":  # before the slow imports, so that Ctrl-C there ends quietly
    from sft import end_on_interrupt

    end_on_interrupt()

import argparse
import statistics
import sys
import time
from collections.abc import Callable

import torch
from torch.nn.functional import scaled_dot_product_attention

from sft.model import cpu_linear
from sft.packing.layout import Span
from sft.packing.tiled_attention import pieces, tiled_attention
from sft.run.command import run_command

HEADS, GROUPS, WIDTH = 9, 3, 64
SHAPES = ((100,), (200,), (400,), (800,), (2000,), (600, 280), (1500, 500))  # (trunk, branch)
# (inputs, outputs) of a layer's matrices
MATRICES = ((576, 576), (576, 192), (576, 192), (576, 576), (576, 1536), (576, 1536), (1536, 576))
LAYERS, REPEATS = 10, 15


def main() -> int:
    """Refuse arguments and measure; exit as `run_command` does."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    return run_command(measure, resumable=False)


def measure() -> None:
    """Print the ratios for every shape and number of rows."""
    torch.manual_seed(0)
    print("attention, bfloat16: tiles against torch's kernel")
    for shape in SHAPES:
        attention(*shape)
    print("linear layers, float32: weight first against torch's order")
    matrices = [torch.randn(o, i) for _ in range(LAYERS) for i, o in MATRICES]
    for rows in (1, 2, 3, 4, 6, 8, 12, 16, 32):
        linear_layers(rows, matrices)


def attention(trunk: int, *branches: int) -> None:
    row = pieces([Span(0, 0, trunk, branches)], before=0)
    length = trunk + sum(branches)

    def drawn(heads: int) -> torch.Tensor:
        values = torch.randn(1, length, heads, WIDTH, dtype=torch.bfloat16)
        return values.transpose(1, 2).requires_grad_()

    def tiles(*inputs: torch.Tensor) -> torch.Tensor:
        return tiled_attention(*inputs, row)

    def kernel(*inputs: torch.Tensor) -> torch.Tensor:
        # A branch attends to its trunk and itself: with one branch, plain causal attention.
        return scaled_dot_product_attention(*inputs, is_causal=True, enable_gqa=True)

    states = [drawn(HEADS), drawn(GROUPS), drawn(GROUPS)]
    exact = learnt(kernel, [s.detach().double().requires_grad_() for s in states])
    ours, theirs = side_by_side(lambda: learnt(tiles, states), lambda: learnt(kernel, states))
    off = [distance(learnt(run, states), exact) for run in (tiles, kernel)]
    print(
        f"{trunk} + {list(branches)}: {theirs / ours:.2f} x  ours {ours:.2f} ms, torch "
        f"{theirs:.2f} ms; off by {off[0]:.4f} and {off[1]:.4f}"
    )


def learnt(run: Callable[..., torch.Tensor], states: list[torch.Tensor]) -> list[torch.Tensor]:
    output = run(*states)
    return [output.detach(), *torch.autograd.grad(output, states, torch.ones_like(output))]


def distance(found: list[torch.Tensor], exact: list[torch.Tensor]) -> float:
    """Return the largest relative error over output and gradients."""
    pairs = zip(found, exact, strict=True)
    return max(((a.double() - b).norm() / b.norm()).item() for a, b in pairs)


def linear_layers(count: int, matrices: list[torch.Tensor]) -> None:
    inputs = {width: torch.randn(count, width) for width in (576, 1536)}

    def all_of(product: Callable[..., torch.Tensor]) -> Callable[[], object]:
        return lambda: [product(inputs[m.shape[1]], m) for m in matrices]

    ours, theirs = side_by_side(all_of(cpu_linear.linear), all_of(torch.nn.functional.linear))
    print(f"{count} rows: {theirs / ours:.2f} x  ours {ours:.2f} ms, torch {theirs:.2f} ms")


def side_by_side(ours: Callable[[], object], theirs: Callable[[], object]) -> list[float]:
    """Return the milliseconds of each function."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(REPEATS):
        for run, found in zip((ours, theirs), times, strict=True):
            start = time.perf_counter()
            run()
            found.append(1e3 * (time.perf_counter() - start))
    return [statistics.median(found) for found in times]


if __name__ == "__main__":
    sys.exit(main())
