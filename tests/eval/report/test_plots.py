"""Pictures hold their values, stay small, and come out the same twice."""

import math
from pathlib import Path

import pytest
from made_up_run import make_results

from eval.report.plots import CURVE_POINTS, Curve, scale, thinned, write_picture


def test_the_picture_of_the_same_results_has_the_same_bytes(tmp_path: Path) -> None:
    logs = [Curve("1-sft-all", tuple((float(i), 3 / i) for i in range(1, 60)), ())]
    paths = [tmp_path / "a.png", tmp_path / "b.png"]
    for path in paths:
        write_picture(make_results(), logs=logs, path=path)
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert paths[0].read_bytes().startswith(b"\x89PNG")


def test_a_log_of_any_length_draws_a_bounded_curve(tmp_path: Path) -> None:
    series = [(float(i), 5.0 + (i % 7)) for i in range(100_000)] + [(1e5, math.nan)]
    points = thinned(series)
    assert 100 < len(points) <= CURVE_POINTS
    assert sum(loss for _, loss in points) / len(points) == pytest.approx(8.0, abs=0.01)
    picture = tmp_path / "long.png"
    write_picture({"models": ["a"]}, logs=[Curve("1-a", tuple(series), ())], path=picture)
    assert picture.stat().st_size > 5_000


def test_axis_holds_its_values_and_ticks() -> None:
    for values in ([0.0], [0.3, 0.31], [-0.9, 0.02], [5e-6, 2e-5], [2.87, 0.41], []):
        axis = scale(values, zero=True)
        assert all(axis.low <= value <= axis.high for value in (*values, 0.0, *axis.ticks))
        assert 0.0 in axis.ticks and 2 <= len(axis.ticks) <= 8
        assert all(0 <= axis.at(value) <= 100 for value in (*values, -9.0, math.inf))
