"""Intervals and tests for scores and for paired differences: pure functions, no I/O.

Fractions are in [0, 1] throughout; a difference is `second - first`. An interval at LEVEL excludes
0 exactly where the p-value of the same row is below 1 - LEVEL: the two are one test.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats as distributions

from eval.metrics import power
from eval.metrics.bounded_mean import (
    mean_bounds,
    mean_p_value,
    proportion_bounds,
    proportion_p_value,
)
from eval.metrics.clusters import Clusters, summed, weight
from eval.metrics.sign_flips import RatioTest, ratio_test

LEVEL = 0.95
BITS_PER_BYTE = "bits_per_byte"  # lm-eval's name of the metric


@dataclass(frozen=True)
class Comparison:
    """A paired difference with its interval and two-sided p-value.

    Attributes:
        ci: None of bits of fewer than `eval.metrics.sign_flips.FEWEST` texts, which show no bounds.
        visible: the smallest true difference that n questions like these would most likely show
            (probability `eval.metrics.power.POWER`, one comparison at 1 - LEVEL); None where it
            cannot be estimated, or where no difference would show.
        needed: questions like these that would most likely show a difference as large as delta;
            None where delta is 0 or it cannot be estimated.
        smallest_p: the smallest p-value that as many changed scores could have had, see `holm`.
        gained: of right/wrong scores, pairs wrong -> right, McNemar's b; else None.
        lost: pairs right -> wrong, McNemar's c.
    """

    delta: float
    ci: tuple[float, float] | None
    p: float
    n: int
    test: str
    visible: float | None
    needed: int | None
    smallest_p: float
    gained: int | None = None
    lost: int | None = None


def wilson(successes: float, n: float, *, level: float = LEVEL) -> tuple[float, float]:
    """Score interval of a proportion (Wilson 1927); (0, 1) when n is 0.

    Unlike the Wald interval it has a width at 0 and 1, which is where repetition rates live.
    """
    assert 0 <= successes <= n, f"{successes} successes of {n}"
    if n == 0:
        return 0.0, 1.0
    z2 = float(distributions.norm.ppf(0.5 + level / 2)) ** 2
    rate = successes / n
    center = (rate + z2 / (2 * n)) / (1 + z2 / n)
    half = math.sqrt(z2 * (rate * (1 - rate) / n + z2 / (4 * n * n))) / (1 + z2 / n)
    # The two end points are exact there; rounding would leave 1e-17 or 0.99...9.
    low = 0.0 if successes == 0 else center - half
    high = 1.0 if successes == n else center + half
    return low, high


def score_interval(
    values: Sequence[float],
    *,
    clusters: Clusters | None = None,
    low: float = 0.0,
    high: float = 1.0,
    level: float = LEVEL,
) -> tuple[float, float]:
    """Interval of a mean score in [low, high]: Wilson for right/wrong, else `mean_bounds`.

    With `clusters` [n] the scores count as the fewer independent ones that would err as much
    (`eval.metrics.clusters.weight`).
    """
    each = weight(values, clusters, level=level)
    if is_binary(values) and (low, high) == (0.0, 1.0):
        return wilson(sum(values) * each, len(values) * each, level=level)
    return mean_bounds(values, low=low, high=high, level=level, weight=each)


def mcnemar(gained: int, lost: int) -> float:
    """Exact McNemar test: two-sided binomial(gained + lost, 1/2) p-value; 1.0 without discord.

    `gained` counts pairs wrong -> right, `lost` right -> wrong (McNemar 1947).
    """
    return proportion_p_value(gained, lost)


def paired_proportion_interval(
    gained: int, lost: int, n: int, *, level: float = LEVEL
) -> tuple[float, float]:
    """Interval of a paired difference of proportions (gained - lost) / n.

    It excludes 0 exactly where `mcnemar` is below 1 - level (`eval.metrics.bounded_mean`), keeps
    its coverage in small samples and near 0 and 1, and has a width even when no pair disagrees.
    """
    assert min(gained, lost) >= 0 and gained + lost <= n, f"{gained} + {lost} of {n}"
    return proportion_bounds(gained, lost, n, level=level)


def compare_paired(
    first: Sequence[float],
    second: Sequence[float],
    *,
    clusters: Clusters | None = None,
    level: float = LEVEL,
) -> Comparison:
    """Paired difference of two score lists [n], each in [0, 1], in the same document order.

    Right/wrong scores: McNemar's exact test. Fractions: the test of a bounded mean. Documents that
    share a passage (`clusters` [n]) count as the fewer that are independent, in either test.
    """
    assert len(first) == len(second), f"{len(first)} and {len(second)} scores are not paired"
    n = len(first)
    if clusters is not None and len(set(clusters)) == n:
        clusters = None
    differences = [after - before for before, after in zip(first, second, strict=True)]
    delta = float(np.mean(differences)) if n else 0.0
    each = weight(differences, clusters, level=level)
    suffix = "" if clusters is None else ", clustered"
    smallest = _smallest_p(differences)
    if is_binary(first) and is_binary(second):
        gained, lost = differences.count(1), differences.count(-1)
        discord = (gained + lost) / n if n else 0.0
        counts = gained * each, lost * each
        return Comparison(
            delta,
            proportion_bounds(*counts, n * each, level=level),
            proportion_p_value(*counts),
            n,
            f"McNemar{suffix}" if suffix else "exact McNemar",
            visible=power.visible_proportion(discord, n * each, level=level),
            needed=_scaled(power.needed_pairs(delta, discord, level=level), each),
            smallest_p=smallest,
            gained=gained,
            lost=lost,
        )
    spread = float(np.std(differences))
    return Comparison(
        delta,
        mean_bounds(differences, low=-1, high=1, level=level, weight=each),
        mean_p_value(differences, low=-1, high=1, weight=each),
        n,
        f"bounded mean{suffix}",
        visible=power.visible_mean(spread, n * each, level=level),
        needed=_scaled(power.needed_values(delta, spread, level=level), each),
        smallest_p=smallest,
    )


def compare_bits(
    first: Sequence[float],
    second: Sequence[float],
    *,
    sizes: Sequence[int],
    clusters: Clusters | None = None,
) -> Comparison:
    """Paired difference of bits per byte, second - first, of log-probabilities [n] in nats; texts
    of one cluster count as one."""
    changes = [-(b - a) / math.log(2) for a, b in zip(first, second, strict=True)]
    bits, totals = summed(changes, clusters), summed(sizes, clusters)
    found = ratio_test(bits, totals, level=LEVEL)
    error = _ratio_error(bits, totals)
    texts = power.needed_ratio(found.value, error, len(bits), level=LEVEL)
    return Comparison(
        delta=found.value,
        ci=found.ci,
        p=found.p,
        n=len(first),
        test="sign flips" if clusters is None else "sign flips, clustered",
        visible=power.visible_ratio(error, len(bits), level=LEVEL),
        needed=_scaled(texts, len(bits) / max(len(first), 1)),
        smallest_p=_smallest_p(bits),
    )


def bits_per_byte(
    log_probs: Sequence[float], sizes: Sequence[int], *, clusters: Clusters | None = None
) -> RatioTest:
    """Bits per byte, sum(bits) / sum(bytes), of texts: log-probabilities [n] in nats, sizes [n]."""
    bits = [-log_prob / math.log(2) for log_prob in log_probs]
    return ratio_test(summed(bits, clusters), summed(sizes, clusters), level=LEVEL)


def holm(p_values: Sequence[float], *, smallest: Sequence[float] | None = None) -> list[float]:
    """Holm's step-down adjusted p-values (Holm 1979), in the order given.

    Args:
        smallest: the smallest p-value that each comparison could have had, given how many of its
            scores changed at all. Those that could not have been below 1 - LEVEL are not counted
            among the others (Tarone 1990, Biometrics 46:515-522): how many scores changed says
            nothing on the direction, so the error rate holds. They themselves are adjusted for all.
    """
    adjusted = _holm(p_values)
    if smallest is None:
        return adjusted
    counted = [i for i, least in enumerate(smallest) if could_be_significant(least)]
    for index, p in zip(counted, _holm([p_values[i] for i in counted]), strict=True):
        adjusted[index] = p
    return adjusted


def could_be_significant(smallest_p: float) -> bool:
    """Whether a comparison counts in `holm`: 6 changed scores at least."""
    return smallest_p < 1 - LEVEL


def is_binary(values: Sequence[float]) -> bool:
    """Whether every score is 0 or 1."""
    return all(value in (0, 1) for value in values)


def _holm(p_values: Sequence[float]) -> list[float]:
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def _smallest_p(differences: Sequence[float]) -> float:
    """The p-value if all differences other than 0 had been as large and of one sign as can be."""
    changed = sum(difference != 0 for difference in differences)
    return min(1.0, 2.0 ** (1 - changed))


def _scaled(needed: int | None, each: float) -> int | None:
    """Questions, of which `each` counts for so many independent ones."""
    return math.ceil(needed / each) if needed is not None and each > 0 else None


def _ratio_error(amounts: Sequence[float], sizes: Sequence[float]) -> float:
    """Standard error of sum(amounts) / sum(sizes) by the delta method (Cochran 1977, 6.3)."""
    n, total = len(amounts), max(sum(sizes), 1)
    if n < 2:
        return 0.0
    residuals = np.asarray(amounts) - sum(amounts) / total * np.asarray(sizes)
    return math.sqrt(n / (n - 1) * float(np.sum(residuals**2))) / total
