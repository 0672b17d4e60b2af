import functools
import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from eval.metrics.mcnemar import mcnemar
from eval.metrics.stats import (
    bits_per_byte,
    compare_bits,
    compare_paired,
    holm,
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


def test_score_interval_is_wilson_for_verdicts_and_stays_in_range_for_fractions():
    assert score_interval([1, 1, 1, 0]) == wilson(3, 4)
    low, high = score_interval([1.0, 0.99, 0.98])
    assert 0.25 < low < 0.35 and 0.99 < high <= 1.0  # three scores: a fourth could be 0
    low, high = score_interval([0.5])
    assert 0 < low < 0.03 and 0.97 < high < 1
    assert score_interval([7.0, 9.0], low=1, high=10)[1] < 10


@pytest.mark.parametrize("rate", [0.05, 0.5, 0.9])
def test_score_intervals_cover_where_questions_share_a_passage(rate):
    rng = np.random.default_rng(11)
    clusters = np.arange(40).repeat(5).tolist()
    covered = {"clustered": 0, "plain": 0}
    for _ in range(300):
        passage = rng.beta(2 * rate, 2 * (1 - rate), 40).repeat(5)
        scores = (rng.random(200) < passage).astype(float).tolist()
        for name, passages in (("clustered", clusters), ("plain", None)):
            low, high = score_interval(scores, clusters=passages)
            covered[name] += low <= rate <= high
    assert covered["clustered"] > 0.9 * 300  # 300 draws: 1.3 points
    assert covered["plain"] < 0.9 * 300


def test_score_intervals_of_passages_have_a_width_at_the_ends():
    low, high = score_interval([1.0] * 8, clusters=[0, 0, 1, 1, 2, 2, 3, 3])
    assert high == 1.0 and low < wilson(4, 4)[0] < wilson(8, 8)[0]
    assert score_interval([1.0, 1.0], clusters=[0, 0]) == (0.0, 1.0)


@pytest.mark.parametrize(("b", "c"), [(0, 0), (1, 0), (9, 2), (40, 40), (3, 30)])
def test_mcnemar_is_the_two_sided_binomial(b, c):
    n = b + c
    tail = sum(math.comb(n, k) for k in range(min(b, c) + 1)) / 2**n
    assert mcnemar(b, c) == pytest.approx(min(1.0, 2 * tail))


@pytest.mark.parametrize("n", [6, 21, 200])
def test_the_interval_of_a_difference_excludes_zero_exactly_where_its_test_rejects(n):
    # (5, 0) of 12 had an interval of +3 to +29 points and p = 0.06.
    for gained, lost in itertools.product(range(n + 1), repeat=2):
        if gained + lost > n or (n > 30 and (gained * 7 + lost) % 53):
            continue
        low, high = paired_proportion_interval(gained, lost, n)
        assert -1 <= low <= (gained - lost) / n <= high <= 1
        assert (low > 0 or high < 0) == (mcnemar(gained, lost) < 0.05)
        assert paired_proportion_interval(lost, gained, n) == pytest.approx((-high, -low))


def test_the_interval_of_a_difference_without_losses_is_that_of_clopper_and_pearson():
    for gained, n in ((0, 50), (3, 20), (12, 12)):
        expected = scipy_stats.binomtest(gained, n).proportion_ci(0.95).high
        assert paired_proportion_interval(gained, 0, n)[1] == pytest.approx(expected)


@pytest.mark.parametrize("clusters", [None, [i // 3 for i in range(60)]])
def test_intervals_and_tests_of_fractions_and_bits_are_one(clusters):
    rng = np.random.default_rng(1)
    sizes = rng.integers(20, 400, 60).tolist()
    rejected = 0
    for shift in np.linspace(0, 0.3, 60):
        first = (rng.random(60) * 0.5).tolist()
        second = np.clip(first + rng.normal(shift, 0.4, 60), 0, 1).tolist()
        for result in (
            compare_paired(first, second, clusters=clusters),
            compare_bits(first, second, sizes=sizes, clusters=clusters),
        ):
            low, high = result.ci
            assert low <= result.delta <= high
            assert (low > 0 or high < 0) == (result.p < 0.05)
            rejected += result.p < 0.05
    assert 30 < rejected < 110


def test_fractions_approach_the_t_test_as_questions_become_many():
    rng = np.random.default_rng(1)
    first, second = rng.random(4000).tolist(), (rng.random(4000) + 0.0).tolist()
    result = compare_paired(first, second)
    interval = scipy_stats.ttest_rel(second, first).confidence_interval(0.95)
    assert result.test == "bounded mean"
    assert result.ci == pytest.approx((interval.low, interval.high), abs=6e-4)
    assert result.ci[0] < interval.low and result.ci[1] > interval.high
    assert result.delta == pytest.approx(np.mean(second) - np.mean(first))


@pytest.mark.parametrize("kind", [float, round])
def test_clusters_of_one_are_no_clusters_and_copies_add_no_evidence(kind):
    rng = np.random.default_rng(2)
    first, second = ([kind(x) for x in rng.random(30)] for _ in range(2))
    plain = compare_paired(first, second)
    assert compare_paired(first, second, clusters=list(range(30))) == plain
    twice, often = (
        compare_paired(first * k, second * k, clusters=list(range(30)) * k) for k in (2, 8)
    )
    assert often.p == pytest.approx(twice.p, rel=0.05)
    assert often.ci == pytest.approx(twice.ci, abs=0.01)
    assert often.p >= plain.p and often.test.endswith(", clustered")
    assert often.ci[0] <= plain.ci[0] and often.ci[1] >= plain.ci[1]


def test_degenerate_pairs_claim_no_more_than_they_can():
    # Six gains of a quarter: a seventh question could lose all, (1 + 1/4)**-6 on one side.
    assert compare_paired([0.5] * 6, [0.75] * 6).p == pytest.approx(2 * 1.25**-6, rel=1e-6)
    assert compare_paired([0.0] * 6, [1.0] * 6).p == 2.0**-5
    assert compare_paired([0.5], [0.7]).p == 1.0
    assert compare_paired([0.5, 0.5], [0.5, 0.5]).p == 1.0
    assert compare_paired([], []).p == 1.0
    assert compare_paired([0, 1], [1, 1], clusters=[0, 0]).ci == (-1, 1)


def test_comparisons_that_could_not_be_significant_do_not_count_in_holm():
    # Two tasks without a single changed answer, and one with five: their smallest p is 0.06.
    nothing = [compare_paired([0] * 20, [0] * 20)] * 2 + [
        compare_paired([0] * 20, [1] * 5 + [0] * 15)
    ]
    clear = compare_paired([0] * 20, [1] * 7 + [0] * 13)
    assert clear.p == 2**-6 and nothing[2].p == nothing[2].smallest_p == 2**-4
    found = [*nothing, clear]
    ps, smallest = [c.p for c in found], [c.smallest_p for c in found]
    assert holm(ps, smallest=smallest) == [1.0, 1.0, 3 * 2**-4, 2**-6]
    assert holm(ps)[3] == 4 * 2**-6  # counted, they cost it its significance


@given(st.lists(st.sampled_from([-1, -0.5, 0, 0, 0.25, 1]), min_size=1, max_size=40))
def test_no_p_value_is_below_the_smallest_that_its_changes_allow(differences):
    first = [max(-d, 0) for d in differences]
    second = [max(d, 0) for d in differences]
    logs = [[10 * x - 50 for x in scores] for scores in (first, second)]
    for result in (
        compare_paired(first, second),
        compare_bits(*logs, sizes=[30] * len(first)),
    ):
        assert result.p >= min(result.smallest_p, 1e-4) * (1 - 1e-9)  # of 20,000 random subsets


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
    assert np.mean(covered) > 0.94  # 600 draws: standard error 0.9 points around 95 % or more
    if gain == loss:
        assert np.mean([mcnemar(int(b), int(c)) < 0.05 for b, c, _ in draws]) < 0.05


@pytest.mark.parametrize("n", [20, 60, 200])
@pytest.mark.parametrize("many", [0.05, 0.5, 0.95])
def test_intervals_of_fractions_cover_where_most_are_zero_or_one(n, many):
    """Mostly 0 or 1, the rest in between: t intervals cover 88 to 91 % of these at n = 20."""
    rng = np.random.default_rng(12)
    full = many * (1 - 0.04) + 0.04 * 0.5

    def draw():
        whole = (rng.random(n) < many).astype(float)
        return np.where(rng.random(n) < 0.04, rng.random(n), whole)

    covered, paired = [], []
    for _ in range(400):
        low, high = score_interval(draw().tolist())
        covered.append(low <= full <= high)
        low, high = compare_paired(draw().tolist(), draw().tolist()).ci
        paired.append(low <= 0 <= high)
    # 400 draws: standard error 1.1 points.
    assert min(np.mean(covered), np.mean(paired)) > 0.925


def test_passages_hold_the_level_of_a_test_that_would_reject_a_true_null():
    """24 passages of unequal sizes, an intra-passage correlation of 0.3."""
    rng = np.random.default_rng(13)
    sizes = [14, 14, 12, 12, 10, 10] + [8] * 12 + [5] * 6
    passages = np.repeat(np.arange(24), sizes)
    rejected = {"clustered": 0, "plain": 0}
    for _ in range(150):
        rates = rng.beta(0.5 * 7 / 3, 0.5 * 7 / 3, (2, 24))[:, passages]
        first, second = (rng.random(rates.shape) < rates).astype(float).tolist()
        for name, clusters in (("clustered", passages.tolist()), ("plain", None)):
            rejected[name] += compare_paired(first, second, clusters=clusters).p < 0.05
    # 150 draws: standard error 1.8 points at 5 %.
    assert rejected["clustered"] <= 0.08 * 150 and rejected["plain"] > 0.15 * 150


def test_bits_per_byte_by_hand_and_covered_in_simulation():
    nats = [-math.log(2) * bits for bits in (8, 16)]
    assert bits_per_byte(nats, [8, 8]).value == pytest.approx(1.5)
    assert bits_per_byte(nats, [4, 20]).value == pytest.approx(1.0)
    rng = np.random.default_rng(7)
    covered = []
    for _ in range(400):
        sizes = rng.integers(20, 400, 80)
        bits = sizes * rng.normal(0.9, 0.1, 80)
        low, high = bits_per_byte((-bits * math.log(2)).tolist(), sizes.tolist()).ci
        covered.append(low <= 0.9 <= high)
    assert 0.92 < np.mean(covered) < 0.98  # 400 draws: standard error 1.1 points


@pytest.mark.parametrize("n", [5, 8, 20])
def test_bits_are_compared_in_pairs_and_hold_their_level(n):
    """Texts of very different lengths: t tests reject a true null in 13 % of these at n = 5."""
    rng = np.random.default_rng(8)
    rejected, deltas = [], []
    for _ in range(300):
        sizes = np.exp(rng.normal(6, 1, n)).round() + 20
        first = -sizes * rng.normal(0.9, 0.3, n)
        second = first + sizes * rng.normal(0, 0.02, n)
        result = compare_bits(first.tolist(), second.tolist(), sizes=sizes.tolist())
        rejected.append(result.p < 0.05)
        deltas.append(result.delta)
    assert np.mean(rejected) < 0.075  # 300 draws: 1.3 points
    # Unpaired, the spread of the texts alone would be ten times this.
    assert np.std(deltas) < 0.07 / math.sqrt(n) + 0.005
    assert compare_bits([-10.0, -20.0], [-9.0, -18.0], sizes=[10, 20]).delta < 0


def test_bits_of_six_texts_lie_between_their_least_and_their_largest_ratio():
    nats = [-math.log(2) * bits for bits in (8, 9, 10, 11, 12, 40)]
    found = bits_per_byte(nats, [10] * 6)
    assert found.ci == pytest.approx((0.8, 4.0)) and found.p == 2**-5
    twice = bits_per_byte(nats * 2, [10] * 12, clusters=list(range(6)) * 2)
    assert twice == found


def test_bits_of_few_texts_have_no_interval():
    assert bits_per_byte([-10.0] * 5, [5] * 5).ci is None
    assert bits_per_byte([-10.0], [5]).ci is None
    alone = compare_bits([-10.0], [-9.0], sizes=[5])
    assert alone.ci is None and alone.p == 1.0


def test_holm_seldom_finds_anything_where_there_is_nothing():
    rng = np.random.default_rng(10)
    families = []
    known = functools.cache(mcnemar)
    for _ in range(300):
        pairs = rng.multinomial(100, [0.1, 0.1, 0.8], size=6)
        families.append(min(holm([known(int(b), int(c)) for b, c, _ in pairs])) < 0.05)
    assert np.mean(families) < 0.08  # at most 5 % of families; 300 draws: 1.3 points
