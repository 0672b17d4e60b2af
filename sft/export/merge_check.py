"""Compares the logits of an exported model with those of the trained one.

The difference is measured on real rows, relative to what training changed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from sft.model.loading import load_model
from sft.model.placement import Placement
from sft.run.adapters import adapter_base

# Largest share of the change by training that exporting may lose (root mean square of logits). An
# exact merge rounded to bfloat16 loses a few hundredths.
LOST = 0.1
# Logits that differ by less are equal: float32 sums depend on the order of terms.
EQUAL = 1e-4
POSITIONS = 16  # per row, evenly spaced: the logits of the complete vocabulary stay in memory


@dataclass(frozen=True)
class MergeCheck:
    """Logits of the published model against the trained one, and of the base against it.

    Root mean squares over positions and vocabulary, after subtracting each position's mean logit,
    which softmax ignores.
    """

    positions: int
    lost: float  # published - trained
    changed: float  # base - trained
    worst: float  # the largest single |published - trained|
    agree: float  # share of positions with the same most likely token
    dtype: str = "float32"  # of the published weights
    instead_of: str | None = None  # why it is not the requested dtype

    @property
    def share(self) -> float:
        return self.lost / self.changed if self.changed else float(not self.lost <= EQUAL)


@dataclass(frozen=True)
class TrainedModel:
    """A trained model or adapter, and how it is compared with other weights."""

    path: str
    base: str  # the model that it was trained from
    rows: Sequence[Sequence[int]]  # token ids of real conversations, to compare logits on
    placement: Placement  # where it is merged and compared, in float32; not in 4 bits
    trust_remote_code: bool = False

    def load(self, path: str) -> Any:
        trust = self.trust_remote_code
        return load_model(path, self.placement, dtype=torch.float32, trust_remote_code=trust)

    @torch.no_grad()
    def logits(self, model: Any) -> torch.Tensor:
        """Return the logits at `POSITIONS` positions of each row, [P, V] float32 on the CPU."""
        device = next(model.parameters()).device
        found = []
        for row in self.rows:
            count = min(POSITIONS, len(row))
            places = torch.linspace(0, len(row) - 1, count, device=device).long()
            ids = torch.tensor([list(row)], device=device)
            logits = model(input_ids=ids, use_cache=False, logits_to_keep=places).logits[0]
            found.append(logits.float().cpu())
        return torch.cat(found)


def compare_logits(
    published: torch.Tensor, *, trained: torch.Tensor, base: torch.Tensor
) -> MergeCheck:
    """Compare the logits [P, V] of two models, relative to the change from the base's.

    A base with a smaller vocabulary is compared on the tokens that it has.
    """
    off = published - trained
    off -= off.mean(1, keepdim=True)
    known = min(base.shape[1], trained.shape[1])
    moved = base[:, :known] - trained[:, :known]
    moved -= moved.mean(1, keepdim=True)
    return MergeCheck(
        positions=trained.shape[0],
        lost=off.square().mean().sqrt().item(),
        changed=moved.square().mean().sqrt().item(),
        worst=off.abs().max().item(),
        agree=(published.argmax(1) == trained.argmax(1)).float().mean().item(),
    )


def compare_with_4bit(
    trained: TrainedModel, merged: str, *, in_4bit: Placement, use: Placement
) -> MergeCheck:
    """Compare a merged model, placed as in `use`, with its adapter over 4-bit weights."""

    def logits(path: str, placement: Placement) -> torch.Tensor:
        trust = trained.trust_remote_code
        model = load_model(path, placement, dtype=in_4bit.compute, trust_remote_code=trust)
        return trained.logits(model)

    base, exact = logits(adapter_base(trained.path), in_4bit), logits(trained.path, in_4bit)
    return compare_logits(logits(merged, use), trained=exact, base=base)


def describe_check(check: MergeCheck) -> str:
    change = f"{check.share:.1%} of what training changed"
    if check.changed <= EQUAL:
        change = "and training had changed none of them"
    return (
        f"on {check.positions} positions of real rows logits are off by {check.lost:.2g} (root "
        f"mean square), {change}; the same next token at {check.agree:.1%}"
    )
