"""Intervals and tests for scores and for paired differences: pure functions, no I/O.

Fractions are in [0, 1] throughout; a difference is `second - first`.
"""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import optimize
from scipy import stats as distributions

LEVEL = 0.95
BITS_PER_BYTE = "bits_per_byte"  # lm-eval's name of the metric
POWER = 0.8  # chance of p < 1 - LEVEL that "visible" means


@dataclass(frozen=True)
class Comparison:
    """A paired difference with its interval and two-sided p-value.

    Attributes:
        visible: the smallest true difference that n questions like these would most likely show
            (probability POWER, one comparison at 1 - LEVEL); None where it cannot be estimated.
        needed: questions like these that would most likely show a difference as large as delta;
            None where delta is 0 or it cannot be estimated.
        gained: of right/wrong scores, pairs wrong -> right, McNemar's b; else None.
        lost: pairs right -> wrong, McNemar's c.
    """

    delta: float
    ci: tuple[float, float]
    p: float
    n: int
    test: str
    visible: float | None
    needed: int | None
    gained: int | None = None
    lost: int | None = None


@dataclass(frozen=True)
class Ratio:
    """A ratio of two sums with its interval."""

    value: float
    ci: tuple[float, float]


def wilson(successes: int, n: int, *, level: float = LEVEL) -> tuple[float, float]:
    """Score interval of a proportion (Wilson 1927); (0, 1) when n is 0.

    Unlike the Wald interval it has a width at 0 and 1, which is where repetition rates live.
    """
    assert 0 <= successes <= n, f"{successes} successes of {n}"
    if n == 0:
        return 0.0, 1.0
    z2 = _z(level) ** 2
    rate = successes / n
    centre = (rate + z2 / (2 * n)) / (1 + z2 / n)
    half = math.sqrt(z2 * (rate * (1 - rate) / n + z2 / (4 * n * n))) / (1 + z2 / n)
    # The two end points are exact there; rounding would leave 1e-17 or 0.99...9.
    low = 0.0 if successes == 0 else centre - half
    high = 1.0 if successes == n else centre + half
    return low, high


def mean_interval(
    values: Sequence[float],
    *,
    clusters: Sequence[Hashable] | None = None,
    level: float = LEVEL,
) -> tuple[float, float]:
    """Student t interval of a mean; with `clusters` [n], of rows that share a passage.

    Clustered: residuals are summed within clusters, G/(G-1) correction and G-1 degrees of
    freedom (Miller 2024, arXiv 2411.00640, section 2.2; Liang and Zeger 1986). (-inf, inf) when
    there are fewer than two rows or clusters.
    """
    error, freedom = _standard_error(values, clusters)
    if freedom < 1:
        return -math.inf, math.inf
    half = float(distributions.t.ppf(0.5 + level / 2, freedom)) * error
    mean = float(np.mean(values))
    return mean - half, mean + half


def score_interval(
    values: Sequence[float],
    *,
    clusters: Sequence[Hashable] | None = None,
    level: float = LEVEL,
) -> tuple[float, float]:
    """Interval of a mean score in [0, 1]: Wilson for right/wrong, t (clipped) for fractions."""
    if clusters is None and is_binary(values):
        return wilson(round(sum(values)), len(values), level=level)
    low, high = mean_interval(values, clusters=clusters, level=level)
    return max(low, 0.0), min(high, 1.0)


def mcnemar(gained: int, lost: int) -> float:
    """Exact McNemar test: two-sided binomial(gained + lost, 1/2) p-value; 1.0 without discord.

    `gained` counts pairs wrong -> right, `lost` right -> wrong (McNemar 1947).
    """
    if gained + lost == 0:
        return 1.0
    return float(distributions.binomtest(gained, gained + lost, 0.5).pvalue)


