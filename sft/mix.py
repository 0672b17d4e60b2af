"""How much of each source is trained: weights become row counts, by lot from a seed."""

import random
from collections.abc import Sequence
from typing import Any, TypeVar

from sft.config import Source
from sft.data import Rows

Row = TypeVar("Row", bound=dict[str, Any])


def mix(read: Rows, sources: Sequence[Source], *, seed: int) -> list[dict[str, Any]]:
    """The rows of all sources in their order, each source's share taken by its weight."""
    mixed: list[dict[str, Any]] = []
    start = 0
    for source, count in zip(sources, read.counts, strict=True):
        kept = read.rows[start : start + count.kept]
        mixed += take_share(kept, weight=source.weight, seed=seed)
        start += count.kept
    return mixed


def take_share(rows: Sequence[Row], *, weight: float, seed: int) -> list[Row]:
    """`weight` times the rows: whole copies, then a sample without replacement for the rest.

    A weight of 1 keeps the rows and their order; 0.25 keeps a quarter; 2.5 repeats each row twice
    and half of them a third time.
    """
    copies, rest = divmod(round(weight * len(rows)), len(rows)) if rows else (0, 0)
    lot = random.Random(seed)
    drawn = sorted(lot.sample(range(len(rows)), rest))
    return list(rows) * copies + [rows[i] for i in drawn]
