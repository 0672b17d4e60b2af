"""Intervals and tests for scores and for paired differences: pure functions, no I/O.

Scores are fractions in [0, 1]; a difference is `second - first`. Interval and p-value are one test:
an interval at LEVEL excludes 0 exactly if p < 1 - LEVEL.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats as distributions

from eval.metrics import power
from eval.metrics.bounded_mean import mean_bounds, mean_p_value
from eval.metrics.clusters import Clusters, summed, weight
from eval.metrics.mcnemar import mcnemar, proportion_bounds
from eval.metrics.sign_flips import RatioTest, ratio_test

LEVEL = 0.95
BITS_PER_BYTE = "bits_per_byte"  # lm-eval's name of the metric


@dataclass(frozen=True)
class Comparison:
    """A paired difference with its interval and two-sided p-value.

    Attributes:
        ci: None for bits of fewer than `eval.metrics.sign_flips.FEWEST` texts.
        visible: the smallest true difference that n such questions detect with the power of
            `eval.metrics.power`; None if it cannot be estimated or none is detectable.
        needed: such questions needed to detect `delta`; None if delta is 0 or not estimable.
        smallest_p: the smallest p-value possible with as many changed scores, see `holm`.
        gained: pairs wrong -> right, McNemar's b; None for scores that are not right/wrong.
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
    """Return the score interval of a proportion (Wilson 1927); (0, 1) when n is 0.

    Unlike the Wald interval it has a width at 0 and 1, where repetition rates often are.
    """
    assert 0 <= successes <= n, f"{successes} successes of {n}"
    if n == 0:
        return 0.0, 1.0
    z2 = float(distributions.norm.ppf(0.5 + level / 2)) ** 2
    rate = successes / n
    center = (rate + z2 / (2 * n)) / (1 + z2 / n)
    half = math.sqrt(z2 * (rate * (1 - rate) / n + z2 / (4 * n * n))) / (1 + z2 / n)
    # These end points are exact; rounding would leave 1e-17 or 0.99...9.
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
    """Return the interval of a mean score in [low, high]: Wilson if binary, else `mean_bounds`.

    Scores with `clusters` [n] count as fewer independent ones (`eval.metrics.clusters.weight`).
    """
    each = weight(values, clusters, level=level)
    if is_binary(values) and (low, high) == (0.0, 1.0):
        return wilson(sum(values) * each, len(values) * each, level=level)
    return mean_bounds(values, low=low, high=high, level=level, weight=each)


def paired_proportion_interval(
    gained: int, lost: int, n: int, *, level: float = LEVEL
) -> tuple[float, float]:
    """Return the interval of a paired difference of proportions (gained - lost) / n.

    It excludes 0 exactly if `mcnemar` < 1 - level, keeps its coverage in small samples and near 0
    and 1, and has a width even if no pair disagrees.
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
    """Compare two score lists [n] in [0, 1], in the same document order.

    Binary scores: McNemar's exact test; others: the test of a bounded mean. In both, documents of
    one cluster (`clusters` [n]) count as fewer independent ones.
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
            mcnemar(*counts),
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
    """Compare bits per byte of log-probabilities [n] in nats; a cluster counts as one text."""
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
    """Return sum(bits) / sum(bytes) of texts, from log-probabilities [n] in nats."""
    bits = [-log_prob / math.log(2) for log_prob in log_probs]
    return ratio_test(summed(bits, clusters), summed(sizes, clusters), level=LEVEL)


def holm(p_values: Sequence[float], *, smallest: Sequence[float] | None = None) -> list[float]:
    """Return Holm's step-down adjusted p-values (Holm 1979), in the order given.

    Args:
        smallest: the smallest p-value that each comparison could have had, given how many of its
            scores changed. Comparisons that cannot be significant do not count for the others.
    """
    # Tarone 1990, Biometrics 46:515-522: the number of changed scores is independent of their
    # direction, so excluding comparisons by it keeps the error rate.
    adjusted = _holm(p_values)
    if smallest is None:
        return adjusted
    counted = [i for i, least in enumerate(smallest) if could_be_significant(least)]
    for index, p in zip(counted, _holm([p_values[i] for i in counted]), strict=True):
        adjusted[index] = p
    return adjusted


def could_be_significant(smallest_p: float) -> bool:
    """Return whether a comparison counts in `holm`: at least 6 scores changed."""
    return smallest_p < 1 - LEVEL


def is_binary(values: Sequence[float]) -> bool:
    """Return whether every score is 0 or 1."""
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
    """Return the p-value that results if all nonzero differences have the same sign."""
    changed = sum(difference != 0 for difference in differences)
    return min(1.0, 2.0 ** (1 - changed))


def _scaled(needed: int | None, each: float) -> int | None:
    """Convert independent questions into clustered ones, each of which counts for `each`."""
    return math.ceil(needed / each) if needed is not None and each > 0 else None


def _ratio_error(amounts: Sequence[float], sizes: Sequence[float]) -> float:
    """Return the standard error of a ratio by the delta method (Cochran 1977, 6.3)."""
    n, total = len(amounts), max(sum(sizes), 1)
    if n < 2:
        return 0.0
    residuals = np.asarray(amounts) - sum(amounts) / total * np.asarray(sizes)
    return math.sqrt(n / (n - 1) * float(np.sum(residuals**2))) / total
