"""Confidence bounds and tests for the mean of values in a known range.

A bound for the mean of n values z in [low, high] is a quantile of sum(D_i z_i) + D_0 * end, where D
is uniform on the simplex (Dirichlet with n + 1 ones) and `end` is `low` for the lower bound and
`high` for the upper one: the n values, and one more that is as extreme as the range allows (Gaffke
2005, "Three test statistics for a nonparametric one-sided hypothesis on the mean of a nonnegative
variable"; Learned-Miller and Thomas 2019, arXiv 1905.06208). It assumes no distribution. Of zeros
and ones it is the interval of Clopper and Pearson (1934). `eval.metrics.mcnemar` has the
case of right/wrong scores, whose differences are -1, 0 and 1.

`weight` is the number of independent values that each value counts for: 1, or less if values are
clustered (see `eval.metrics.clusters`).
"""

import math
from collections.abc import Sequence

import numpy as np
from scipy import optimize
from scipy.special import betainc, ndtr

_TOLERANCE = 1e-9


def mean_bounds(
    values: Sequence[float], *, low: float, high: float, level: float, weight: float = 1.0
) -> tuple[float, float]:
    """Return the two-sided interval of the mean of `values` [n], which are in [low, high]."""
    data = np.asarray(values, dtype=float)
    tail = (1 - level) / 2
    lower = _lower(data, end=low, tail=tail, weight=weight)
    return lower, -_lower(-data, end=-high, tail=tail, weight=weight)


def mean_p_value(values: Sequence[float], *, low: float, high: float, weight: float = 1.0) -> float:
    """Return the two-sided p-value of mean 0; below 1 - level if `mean_bounds` exclude 0."""
    data = np.asarray(values, dtype=float)
    above = _at_most(data, 0.0, end=low, weight=weight)
    below = _at_most(-data, 0.0, end=-high, weight=weight)
    return min(1.0, 2 * min(above, below))


def _lower(values: np.ndarray, *, end: float, tail: float, weight: float) -> float:
    """Return the lower bound; without information, `end`, the lowest possible value."""
    if not len(values) or weight <= 0:
        return end
    mean = float(np.mean(values))

    def short(bound: float) -> float:
        return _at_most(values, bound, end=end, weight=weight) - tail

    if mean - end <= _TOLERANCE or short(end + _TOLERANCE) >= 0:
        return end
    # The median of the weighted sum is below the mean, and the bound is below the median.
    return float(optimize.brentq(short, end + _TOLERANCE, mean, xtol=_TOLERANCE))


def _at_most(values: np.ndarray, bound: float, *, end: float, weight: float) -> float:
    """Return P(sum(D_i z_i) + D_0 * end <= bound).

    It equals P(sum of Gamma(weight) * (z_i - bound) + Gamma(1) * (end - bound) <= 0).
    """
    found, counts = np.unique(np.append(values - bound, end - bound), return_counts=True)
    weights = counts * weight
    weights[np.searchsorted(found, end - bound)] += 1 - weight
    kept = (found != 0) & (weights > 0)
    return _negative(found[kept], weights[kept])


def _negative(factors: np.ndarray, weights: np.ndarray) -> float:
    """Return P(sum of Gamma(weights_i) * factors_i <= 0) for nonzero factors.

    Exact for two factors, else the saddlepoint approximation of Lugannani and Rice (1980, Advances
    in Applied Probability 12:475-490), with a relative error of a few percent.
    """
    if factors.min(initial=0.0) >= 0:
        return 1.0 if not len(factors) else 0.0
    if factors.max() < 0:
        return 1.0
    if len(factors) == 2:
        (loss, gain), (lost, gained) = factors, weights
        return float(betainc(gained, lost, -loss / (gain - loss)))

    def slope(s: float) -> float:
        return float(np.sum(weights * factors / (1 - s * factors)))

    inside = 1 - 1e-12
    s = float(optimize.brentq(slope, inside / factors.min(), inside / factors.max(), xtol=1e-14))
    kept = 1 - s * factors
    height = max(float(np.sum(weights * np.log(kept))), 0.0)  # minus the cumulant function at s
    signed = math.copysign(math.sqrt(2 * height), s)
    scaled = s * math.sqrt(float(np.sum(weights * (factors / kept) ** 2)))
    if abs(signed) < 1e-4:  # at the mean, where the formula is 0 / 0
        return 0.5
    density = math.exp(-height) / math.sqrt(2 * math.pi)
    return float(np.clip(ndtr(signed) + density * (1 / signed - 1 / scaled), 0.0, 1.0))