def paired_proportion_interval(
    gained: int, lost: int, n: int, *, level: float = LEVEL
) -> tuple[float, float]:
    """Score interval of a paired difference of proportions (gained - lost) / n (Tango 1998).

    Statistics in Medicine 17:891-908, equations 5-8. It inverts the score test whose value at
    zero is McNemar's statistic, keeps its coverage in small samples and near 0 and 1 (Fagerland,
    Lydersen and Laake 2014), and has a width even when no pair disagrees.
    """
    assert min(gained, lost) >= 0 and gained + lost <= n, f"{gained} + {lost} of {n}"
    if n == 0:
        return -1.0, 1.0
    z = _z(level)
    estimate = (gained - lost) / n

    def statistic(delta: float) -> float:
        # Maximum-likelihood share of lost pairs when the difference is fixed at delta.
        a = 2.0 * n
        b = -gained - lost + (2 * n - gained + lost) * delta
        c = -lost * delta * (1 - delta)
        nuisance = (math.sqrt(max(b * b - 4 * a * c, 0.0)) - b) / (2 * a)
        variance = n * (2 * nuisance + delta * (1 - delta))
        distance = gained - lost - n * delta
        if variance <= 0:
            return 0.0 if distance == 0 else math.copysign(math.inf, distance)
        return distance / math.sqrt(variance)

    def solve(target: float, low: float, high: float) -> float:
        def gap(delta: float) -> float:
            return min(max(statistic(delta) - target, -1e6), 1e6)

        # The end of the range is the bound when the statistic never reaches the target.
        if gap(low) <= 0:
            return low
        return high if gap(high) >= 0 else float(optimize.brentq(gap, low, high, xtol=1e-10))

    return solve(z, -1.0, estimate), solve(-z, estimate, 1.0)


def compare_paired(
    first: Sequence[float],
    second: Sequence[float],
    *,
    clusters: Sequence[Hashable] | None = None,
    level: float = LEVEL,
) -> Comparison:
    """Paired difference of two score lists [n] in the same document order.

    Right/wrong scores: exact McNemar with Tango's interval. Fractions: paired t. Documents that
    share a passage (`clusters` [n]): paired t on clusters, since McNemar needs independence.
    """
    assert len(first) == len(second), f"{len(first)} and {len(second)} scores are not paired"
    n = len(first)
    differences = [after - before for before, after in zip(first, second, strict=True)]
    delta = float(np.mean(differences)) if n else 0.0
    if clusters is None and is_binary(first) and is_binary(second):
        gained, lost = differences.count(1), differences.count(-1)
        interval = paired_proportion_interval(gained, lost, n, level=level)
        discord = (gained + lost) / n if n else 0.0
        return Comparison(
            *(delta, interval, mcnemar(gained, lost), n, "exact McNemar"),
            visible=visible_proportion(discord, n),
            needed=needed_pairs(delta, discord),
            gained=gained,
            lost=lost,
        )
    interval = mean_interval(differences, clusters=clusters, level=level)
    clipped = max(interval[0], -1.0), min(interval[1], 1.0)
    test = "paired t" if clusters is None else "paired t, clustered"
    return _compared(delta, clipped, differences, clusters, test=test)


def compare_bits(
    first: Sequence[float], second: Sequence[float], *, sizes: Sequence[int]
) -> Comparison:
    """Paired difference of bits per byte, second - first, of log-probabilities [n] in nats."""
    values = _bits([b - a for a, b in zip(first, second, strict=True)], sizes)
    return _compared(float(np.mean(values)), mean_interval(values), values, None, test="paired t")


def bits_per_byte(log_probs: Sequence[float], sizes: Sequence[int]) -> Ratio:
    """Bits per byte, sum(bits) / sum(bytes), of texts: log-probabilities [n] in nats, sizes [n]."""
    values = _bits(log_probs, sizes)
    return Ratio(float(np.mean(values)), mean_interval(values))


