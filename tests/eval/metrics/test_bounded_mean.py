"""Bounds of a mean in a known range, against their definition by simulation and closed forms."""

import numpy as np
import pytest
from scipy import stats

from eval.metrics.bounded_mean import mean_bounds, mean_p_value
from eval.metrics.mcnemar import mcnemar, proportion_bounds


def by_definition(values, *, low, high, weight=1.0):
    """Quantiles of the weighted sums of the values and one more at an end of the range."""
    rng = np.random.default_rng(4)
    draws = rng.gamma(np.append(np.full(len(values), weight), 1.0), size=(40_000, len(values) + 1))
    draws /= draws.sum(axis=1, keepdims=True)
    sums = [draws @ np.append(values, end) for end in (low, high)]
    p = 2 * min(np.mean(sums[0] <= 0), np.mean(sums[1] >= 0))
    return float(np.quantile(sums[0], 0.025)), float(np.quantile(sums[1], 0.975)), min(1.0, p)


@pytest.mark.parametrize("weight", [1.0, 0.4])
@pytest.mark.parametrize("n", [3, 12, 80])
def test_bounds_and_p_are_those_of_the_definition(n, weight):
    rng = np.random.default_rng(n)
    for values in (rng.uniform(-0.2, 0.9, n), rng.choice([-1.0, 0.0, 0.5, 1.0], n)):
        low, high, p = by_definition(values, low=-1, high=1, weight=weight)
        found = mean_bounds(values, low=-1, high=1, level=0.95, weight=weight)
        assert found == pytest.approx((low, high), abs=0.012)
        assert mean_p_value(values, low=-1, high=1, weight=weight) == pytest.approx(
            p, rel=0.08, abs=2e-3
        )


@pytest.mark.parametrize(("right", "n"), [(0, 7), (1, 7), (3, 30), (30, 30)])
def test_bounds_of_zeros_and_ones_are_those_of_clopper_and_pearson(right, n):
    expected = stats.binomtest(right, n).proportion_ci(0.95)
    found = mean_bounds([1.0] * right + [0.0] * (n - right), low=0, high=1, level=0.95)
    assert found == pytest.approx((expected.low, expected.high), abs=1e-6)


@pytest.mark.parametrize(("gained", "lost", "n"), [(1, 7, 21), (10, 1, 100), (5, 5, 10)])
def test_bounds_of_right_and_wrong_are_those_of_their_differences(gained, lost, n):
    values = [1.0] * gained + [-1.0] * lost + [0.0] * (n - gained - lost)
    exact = proportion_bounds(gained, lost, n, level=0.95)
    assert exact == pytest.approx(by_definition(values, low=-1, high=1)[:2], abs=0.01)
    assert exact == pytest.approx(mean_bounds(values, low=-1, high=1, level=0.95), abs=0.004)
    p = mcnemar(gained, lost)
    assert mean_p_value(values, low=-1, high=1) == pytest.approx(p, rel=1e-9)


def test_no_values_say_nothing_and_values_at_the_end_say_so():
    assert mean_bounds([], low=1, high=10, level=0.95) == (1, 10)
    assert mean_bounds([10.0] * 5, low=1, high=10, level=0.95)[1] == 10
    assert mean_bounds([0.5] * 9, low=0, high=1, level=0.95, weight=0.0) == (0, 1)
    assert mean_p_value([], low=-1, high=1) == 1.0
