"""Facts of a training stage: tokens, steps, seconds, first and last loss."""

from collections.abc import Mapping
from dataclasses import dataclass

# `loss_first` and `loss_last` are means over this share of the steps, and over at most so many: the
# loss varies more between the batches of single steps than training changes it.
SMOOTHED, SMOOTHED_STEPS = 0.25, 50
# With fewer steps a quarter is a single step, so reports leave both losses out.
COMPARABLE_STEPS = 8


@dataclass(frozen=True)
class StageFacts:
    """Facts of a training stage; an entry of `stages` in results.json.

    Attributes:
        tokens: trained on, over all epochs.
        seconds: of training, over all starts, without the measures in training.
        loss_first, loss_last: means over the first and the last steps, see `smoothed_losses`.
    """

    tokens: int
    steps: int
    seconds: float
    loss_first: float
    loss_last: float


def smoothed_losses(losses: Mapping[int, float]) -> tuple[float, float]:
    """Return the mean loss of the first and of the last quarter of the steps, at most 50 each.

    Args:
        losses: by step, the mean over the steps since the previous log step. A mean that crosses
            the border of a quarter is weighted by the steps within it.
    """
    steps = list(losses)
    span = min(max(1, round(SMOOTHED * steps[-1])), SMOOTHED_STEPS)
    first = last = 0.0
    for before, step in zip([0, *steps], steps, strict=False):
        first += losses[step] * max(0, min(step, span) - before)
        last += losses[step] * max(0, step - max(before, steps[-1] - span))
    return first / span, last / span