def visible_proportion(discord: float, n: int, *, level: float = LEVEL) -> float | None:
    """The smallest paired difference of proportions that n pairs show with probability POWER.

    Solves sqrt(n) d = z_level sqrt(discord) + z_power sqrt(discord - d²) for d (Connor 1987,
    Biometrics 43:207-211, equation 3), where `discord`, the share of pairs that disagree, is at
    least d. None when n is too small for any: if all n changed, the exact test would not see it.
    """
    if 2 * 0.5**n >= 1 - level:
        return None
    z, z_power = _z(level), float(distributions.norm.ppf(POWER))

    def short(d: float) -> float:
        share = max(discord, d)
        return math.sqrt(n) * d - z * math.sqrt(share) - z_power * math.sqrt(share - d * d)

    # From half a pair on: nothing lies below, but 0 itself where no pair disagrees.
    return float(optimize.brentq(short, 0.5 / n, 1.0, xtol=1e-9))


def needed_pairs(delta: float, discord: float, *, level: float = LEVEL) -> int | None:
    """Pairs that show a difference of `delta` with probability POWER; Connor's formula for n."""
    if delta == 0:
        return None
    z, z_power = _z(level), float(distributions.norm.ppf(POWER))
    root = z * math.sqrt(discord) + z_power * math.sqrt(discord - delta * delta)
    return math.ceil((root / delta) ** 2)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p-values (Holm 1979), in the order given."""
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def is_binary(values: Sequence[float]) -> bool:
    """Whether every score is 0 or 1."""
    return all(value in (0, 1) for value in values)


def _z(level: float) -> float:
    return float(distributions.norm.ppf(0.5 + level / 2))


def _standard_error(
    values: Sequence[float], clusters: Sequence[Hashable] | None
) -> tuple[float, int]:
    """Standard error of the mean and its degrees of freedom (0: cannot be estimated)."""
    residuals = np.asarray(values, dtype=float) - (np.mean(values) if len(values) else 0.0)
    if clusters is not None:
        sums: dict[Hashable, float] = {}
        for cluster, residual in zip(clusters, residuals, strict=True):
            sums[cluster] = sums.get(cluster, 0.0) + float(residual)
        residuals = np.array(list(sums.values()))
    groups = len(residuals)
    if groups < 2:
        return math.inf, 0
    variance = groups / (groups - 1) * float(np.sum(residuals**2))
    return math.sqrt(variance) / len(values), groups - 1


def _t_test(values: Sequence[float], clusters: Sequence[Hashable] | None) -> float:
    """Two-sided p-value of mean 0."""
    error, freedom = _standard_error(values, clusters)
    mean = float(np.mean(values)) if len(values) else 0.0
    if freedom < 1 or mean == 0:
        return 1.0
    # n equal differences have no spread: the sign-flip test is what n signs can prove at most.
    floor = 2.0**-freedom
    if error <= 1e-12 * abs(mean):
        return floor
    return float(2 * distributions.t.sf(abs(mean) / error, freedom))


def _compared(
    delta: float,
    interval: tuple[float, float],
    differences: Sequence[float],
    clusters: Sequence[Hashable] | None,
    *,
    test: str,
) -> Comparison:
    """A comparison of means by t, with what its standard error says about more questions."""
    n = len(differences)
    error, freedom = _standard_error(differences, clusters)
    visible = needed = None
    if freedom >= 1 and error > 1e-12:
        quantiles = distributions.t.ppf([0.5 + LEVEL / 2, POWER], freedom)
        visible = float(sum(quantiles)) * error
        needed = math.ceil(n * (visible / delta) ** 2) if delta else None
    p = _t_test(differences, clusters)
    return Comparison(delta, interval, p, n, test, visible=visible, needed=needed)


def _bits(log_probs: Sequence[float], sizes: Sequence[int]) -> list[float]:
    """A value for each text, whose mean is the ratio sum(bits) / sum(bytes).

    Their spread is that of bits - ratio * bytes, so that the t interval of their mean is the
    ratio's by the delta method (Cochran 1977, section 6.3).
    """
    total = max(sum(sizes), 1)
    bits = [-log_prob / math.log(2) for log_prob in log_probs]
    ratio, scale = sum(bits) / total, len(sizes) / total
    return [ratio + scale * (bit - ratio * size) for bit, size in zip(bits, sizes, strict=True)]
