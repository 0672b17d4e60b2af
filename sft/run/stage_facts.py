"""Facts of a training stage: tokens, steps, seconds, first and last loss."""

from collections.abc import Mapping
from dataclasses import dataclass

# `loss_first` and `loss_last` are means over this share of the steps, and over so many at most:
# a step's few rows differ from another's by more than training changes.
SMOOTHED, SMOOTHED_STEPS = 0.25, 50
# A quarter of fewer steps is a single one, whose rows say more than the training does, so reports
# leave both losses out.
COMPARABLE_STEPS = 8


@dataclass(frozen=True)
class StageFacts:
    """What a stage did; the `stages` entry of results.json.

    Attributes:
        tokens: read in training, over all epochs.
        seconds: of training alone, over all starts; what was measured in between is left out.
        loss_first, loss_last: means over the first and the last steps, see `smoothed_losses`.
    """

    tokens: int
    steps: int
    seconds: float
    loss_first: float
    loss_last: float


def smoothed_losses(losses: Mapping[int, float]) -> tuple[float, float]:
    """The mean loss of the first and of the last steps: a quarter of them each, at most 50.

    Args:
        losses: by step, the mean over the steps since the one logged before. A mean that reaches
            over the border of the first or last quarter counts with the steps within.
    """
    steps = list(losses)
    span = min(max(1, round(SMOOTHED * steps[-1])), SMOOTHED_STEPS)
    first = last = 0.0
    for before, step in zip([0, *steps], steps, strict=False):
        first += losses[step] * max(0, min(step, span) - before)
        last += losses[step] * max(0, step - max(before, steps[-1] - span))
    return first / span, last / span
