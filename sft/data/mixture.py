"""The mixture of sources: weights become row counts, sampled at random with a seed."""

import random
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from sft.config.sections import Source
from sft.data.sources import SourceRows

RowT = TypeVar("RowT", bound=dict[str, Any])

# The paper's mixture (arXiv 2401.02954, 4.1): shares of the helpful rows, and of all for safety.
PAPER_SHARES = {"math": 0.466, "code": 0.222, "dialogue": 0.312, "safety": 0.2}


def mix(read: SourceRows, sources: Sequence[Source], *, seed: int) -> list[dict[str, Any]]:
    """Return the rows of all sources in their order, sampled by each one's weight or count."""
    mixed: list[dict[str, Any]] = []
    start = 0
    for source, count in zip(sources, read.counts, strict=True):
        kept = read.rows[start : start + count.kept]
        if source.count is None:
            mixed += take_share(kept, weight=source.weight, seed=seed)
        else:
            mixed += take_count(kept, count=source.count, seed=seed)
        start += count.kept
    return mixed


def take_share(rows: Sequence[RowT], *, weight: float, seed: int) -> list[RowT]:
    """Return `weight` times as many rows, rounded; a weight of 1 keeps the rows as they are."""
    return take_count(rows, count=round(weight * len(rows)), seed=seed)


def take_count(rows: Sequence[RowT], *, count: int, seed: int) -> list[RowT]:
    """Return exactly `count` rows: full copies, then a sample without replacement for the rest."""
    copies, rest = divmod(count, len(rows)) if rows else (0, 0)
    rng = random.Random(seed)
    sampled = sorted(rng.sample(range(len(rows)), rest))
    return list(rows) * copies + [rows[i] for i in sampled]


def share_of_kind(kind: str, counts: Mapping[str, int]) -> float:
    """Return a kind's share as the paper counts it: safety of all rows, others without safety."""
    total = sum(counts.values()) - (0 if kind == "safety" else counts.get("safety", 0))
    return counts[kind] / total
