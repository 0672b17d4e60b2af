"""Attention of one document in bfloat16 on a CPU: by our tiles and by torch's kernel, as ratios.

    python tests/benchmarks/attention_speed.py [--heads 9] [--groups 3] [--width 64]

Forward and backward, medians of interleaved repeats: a chat of some length, and an answer behind a
prompt as DPO has it. Beside the ratio stands how far either lies from attention in float64.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch.nn.functional import scaled_dot_product_attention

from sft.packing import Span
from sft.tiles import pieces, tiled_attention

SHAPES = ((100,), (200,), (400,), (800,), (2000,), (600, 280), (1500, 500))  # (trunk, branch)
REPEATS = 15


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--heads", type=int, default=9)
    parser.add_argument("--groups", type=int, default=3)
    parser.add_argument("--width", type=int, default=64)
    given = parser.parse_args()
    torch.manual_seed(0)
    for trunk, *branches in SHAPES:
        row = pieces([Span(0, 0, trunk, tuple(branches))], before=0)
        length = trunk + sum(branches)

        def drawn(heads: int, length: int = length) -> torch.Tensor:
            values = torch.randn(1, length, heads, given.width, dtype=torch.bfloat16)
            return values.transpose(1, 2).requires_grad_()

        states = [drawn(given.heads), drawn(given.groups), drawn(given.groups)]
        # A branch sees its trunk and itself: here one sequence, so plain causal attention.
        runs: dict[str, Callable[..., torch.Tensor]] = {
            "tiles": lambda *inputs, row=row: tiled_attention(*inputs, row),
            "kernel": lambda *inputs: scaled_dot_product_attention(
                *inputs, is_causal=True, enable_gqa=True
            ),
        }
        exact = learnt(runs["kernel"], [s.detach().double().requires_grad_() for s in states])
        times: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(REPEATS):
            for name, run in runs.items():
                start = time.perf_counter()
                learnt(run, states)
                times[name].append(time.perf_counter() - start)
        ours, theirs = (1e3 * statistics.median(times[name]) for name in runs)
        off = [distance(learnt(run, states), exact) for run in runs.values()]
        print(
            f"{trunk} + {branches}: {theirs / ours:.2f} x  ours {ours:.2f} ms, kernel {theirs:.2f} "
            f"ms; off by {off[0]:.4f} and {off[1]:.4f}"
        )


def learnt(run: Callable[..., torch.Tensor], states: list[torch.Tensor]) -> list[torch.Tensor]:
    output = run(*states)
    return [output.detach(), *torch.autograd.grad(output, states, torch.ones_like(output))]


def distance(found: list[torch.Tensor], exact: list[torch.Tensor]) -> float:
    """The largest, over output and gradients, as a share of their length."""
    pairs = zip(found, exact, strict=True)
    return max(((a.double() - b).norm() / b.norm()).item() for a, b in pairs)


if __name__ == "__main__":
    main()
