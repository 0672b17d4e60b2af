"""Sign-flip test and interval for the ratio of two sums, such as bits per byte.

If two models are equal, swapping them on a text only changes the sign of that text's difference, so
all signs are equally likely. The test of a ratio r is that test for bits - r * bytes; the ratios
that it does not reject are quantiles of the ratios of random subsets of the texts (Hartigan 1969,
Journal of the American Statistical Association 64:1303-1317). Unlike a t interval, it is valid for
few texts of very different lengths.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

FEWEST = 6  # fewer values give no 95 % interval: 2 / 2**5 is more than 0.05
_ALL_SUBSETS = 14  # up to this many values all subsets are used, else random ones
_DRAWS, _FEWER_DRAWS = 20_000, 10_000
_BYTES = 1 << 25  # of random bits in memory at a time


@dataclass(frozen=True)
class RatioTest:
    """A ratio of two sums with its interval and two-sided p-value.

    `ci` is None for fewer than FEWEST values, else it excludes 0 exactly if p < 1 - level.
    """

    value: float
    ci: tuple[float, float] | None
    p: float


def ratio_test(amounts: Sequence[float], sizes: Sequence[float], *, level: float) -> RatioTest:
    """Test sum(amounts) / sum(sizes) of n texts; `sizes` [n] are positive.

    The random subsets depend on n alone, so results are reproducible.
    """
    amount, size = np.asarray(amounts, dtype=float), np.asarray(sizes, dtype=float)
    ratios = np.sort(_subset_ratios(amount, size))
    # The empty subset (all subsets) or the observed data (random draws) counts in both tails.
    subsets = len(ratios) + 1
    slack = 1e-12 * float(np.max(np.abs(ratios), initial=0.0))
    fewer = 1 + int(np.sum(ratios <= slack))
    more = 1 + int(np.sum(ratios >= -slack))
    p = min(1.0, 2 * min(fewer, more) / subsets)
    # Ratios below the interval; one more would make a tail of (1 - level) / 2.
    outside = math.ceil((1 - level) / 2 * subsets - 1e-9) - 1
    value = float(np.sum(amount) / max(float(np.sum(size)), 1e-300))
    if len(amount) < FEWEST or outside < 1:
        return RatioTest(value, None, p)
    return RatioTest(value, (float(ratios[outside - 1]), float(ratios[-outside])), p)


def _subset_ratios(amount: np.ndarray, size: np.ndarray) -> np.ndarray:
    """Return the ratios of non-empty subsets: of all 2**n - 1, or of random ones."""
    n = len(amount)
    if n <= _ALL_SUBSETS:
        members = (np.arange(1, 2**n)[:, None] >> np.arange(n)) & 1
        return np.asarray((members @ amount) / (members @ size))
    draws = max(_FEWER_DRAWS, min(_DRAWS, 10**8 // n))
    rng = np.random.default_rng(n)
    step = max(1, _BYTES // (8 * n))
    both = np.stack([amount, size], axis=1)
    found = []
    for start in range(0, draws, step):
        count = min(step, draws - start)
        bits = np.unpackbits(
            np.frombuffer(rng.bytes(count * -(-n // 8)), dtype=np.uint8).reshape(count, -1), axis=1
        )
        sums = bits[:, :n].astype(float) @ both
        found.append(sums[sums[:, 1] > 0])
    kept = np.concatenate(found)
    return np.asarray(kept[:, 0] / kept[:, 1])
