"""Standard errors and effective sample sizes of scores that share a passage or a template.

The standard error of a mean sums residuals within clusters (Liang and Zeger 1986; Miller 2024,
arXiv 2411.00640, section 2.2). The effective sample size follows from the design effect and the
degrees of freedom (Korn and Graubard 1998, Survey Methodology 24:193-201).
"""

import math
from collections import defaultdict
from collections.abc import Hashable, Sequence

import numpy as np
from scipy.stats import norm
from scipy.stats import t as student

Clusters = Sequence[Hashable]


def standard_error(values: Sequence[float], clusters: Clusters | None) -> tuple[float, float]:
    """Return the standard error of the mean and its degrees of freedom (0: not estimable)."""
    residuals = np.asarray(values, dtype=float) - (np.mean(values) if len(values) else 0.0)
    sizes = np.ones(len(residuals))
    if clusters is not None:
        sums: dict[Hashable, float] = defaultdict(float)
        counts: dict[Hashable, int] = defaultdict(int)
        for cluster, residual in zip(clusters, residuals, strict=True):
            sums[cluster] += float(residual)
            counts[cluster] += 1
        residuals, sizes = np.array(list(sums.values())), np.array(list(counts.values()))
    groups = len(residuals)
    if groups < 2:
        return math.inf, 0.0
    variance = groups / (groups - 1) * float(np.sum(residuals**2))
    # Clusters of unequal sizes count as fewer clusters of equal size (Kish 1965).
    freedom = float(np.sum(sizes)) ** 2 / float(np.sum(sizes**2)) - 1
    return math.sqrt(variance) / len(values), freedom


def weight(values: Sequence[float], clusters: Clusters | None, *, level: float) -> float:
    """Return how many independent scores each value counts for.

    1 without shared clusters, 0 for a single cluster. Equal values count as one per cluster.
    """
    n = len(values)
    if clusters is None or len(set(clusters)) == n:
        return 1.0
    error, freedom = standard_error(values, clusters)
    if freedom <= 0:
        return 0.0
    independent = float(np.var(values)) / n  # the squared error without clusters
    effect = max(1.0, error**2 / independent) if independent > 0 else n / (freedom + 1)
    # Few degrees of freedom widen the t interval, as a smaller sample would widen the normal one.
    shrink = float(norm.ppf(0.5 + level / 2) / student.ppf(0.5 + level / 2, freedom))
    return shrink**2 / effect


def summed(values: Sequence[float], clusters: Clusters | None) -> list[float]:
    """Sum the values of each cluster, in order of first occurrence."""
    if clusters is None:
        return list(values)
    sums: dict[Hashable, float] = {}
    for cluster, value in zip(clusters, values, strict=True):
        sums[cluster] = sums.get(cluster, 0) + value
    return list(sums.values())
