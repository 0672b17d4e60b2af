"""Scores of questions that share a passage, a template or a subject, and how little they add.

The standard error of their mean sums residuals within clusters (Liang and Zeger 1986; Miller 2024,
arXiv 2411.00640, section 2.2). `weight` says how many independent scores each of them counts for,
by the design effect and by the few degrees of freedom that few clusters leave (Korn and Graubard
1998, Survey Methodology 24:193-201).
"""

import math
from collections import defaultdict
from collections.abc import Hashable, Sequence

import numpy as np
from scipy.stats import norm
from scipy.stats import t as student

Clusters = Sequence[Hashable]


def standard_error(values: Sequence[float], clusters: Clusters | None) -> tuple[float, float]:
    """Standard error of the mean and its degrees of freedom (0: it cannot be estimated).

    Clusters of unequal sizes count as the fewer equal ones that say as much (Kish 1965).
    """
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
    freedom = float(np.sum(sizes)) ** 2 / float(np.sum(sizes**2)) - 1
    return math.sqrt(variance) / len(values), freedom


def weight(values: Sequence[float], clusters: Clusters | None, *, level: float) -> float:
    """Independent scores that each value counts for: 1 without clusters, or where each value is a
    cluster of its own; 0 of one cluster. Values that are all alike count as their clusters."""
    n = len(values)
    if clusters is None or len(set(clusters)) == n:
        return 1.0
    error, freedom = standard_error(values, clusters)
    if freedom <= 0:
        return 0.0
    alone = float(np.var(values)) / n
    effect = max(1.0, error**2 / alone) if alone > 0 else n / (freedom + 1)
    few = float(norm.ppf(0.5 + level / 2) / student.ppf(0.5 + level / 2, freedom))
    return few**2 / effect


def summed(values: Sequence[float], clusters: Clusters | None) -> list[float]:
    """The sum of each cluster's values, in the order of their first; all values without any."""
    if clusters is None:
        return list(values)
    sums: dict[Hashable, float] = {}
    for cluster, value in zip(clusters, values, strict=True):
        sums[cluster] = sums.get(cluster, 0) + value
    return list(sums.values())
