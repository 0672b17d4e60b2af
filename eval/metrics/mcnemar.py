"""McNemar's exact test of paired right/wrong scores, and the interval of their mean difference.

The interval is that of `eval.metrics.bounded_mean` for differences of -1, 0 and 1. It excludes 0
exactly when the test rejects, as the intervals of Fay and Lumbard (2021, Statistics in Medicine
40:1147-1159) do.
"""

import numpy as np
from scipy import optimize
from scipy.special import betainc, betaincinv
from scipy.stats import beta

_STEPS = 500  # points of the midpoint rule over the share of gains
_TOLERANCE = 1e-9


def mcnemar(gained: float, lost: float) -> float:
    """Return the two-sided p-value of McNemar's exact test; for integers the binomial test of 1/2.

    `gained` counts pairs wrong -> right, `lost` right -> wrong (McNemar 1947).
    """
    return min(1.0, 2 * min(_no_gain(gained, lost), _no_gain(lost, gained)))


def proportion_bounds(gained: float, lost: float, n: float, *, level: float) -> tuple[float, float]:
    """Return the interval of the mean of `gained` ones, `lost` minus ones and zeros, n in total.

    The counts may be fractions.
    """
    tail = (1 - level) / 2
    return _lower_proportion(gained, lost, n, tail), -_lower_proportion(lost, gained, n, tail)


def _no_gain(gained: float, lost: float) -> float:
    """Return P(share of gains <= 1/2), where the share is Beta(gained, lost + 1)."""
    return float(betainc(gained, lost + 1, 0.5)) if gained > 0 else 1.0


def _lower_proportion(gained: float, lost: float, n: float, tail: float) -> float:
    """Return the quantile `tail` of changed * (2 * share - 1).

    `share`, of gains, is Beta(gained, lost + 1); `changed`, of pairs that differ, is
    Beta(gained + lost + 1, the rest).
    """
    same, changed = max(n - gained - lost, 0.0), gained + lost + 1
    if gained <= 0:  # the share of gains is 0
        return -float(beta.ppf(1 - tail, changed, same)) if same > 0 else -1.0
    if same <= 0:  # every pair differs
        return 2 * float(betaincinv(gained, lost + 1, tail)) - 1
    # The sign is that of 2 * share - 1, whose probability is exact; only the size is integrated.
    negative = _no_gain(gained, lost)
    start, end = (0.0, negative) if negative > tail else (negative, 1.0)
    grid = start + (end - start) * (np.arange(_STEPS) + 0.5) / _STEPS
    lean = np.abs(2 * betaincinv(gained, lost + 1, grid) - 1)

    def short(size: float) -> float:
        inside = float(np.mean(betainc(changed, same, np.minimum(size / lean, 1.0))))
        if negative > tail:  # P(product <= -size)
            return negative * (1 - inside) - tail
        return negative + (1 - negative) * inside - tail

    size = float(optimize.brentq(short, 0.0, 1.0, xtol=_TOLERANCE))
    return -size if negative > tail else size
