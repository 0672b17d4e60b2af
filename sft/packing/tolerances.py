"""Tolerances for comparing two computations of the same model, by the dtype of the weights.

Every check at the start of a run (packed rows, Liger's kernels, the fused head, padded batches)
takes its bounds from `TOLERANCES` and reports errors through `error_summary`.
"""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Tolerance:
    """The largest differences that rounding explains.

    Log-probabilities differ absolutely; logits and gradients are compared by `relative_error`.
    """

    log_prob: float  # nats per token, between packed and single rows
    gradient: float  # by the embeddings
    fused_head: float  # log-probs and gradients of one matrix product, so less than of all layers
    causality: float  # logits of one row read twice; mixtures of experts group their tokens anew
    cached: float  # logits of padded rows with a cache, against a plain forward


TOLERANCES = {
    torch.float64: Tolerance(1e-6, 1e-6, 1e-6, 1e-6, 1e-6),
    torch.float32: Tolerance(1e-3, 0.01, 1e-3, 1e-3, 1e-3),
    torch.bfloat16: Tolerance(0.1, 0.2, 0.05, 0.05, 0.1),
    torch.float16: Tolerance(0.05, 0.05, 0.01, 0.01, 0.02),
}


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the norm of the difference as a share of the norm of `expected`."""
    error: float = ((found - expected).norm() / expected.norm()).item()
    return error


def score_mismatch(
    found: tuple[torch.Tensor, torch.Tensor],
    expected: tuple[torch.Tensor, torch.Tensor],
    *,
    bounds: tuple[float, float],
) -> str | None:
    """Return how (log-probs, their gradient) differ by more than the bounds of each, or None."""
    value_error = (found[0] - expected[0]).abs().max().item()
    grad_error = relative_error(found[1], expected[1])
    if value_error <= bounds[0] and grad_error <= bounds[1]:  # False for NaN
        return None
    return (
        f"log-probs differ by {value_error:.3g} nats per token, gradients by {grad_error:.3g} of "
        "their length"
    )


def error_summary(error: Exception) -> str:
    """Return the type of an error and the first line of its message, for a log line."""
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:160]}"
