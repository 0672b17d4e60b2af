import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from eval.stats import (
    compare_paired,
    holm,
    mcnemar,
    mean_interval,
    paired_proportion_interval,
    score_interval,
    wilson,
)


@pytest.mark.parametrize(("k", "n"), [(0, 10), (3, 10), (10, 10), (54, 3868), (1, 1)])
def test_wilson_equals_scipy(k, n):
    expected = scipy_stats.binomtest(k, n).proportion_ci(0.95, method="wilson")
    assert wilson(k, n) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_wilson_without_rows_says_nothing():
    assert wilson(0, 0) == (0.0, 1.0)


def test_mean_interval_equals_scipy():
    values = np.random.default_rng(0).random(23).tolist()
    expected = scipy_stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert mean_interval(values) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_score_interval_is_wilson_for_verdicts_and_stays_in_range_for_fractions():
    assert score_interval([1, 1, 1, 0]) == wilson(3, 4)
    assert score_interval([1.0, 0.99, 0.98]) == pytest.approx((0.96516, 1.0), abs=1e-5)
    assert score_interval([0.5]) == (0.0, 1.0)


@pytest.mark.parametrize(("b", "c"), [(0, 0), (1, 0), (9, 2), (40, 40), (3, 30)])
def test_mcnemar_is_the_two_sided_binomial(b, c):
    n = b + c
    tail = sum(math.comb(n, k) for k in range(min(b, c) + 1)) / 2**n
    assert mcnemar(b, c) == pytest.approx(min(1.0, 2 * tail))


def test_tango_without_discordant_pairs_has_its_closed_form():
    z2 = scipy_stats.norm.ppf(0.975) ** 2
    low, high = paired_proportion_interval(0, 0, 50)
    assert (low, high) == pytest.approx((-z2 / (50 + z2), z2 / (50 + z2)), abs=1e-8)


def test_tango_equals_the_published_example():
    # Fagerland, Lydersen and Laake 2014, table 1 (airway hyper-responsiveness, n=21: 1 and 7
    # discordant pairs), difference -0.286, Tango interval (-0.517, -0.026).
    assert paired_proportion_interval(1, 7, 21) == pytest.approx((-0.517, -0.026), abs=1e-3)


@given(b=st.integers(0, 60), c=st.integers(0, 60), same=st.integers(0, 200))
def test_tango_contains_the_estimate_mirrors_and_agrees_with_the_score_test(b, c, same):
    n = b + c + same
    if n == 0:
        return
    low, high = paired_proportion_interval(b, c, n)
    assert -1 <= low <= (b - c) / n <= high <= 1
    assert paired_proportion_interval(c, b, n) == pytest.approx((-high, -low), abs=1e-7)
    if b + c:
        z = (b - c) / math.sqrt(b + c)
        critical = scipy_stats.norm.ppf(0.975)
        if abs(abs(z) - critical) > 1e-6:
            assert (low > 0 or high < 0) == (abs(z) > critical)


def test_paired_t_equals_scipy():
    rng = np.random.default_rng(1)
    first, second = rng.random(40).tolist(), rng.random(40).tolist()
    result = compare_paired(first, second)
    expected = scipy_stats.ttest_rel(second, first)
    interval = expected.confidence_interval(0.95)
    assert result.test == "paired t"
    assert result.p == pytest.approx(expected.pvalue)
    assert result.ci == pytest.approx((interval.low, interval.high))
    assert result.delta == pytest.approx(np.mean(second) - np.mean(first))


def test_clusters_of_one_are_no_clusters_and_copies_add_no_evidence():
    rng = np.random.default_rng(2)
    first, second = rng.random(30).tolist(), rng.random(30).tolist()
    plain = compare_paired(first, second)
    single = compare_paired(first, second, clusters=list(range(30)))
    copied = compare_paired(first * 4, second * 4, clusters=list(range(30)) * 4)
    assert single.p == pytest.approx(plain.p) and single.ci == pytest.approx(plain.ci)
    assert copied.p == pytest.approx(plain.p) and copied.ci == pytest.approx(plain.ci)
    assert copied.test == "paired t, clustered"


def test_degenerate_pairs_claim_no_more_than_they_can():
    assert compare_paired([0.5] * 6, [0.75] * 6).p == 2.0**-5
    assert compare_paired([0.5], [0.7]).p == 1.0
    assert compare_paired([0.5, 0.5], [0.5, 0.5]).p == 1.0
    assert compare_paired([], []).p == 1.0


def test_holm_by_hand_and_in_order():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.8]) == pytest.approx([1.0, 1.0])
    assert holm([]) == []


@settings(max_examples=50)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_lies_between_the_raw_and_the_bonferroni_values_and_keeps_order(ps):
    adjusted = holm(ps)
    for p, q in zip(ps, adjusted, strict=True):
        assert p <= q <= min(1.0, len(ps) * p) + 1e-12
    order = sorted(range(len(ps)), key=lambda i: ps[i])
    assert all(adjusted[i] <= adjusted[j] for i, j in itertools.pairwise(order))


@pytest.mark.parametrize(("gain", "loss", "n"), [(0.02, 0.02, 200), (0.10, 0.05, 100)])
def test_interval_covers_and_test_holds_its_level_in_simulation(gain, loss, n):
    rng = np.random.default_rng(3)
    draws = rng.multinomial(n, [gain, loss, 1 - gain - loss], size=600)
    covered = [
        low <= gain - loss <= high
        for low, high in (paired_proportion_interval(int(b), int(c), n) for b, c, _ in draws)
    ]
    # 600 draws: standard error 0.9 points around 95 %.
    assert np.mean(covered) > 0.925
    if gain == loss:
        assert np.mean([mcnemar(int(b), int(c)) < 0.05 for b, c, _ in draws]) < 0.05
