"""Preference losses: pure functions of four log-probabilities, each with its equation.

Notation: h = (log pi(y_w|x) - log ref(y_w|x)) - (log pi(y_l|x) - log ref(y_l|x)), the difference of
the implicit rewards of the chosen answer y_w and the rejected y_l, divided by beta.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from sft.config.sections import DpoStage
from sft.errors import UserError


@dataclass(frozen=True)
class PairScores:
    """Log-probs of B pairs, summed over the completion's tokens; all float [B]."""

    chosen: torch.Tensor
    rejected: torch.Tensor
    ref_chosen: torch.Tensor
    ref_rejected: torch.Tensor
    chosen_tokens: torch.Tensor  # completion lengths, end-of-turn included
    rejected_tokens: torch.Tensor

    @property
    def h(self) -> torch.Tensor:
        """The reward difference divided by beta, [B]."""
        return (self.chosen - self.ref_chosen) - (self.rejected - self.ref_rejected)

    @property
    def h_per_token(self) -> torch.Tensor:
        """`h` with each answer's log-ratio divided by its length, [B]."""
        return (self.chosen - self.ref_chosen) / self.chosen_tokens - (
            self.rejected - self.ref_rejected
        ) / self.rejected_tokens


def sigmoid(s: PairScores, *, beta: float, label_smoothing: float) -> torch.Tensor:
    """-log sigmoid(beta h): DPO, arXiv 2305.18290, equation 7."""
    return -F.logsigmoid(beta * s.h)


def sigmoid_norm(s: PairScores, *, beta: float, label_smoothing: float) -> torch.Tensor:
    """DPO on length-normalized log-ratios: Tulu 3, arXiv 2411.15124, equation 6."""
    return -F.logsigmoid(beta * s.h_per_token)


def hinge(s: PairScores, *, beta: float, label_smoothing: float) -> torch.Tensor:
    """max(0, 1 - beta h): the SLiC loss on DPO's reward, arXiv 2309.06657."""
    return torch.relu(1 - beta * s.h)


def ipo(s: PairScores, *, beta: float, label_smoothing: float) -> torch.Tensor:
    """(h - 1 / (2 beta))^2, arXiv 2310.12036, equation 17; per token, as in trl."""
    return (s.h_per_token - 1 / (2 * beta)) ** 2


def robust(s: PairScores, *, beta: float, label_smoothing: float) -> torch.Tensor:
    """DPO made unbiased for labels flipped with probability e: arXiv 2403.00409, equation 12."""
    e = label_smoothing
    right, wrong = -F.logsigmoid(beta * s.h), -F.logsigmoid(-beta * s.h)
    return ((1 - e) * right - e * wrong) / (1 - 2 * e)


def sft(s: PairScores, *, beta: float, label_smoothing: float) -> torch.Tensor:
    """Negative log-likelihood of the chosen answer per token: the RPO term, arXiv 2404.19733."""
    # A mean over pairs: trl's mean over the tokens of a micro-batch depends on how a step is split.
    return -s.chosen / s.chosen_tokens


LOSSES: dict[str, Callable[..., torch.Tensor]] = {
    f.__name__: f for f in (sigmoid, sigmoid_norm, hinge, ipo, robust, sft)
}


def check_loss(section: DpoStage) -> None:
    """Check the options of the loss before anything is loaded.

    Raises:
        UserError: an unknown loss, a wrong number of weights, or a label_smoothing that the loss
            does not use or is undefined for.
    """
    loss_type = section.trl["loss_type"]
    loss_weights = section.trl.get("loss_weights")
    label_smoothing = section.trl.get("label_smoothing", 0.0)
    for name in loss_type:
        if name not in LOSSES:
            raise UserError(f"dpo.loss_type={name} is not offered; choose from {', '.join(LOSSES)}")
    if loss_weights is not None and len(loss_weights) != len(loss_type):
        raise UserError(
            f"dpo.loss_weights has {len(loss_weights)} values for {len(loss_type)} loss types; "
            "give one each"
        )
    if "robust" in loss_type and not 0 <= label_smoothing < 0.5:
        raise UserError(f"dpo.label_smoothing={label_smoothing} must be in [0, 0.5) for robust")
    if label_smoothing and "robust" not in loss_type:
        raise UserError(
            f"dpo.label_smoothing={label_smoothing} takes effect with loss_type robust only; "
            "remove it or choose robust"
        )


def preference_loss(
    scores: PairScores,
    *,
    beta: float,
    loss_type: Sequence[str] = ("sigmoid",),
    loss_weights: Sequence[float] | None = None,
    label_smoothing: float = 0.0,
) -> torch.Tensor:
    """Return the loss of each pair [B], the weighted sum of the named losses as in MPO.

    Raises:
        KeyError: a name that `check_loss` rejects.
    """
    weights = loss_weights or [1.0] * len(loss_type)
    total = torch.zeros_like(scores.chosen)
    for name, weight in zip(loss_type, weights, strict=True):
        total = total + weight * LOSSES[name](scores, beta=beta, label_smoothing=label_smoothing)
    return total
