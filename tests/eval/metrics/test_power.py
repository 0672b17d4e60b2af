"""What is called visible, or enough, is found four times of five."""

import itertools

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from eval.metrics.mcnemar import mcnemar
from eval.metrics.power import (
    needed_pairs,
    needed_ratio,
    needed_values,
    visible_mean,
    visible_proportion,
    visible_ratio,
)
from eval.metrics.stats import compare_bits, compare_paired

DRAWS = 1000  # standard error 1.3 points around 80 %


def found(delta: float, discord: float, n: int) -> float:
    """How often the exact test finds a difference of `delta` in n pairs."""
    share = max(discord, delta)
    parts = [(share + delta) / 2, (share - delta) / 2, 1 - share]
    draws = np.random.default_rng(5).multinomial(n, parts, size=DRAWS)
    return float(np.mean([mcnemar(int(b), int(c)) < 0.05 for b, c, _ in draws]))


PAIRS = [(0.0, 50), (0.0, 200), (0.05, 100), (0.05, 200), (0.2, 40), (0.2, 200), (0.2, 1319)]


@pytest.mark.parametrize(("discord", "n"), PAIRS)
def test_a_visible_difference_of_right_answers_is_found_four_times_of_five(discord, n):
    visible = visible_proportion(discord, n, level=0.95)
    assert 0.77 < found(visible, discord, n) < 0.84


@pytest.mark.parametrize(("delta", "discord"), [(0.3, 0.3), (0.1, 0.15), (0.05, 0.2), (0.02, 0.02)])
def test_as_many_questions_as_are_needed_find_a_difference_four_times_of_five(delta, discord):
    needed = needed_pairs(delta, discord, level=0.95)
    assert 0.77 < found(delta, discord, needed) < 0.85
    assert found(delta, discord, int(0.8 * needed)) < 0.77
    assert needed_pairs(-delta, discord, level=0.95) == needed


@settings(max_examples=25, deadline=None)
@given(discord=st.floats(0, 0.9), n=st.integers(30, 5000))
@example(discord=1.1125369292536007e-308, n=30)
@example(discord=5e-324, n=5000)
def test_questions_needed_and_difference_visible_are_one_equation(discord, n):
    visible = visible_proportion(discord, n, level=0.95)
    assert 0 < visible <= 1
    needed = needed_pairs(visible + 1e-6, max(discord, visible), level=0.95)
    assert needed == pytest.approx(n, rel=0.02, abs=3)  # the exact test's power rises in steps
    assert visible_proportion(discord, 4 * n, level=0.95) < visible


def test_many_pairs_by_connor_s_formula_join_those_by_the_exact_test():
    edge = [needed_pairs(delta, 0.3, level=0.95) for delta in np.linspace(0.0105, 0.0115, 5)]
    assert min(edge) < 20_000 < max(edge)
    # The number falls with the square of the difference, by 4.6 % a step.
    assert [a / b for a, b in itertools.pairwise(edge)] == pytest.approx([1.046] * 4, abs=0.02)


@pytest.mark.parametrize(("n", "spread"), [(20, 0.3), (60, 0.2), (400, 0.1), (400, 0.5)])
def test_a_visible_difference_of_fractions_is_found_four_times_of_five(n, spread):
    rng = np.random.default_rng(6)
    visible = visible_mean(spread, n, level=0.95)
    shape = ((1 + visible) * (1 - visible) / spread**2 - 1) / 2  # a beta distribution on [-1, 1]
    drawn = 2 * rng.beta(shape * (1 + visible), shape * (1 - visible), (400, n)) - 1
    assert np.std(drawn) == pytest.approx(spread, rel=0.05)
    tests = [compare_paired([0.0] * n, row.tolist()) for row in drawn]
    assert 0.74 < np.mean([t.p < 0.05 for t in tests]) < 0.88  # 400 draws: 2 points
    assert np.median([t.visible for t in tests]) == pytest.approx(visible, rel=0.1)
    assert needed_values(visible, spread, level=0.95) == n


@pytest.mark.parametrize("n", [10, 60])
def test_a_visible_difference_of_bits_is_found_four_times_of_five(n):
    rng = np.random.default_rng(7)
    sizes = rng.integers(80, 120, n).astype(float)
    error = 0.02 * np.sqrt(np.sum(sizes**2)) / np.sum(sizes)
    visible = visible_ratio(error, n, level=0.95)
    tests = []
    for _ in range(200):
        bits = sizes * rng.normal(visible, 0.02, n)
        first = np.zeros(n)
        nats = -bits * np.log(2)
        tests.append(compare_bits(first.tolist(), nats.tolist(), sizes=sizes.tolist()))
    assert 0.71 < np.mean([t.p < 0.05 for t in tests]) < 0.88  # 200 draws: 2.8 points
    assert needed_ratio(visible, error, n, level=0.95) == pytest.approx(n, abs=1)


def test_passages_make_less_visible_and_need_more_questions():
    first = [1] * 50 + [0] * 50
    second = [1] * 49 + [0] * 41 + [1] * 10
    plain = compare_paired(first, second)
    shared = compare_paired(first, second, clusters=[i // 5 for i in range(100)])
    assert shared.visible > plain.visible and shared.p > plain.p
    assert shared.needed > plain.needed


def test_too_few_questions_show_nothing():
    assert visible_proportion(0.5, 5, level=0.95) is None
    assert visible_mean(0.1, 5, level=0.95) is None and visible_mean(0.5, 7, level=0.95) is None
    assert visible_ratio(0.1, 5, level=0.95) is None
    assert needed_pairs(0.0, 0.3, level=0.95) is None
    few = compare_paired([1, 0], [1, 0])
    assert (few.gained, few.lost, few.visible, few.needed) == (0, 0, None, None)
    # Five pairs that all change have an exact p of 0.06; six are seen each time.
    assert compare_paired([0] * 5, [1] * 5).needed == needed_pairs(1.0, 1.0, level=0.95) == 6
    passages = compare_paired([0, 0, 1, 1], [1, 1, 1, 1], clusters=[0, 0, 1, 1])
    assert passages.visible is None and passages.p > 0.5


def test_a_comparison_says_what_changed_and_how_many_questions_it_takes():
    first = [1] * 50 + [0] * 50
    second = [1] * 47 + [0] * 48 + [1] * 5
    result = compare_paired(first, second)
    assert (result.gained, result.lost) == (5, 3) and result.delta == pytest.approx(0.02)
    assert result.visible == visible_proportion(0.08, 100, level=0.95)
    assert result.needed == needed_pairs(0.02, 0.08, level=0.95) > 1000
    same = compare_paired(first, first)
    assert same.visible == visible_proportion(0.0, 100, level=0.95)
    assert same.visible == pytest.approx(0.0776, abs=2e-3)  # 8 or more of 100, four times of five
