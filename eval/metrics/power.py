"""Power of paired comparisons: the smallest detectable change, and the questions needed.

A change is detected if p < 1 - level in that comparison alone, with probability POWER.
"""

import math
from bisect import bisect_left
from collections.abc import Callable

import numpy as np
from scipy import optimize
from scipy.stats import binom, nct, norm
from scipy.stats import t as student

from eval.metrics.sign_flips import FEWEST

POWER = 0.8
_EXACT = 20_000  # pairs; above, Connor's formula is within 1 % of the exact test
_MOST = 10**9  # values; larger sample sizes are not reported


def visible_proportion(discord: float, n: float, *, level: float) -> float | None:
    """Return the smallest difference of proportions that McNemar's exact test detects in n pairs.

    Args:
        discord: the share of pairs that disagree; at least the difference.

    Returns:
        None if n is too small: even n equal changes would not be significant.
    """
    pairs = math.floor(n)
    if pairs < fewest(level):
        return None

    def short(delta: float) -> float:
        return mcnemar_power(delta, max(discord, delta), pairs, level=level) - POWER

    return float(optimize.brentq(short, 0.0, 1.0, xtol=1e-6))


def needed_pairs(delta: float, discord: float, *, level: float) -> int | None:
    """Return in how many pairs McNemar's exact test detects `delta`; None for 0."""
    if delta == 0:
        return None
    size, share = abs(delta), max(discord, abs(delta))
    # Connor 1987, Biometrics 43:207-211, equation 3: McNemar's test without its discreteness.
    z, z_power = float(norm.ppf(0.5 + level / 2)), float(norm.ppf(POWER))
    connor = ((z * math.sqrt(share) + z_power * math.sqrt(share - size**2)) / size) ** 2
    if connor > _EXACT:
        return math.ceil(connor)
    return _smallest(
        lambda pairs: mcnemar_power(size, share, pairs, level=level) >= POWER, fewest(level)
    )


def mcnemar_power(delta: float, discord: float, n: int, *, level: float) -> float:
    """Return the power of McNemar's exact test in n pairs.

    Pairs gain with probability (discord + delta) / 2 and lose with (discord - delta) / 2.
    """
    if n * discord < 1e-9:  # an upper bound of the power; delta / discord may overflow
        return 0.0
    spread = 8 * math.sqrt(n * discord * (1 - discord)) + 1
    middle = n * discord
    low, high = max(0, math.floor(middle - spread)), min(n, math.ceil(middle + spread))
    changed = np.arange(low, high + 1)
    # The test rejects up to `few` losses (or gains) among the changed pairs.
    few = binom.ppf((1 - level) / 2, changed, 0.5)
    few = few - (2 * binom.cdf(few, changed, 0.5) >= 1 - level)
    share = (1 + delta / discord) / 2
    rejected = binom.cdf(few, changed, 1 - share) + binom.cdf(few, changed, share)
    return float(np.sum(binom.pmf(changed, n, discord) * rejected))


def visible_mean(spread: float, n: float, *, level: float) -> float | None:
    """Return the smallest mean in [-1, 1] that `eval.metrics.bounded_mean` detects in n values.

    The bound excludes 0 about where n values and one at the end of the range do: where
    n mean - 1 is z times the square root of n (spread² + mean²) + 1.
    """
    if n < fewest(level):
        return None
    z, z_power = float(norm.ppf(0.5 + level / 2)), float(norm.ppf(POWER))
    a, b, c = n * n - z * z * n, -2 * n, 1 - z * z * (n * spread**2 + 1)
    mean = (-b + math.sqrt(b * b - 4 * a * c)) / (2 * a)
    visible = mean + z_power * spread / math.sqrt(n)
    return visible if visible <= 1 else None


def needed_values(delta: float, spread: float, *, level: float) -> int | None:
    """Return the fewest values whose `visible_mean` is at most `delta`; None for 0."""
    size = abs(delta)

    def shown(n: int) -> bool:
        visible = visible_mean(spread, n, level=level)
        return visible is not None and visible <= size

    return _smallest(shown, fewest(level)) if size else None


def visible_ratio(error: float, n: int, *, level: float) -> float | None:
    """Return the smallest ratio that the t test detects in n values with standard error `error`.

    None for too few values.
    """
    if n < FEWEST or error <= 0:
        return None
    critical = float(student.ppf(0.5 + level / 2, n - 1))

    def short(times: float) -> float:
        return float(nct.sf(critical, n - 1, times)) - POWER

    return error * float(optimize.brentq(short, 0.0, 4 * critical, xtol=1e-6))


def needed_ratio(delta: float, error: float, n: int, *, level: float) -> int | None:
    """Return the sample size that detects `delta`, given the standard error `error` of n values."""

    def shown(count: int) -> bool:
        critical = float(student.ppf(0.5 + level / 2, count - 1))
        times = abs(delta) / error * math.sqrt(count / n)
        return float(nct.sf(critical, count - 1, times)) >= POWER

    return _smallest(shown, FEWEST) if delta and error > 0 else None


def fewest(level: float) -> int:
    """Return from how many equal changes on the exact test is significant: 6 at 95 %."""
    return math.floor(1 - math.log2(1 - level)) + 1


def _smallest(shown: Callable[[int], bool], start: int) -> int | None:
    """Return the smallest count from `start` on that is detected, by doubling and bisection."""
    high = start
    while not shown(high):
        high *= 2
        if high > _MOST:
            return None
    low = high // 2 + 1 if high > start else start
    return low + bisect_left(range(low, high), True, key=shown)
