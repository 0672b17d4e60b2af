import functools
import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from eval.stats import (
    bits_per_byte,
    compare_bits,
    compare_paired,
    holm,
    mcnemar,
    mean_interval,
    needed_pairs,
    paired_proportion_interval,
    score_interval,
    visible_proportion,
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


@pytest.mark.parametrize(("discord", "n"), [(0.0, 200), (0.05, 200), (0.2, 200), (0.2, 1319)])
def test_what_is_called_visible_is_found_four_times_of_five(discord, n):
    delta = visible_proportion(discord, n)
    share = max(discord, delta)
    rng = np.random.default_rng(5)
    parts = [(share + delta) / 2, (share - delta) / 2, 1 - share]
    draws = rng.multinomial(n, parts, size=400)
    found = np.mean([mcnemar(int(b), int(c)) < 0.05 for b, c, _ in draws])
    # The exact test is careful, most of all where few pairs disagree; 400 draws: 2 points.
    assert 0.66 < found < 0.87


@given(discord=st.floats(0, 0.9), n=st.integers(30, 5000))
def test_questions_needed_and_difference_visible_are_one_equation(discord, n):
    delta = visible_proportion(discord, n)
    assert 0 < delta <= 1
    assert needed_pairs(delta, max(discord, delta)) == pytest.approx(n, abs=1)
    assert visible_proportion(discord, 4 * n) < delta


def test_too_few_questions_show_nothing():
    assert visible_proportion(0.5, 5) is None
    assert needed_pairs(0.0, 0.3) is None
    few = compare_paired([1, 0], [1, 0])
    assert (few.gained, few.lost, few.visible, few.needed) == (0, 0, None, None)
    # Five pairs that all change have an exact p of 0.06.
    assert compare_paired([0] * 5, [1] * 5).needed == needed_pairs(1.0, 1.0) == 6
    # Two passages: a change of 700 points is none that scores could make.
    passages = compare_paired([0, 0, 1, 1], [1, 1, 1, 1], clusters=[0, 0, 1, 1])
    assert passages.visible is None and passages.p == pytest.approx(0.5)


def test_pairs_that_never_disagree_still_say_what_they_could_have_shown():
    same = compare_paired([1] * 60 + [0] * 40, [1] * 60 + [0] * 40)
    assert same.visible == visible_proportion(0.0, 100) == pytest.approx(0.0767, abs=1e-4)
    assert needed_pairs(same.visible, same.visible) == pytest.approx(100, abs=1)


def test_a_comparison_says_what_changed_and_how_many_questions_it_takes():
    first = [1] * 50 + [0] * 50
    second = [1] * 47 + [0] * 48 + [1] * 5
    result = compare_paired(first, second)
    assert (result.gained, result.lost) == (5, 3) and result.delta == pytest.approx(0.02)
    assert result.visible == visible_proportion(0.08, 100)
    assert result.needed == needed_pairs(0.02, 0.08) > 1000


def test_what_a_t_test_calls_visible_is_found_four_times_of_five():
    rng = np.random.default_rng(6)
    spread, n = 0.2, 60
    guess = compare_paired([0.0] * n, rng.normal(0, spread, n).tolist()).visible
    true = guess * spread / np.std(rng.normal(0, spread, 100_000))
    tests = [compare_paired([0.0] * n, rng.normal(true, spread, n).tolist()) for _ in range(600)]
    assert 0.6 < np.mean([t.p < 0.05 for t in tests]) < 0.95
    assert np.median([t.visible for t in tests]) == pytest.approx(
        spread / math.sqrt(n) * (2.001 + 0.848), rel=0.05
    )


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


def test_bits_are_compared_in_pairs_and_hold_their_level():
    rng = np.random.default_rng(8)
    rejected, deltas = [], []
    for _ in range(400):
        sizes = rng.integers(20, 400, 50)
        first = -sizes * rng.normal(0.9, 0.3, 50)
        second = first + sizes * rng.normal(0, 0.02, 50)
        result = compare_bits(first.tolist(), second.tolist(), sizes=sizes.tolist())
        rejected.append(result.p < 0.05)
        deltas.append(result.delta)
    assert 0.02 < np.mean(rejected) < 0.09
    # Unpaired, the spread of the texts alone would be ten times this.
    assert np.std(deltas) < 0.01
    assert compare_bits([-10.0, -20.0], [-9.0, -18.0], sizes=[10, 20]).delta < 0


def test_bits_of_one_text_have_no_interval():
    assert bits_per_byte([-10.0], [5]).ci is None
    alone = compare_bits([-10.0], [-9.0], sizes=[5])
    assert alone.ci is None and alone.p == 1.0


@pytest.mark.parametrize("questions", [1, 4])
def test_clustered_intervals_cover_where_questions_share_a_passage(questions):
    rng = np.random.default_rng(9)
    covered, level = [], []
    for _ in range(300):
        passage = rng.normal(0, 0.2, 40).repeat(questions)
        differences = passage + rng.normal(0, 0.2, 40 * questions)
        clusters = np.arange(40).repeat(questions).tolist()
        result = compare_paired([0.0] * len(differences), differences.tolist(), clusters=clusters)
        covered.append(result.ci[0] <= 0 <= result.ci[1])
        level.append(result.p < 0.05)
    assert np.mean(covered) > 0.915 and np.mean(level) < 0.085  # 300 draws: 1.3 points


def test_holm_seldom_finds_anything_where_there_is_nothing():
    rng = np.random.default_rng(10)
    families = []
    known = functools.cache(mcnemar)
    for _ in range(300):
        pairs = rng.multinomial(100, [0.1, 0.1, 0.8], size=6)
        families.append(min(holm([known(int(b), int(c)) for b, c, _ in pairs])) < 0.05)
    assert np.mean(families) < 0.08  # at most 5 % of families; 300 draws: 1.3 points
