"""Pictures of the report: inline SVG for the page, one PNG for a README.

Horizontal positions in the SVG are percentages of its width, so text and strokes keep their size on
every screen; colors are CSS variables, for light and dark mode.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from eval.metrics.number_format import (
    MINUS,
    REPETITION,
    percent,
    percent_range,
    points,
    significant,
)
from eval.schema import DeltaRow, Results

# Accent of a model by its index in `models`: (light mode, dark mode). The first, usually the base
# model, is gray; neighbors differ for color-blind readers, after Okabe and Ito.
ACCENTS = (
    ("#70757f", "#9aa1ad"),
    ("#c8570f", "#f0935a"),
    ("#1c6fb0", "#67b3ea"),
    ("#0a7f5b", "#45c499"),
    ("#a3458a", "#db8cc6"),
    ("#8a6d00", "#d6b441"),
    ("#5a52b5", "#a49df2"),
    ("#a33434", "#ee8787"),
)
INK, MUTED, LINE = "#1c1d20", "#63666d", "#dddcd6"
CURVE_POINTS = 400  # of a polyline, at most


@dataclass(frozen=True)
class Scale:
    """A horizontal or vertical axis."""

    low: float
    high: float
    ticks: tuple[float, ...]

    def at(self, value: float) -> float:
        """Return the position of `value` in percent of the axis, clipped to it."""
        return round(100 * min(max((value - self.low) / (self.high - self.low), 0), 1), 3)


@dataclass(frozen=True)
class Curve:
    """The log of a stage: (step, loss) and (step, learning rate)."""

    stage: str
    loss: tuple[tuple[float, float], ...]
    learning_rate: tuple[tuple[float, float], ...]


def scale(values: Sequence[float], *, zero: bool, num_ticks: int = 5) -> Scale:
    """Return an axis over the finite `values`, with ticks at 1, 2 or 5 times a power of ten."""
    finite = [value for value in values if math.isfinite(value)] + [0.0] * zero
    low, high = (min(finite), max(finite)) if finite else (0.0, 1.0)
    if high - low < 1e-9:
        high = low + max(abs(low), 0.1) * 0.2
    rough = (high - low) / num_ticks
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-6), math.floor(high / step + 1e-6)
    ticks = tuple(round(i * step, 12) for i in range(first, last + 1))
    # A margin for the markers at the ends; an axis of rates starts at zero.
    margin = 0.03 * (high - low)
    return Scale(low if zero and low == 0 else low - margin, high + margin, ticks)


def bar(rate: float, *, ci: Sequence[float] | None, axis: Scale) -> Markup:
    """Draw a rate as a bar with its interval as a whisker."""
    shapes = _grid(axis) + Markup(
        '<rect class="bar" x="0" y="24%" width="{}%" height="52%" rx="1.5"/>'
    ).format(axis.at(rate))
    if ci is not None:
        shapes += _whisker(ci, axis=axis, css="whisker")
    return _row(shapes, f"{percent(rate)}, 95% interval {percent_range(ci)}")


def interval(row: DeltaRow, *, axis: Scale) -> Markup:
    """Draw a row of `deltas`: the interval, and a dot that is filled if significant."""
    shapes = _grid(axis)
    if (ci := row.get("ci")) is not None:
        shapes += _whisker(ci, axis=axis, css="ci")
    css = "dot clear" if significant(row) else "dot"
    x = axis.at(row["delta"])
    shapes += Markup('<circle class="{}" cx="{}%" cy="50%" r="4.5"/>').format(css, x)
    return _row(shapes, f"{row['task']}, {row['from']} to {row['to']}: {points(row['delta'])}")


def tick_labels(axis: Scale, *, signed: bool) -> Markup:
    """Draw the labels below a column of rows, in percent or signed points."""
    texts = Markup("")
    for tick in axis.ticks:
        number = f"{100 * tick:{'+' if signed and tick else ''}g}".replace("-", MINUS)
        text = number if signed else f"{number}%"
        texts += Markup('<text x="{}%" y="14">{}</text>').format(axis.at(tick), text)
    return Markup('<svg class="ticks" aria-hidden="true">{}</svg>').format(texts)


def curve(series: Sequence[tuple[float, float]], *, x: Scale, y: Scale, smooth: bool) -> Markup:
    """Draw a line that fills its box; with `smooth`, over a grid and below its average."""
    lines = Markup("")
    for tick in y.ticks if smooth else ():
        at = 100 - y.at(tick)
        lines += Markup('<path class="grid" d="M0 {0}H100"/>').format(at)
    raw = thinned(series)
    layers = [("raw" if smooth else "line", raw)]
    if smooth:
        layers.append(("line", moving_average(raw)))
    for css, values in layers:
        path = " ".join(f"{x.at(step)},{round(100 - y.at(value), 3)}" for step, value in values)
        lines += Markup('<polyline class="{}" points="{}"/>').format(css, path)
    return Markup(
        '<svg viewBox="0 0 100 100" preserveAspectRatio="none" aria-hidden="true">{}</svg>'
    ).format(lines)


class Thinned:
    """A line of any length, as at most 2 * CURVE_POINTS means of equal runs of neighbors."""

    def __init__(self) -> None:
        self._runs: list[tuple[float, float, int]] = []  # sums of x and of y, and how many
        self._size = 1

    def add(self, x: float, y: float) -> None:
        """Add the next point; non-finite points are skipped."""
        if not (math.isfinite(x) and math.isfinite(y)):
            return
        if self._runs and self._runs[-1][2] < self._size:
            before = self._runs[-1]
            self._runs[-1] = (before[0] + x, before[1] + y, before[2] + 1)
            return
        if len(self._runs) == 2 * CURVE_POINTS:
            pairs = zip(self._runs[::2], self._runs[1::2], strict=True)
            self._runs = [(a[0] + b[0], a[1] + b[1], a[2] + b[2]) for a, b in pairs]
            self._size *= 2
        self._runs.append((x, y, 1))

    def points(self) -> tuple[tuple[float, float], ...]:
        """Return the means of x and y of each run."""
        return tuple((x / count, y / count) for x, y, count in self._runs)


def thinned(series: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return at most CURVE_POINTS points: means of equal runs of finite neighbors."""
    finite = [(x, y) for x, y in series if math.isfinite(x) and math.isfinite(y)]
    size = math.ceil(len(finite) / CURVE_POINTS)
    if size <= 1:
        return finite
    runs = [finite[i : i + size] for i in range(0, len(finite), size)]
    return [(sum(x for x, _ in r) / len(r), sum(y for _, y in r) / len(r)) for r in runs]


def moving_average(series: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the centered mean over about a twelfth of the points, fewer at the ends."""
    reach = max(1, len(series) // 24)
    averaged = []
    for i, (x, _) in enumerate(series):
        # The start is steep, so the window narrows there on both sides.
        width = min(reach, i)
        near = series[i - width : i + width + 1]
        averaged.append((x, sum(y for _, y in near) / len(near)))
    return averaged


def write_picture(results: Results, *, logs: Sequence[Curve], path: Path) -> None:
    """Write the main picture as a PNG: repetition, benchmark changes and loss curves.

    The same input gives the same bytes with the same matplotlib.
    """
    deltas = [row for row in results.get("deltas", []) if row["task"] != REPETITION]
    tasks = list(dict.fromkeys(row["task"] for row in deltas))
    top = max(2.0, 0.75 + 0.2 * (len(deltas) + 1.1 * len(tasks)))
    figure = Figure(figsize=(10, top + 2.3 * bool(logs)), layout="constrained", facecolor="white")
    heights = [top, 2.3] if logs else [top]
    bands = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
    left, right = bands[0].subplots(1, 2, width_ratios=[1, 1.35])
    _draw_repetition(left, results)
    _draw_deltas(right, deltas, tasks, results["models"])
    if logs:
        panels = bands[1].subplots(1, len(logs), squeeze=False)[0]
        for axes, log in zip(panels, logs, strict=True):
            _draw_loss(axes, log, results["models"])
    figure.savefig(path, format="png", dpi=160, metadata={"Software": None})


def accent(model: str, models: Sequence[str]) -> int:
    """Return the index in ACCENTS of a model or of its stage ('1-sft-all' -> 'sft-all')."""
    names = list(models)
    name = model if model in names else model.partition("-")[2]
    return names.index(name) % len(ACCENTS) if name in names else 0


def _row(shapes: Markup, title: str) -> Markup:
    return Markup('<svg class="row" role="img"><title>{}</title>{}</svg>').format(title, shapes)


def _grid(axis: Scale) -> Markup:
    lines = Markup("")
    for tick in axis.ticks:
        css = "zero" if tick == 0 else "grid"
        x = axis.at(tick)
        lines += Markup('<line class="{0}" x1="{1}%" x2="{1}%" y1="0" y2="100%"/>').format(css, x)
    return lines


def _whisker(ci: Sequence[float], *, axis: Scale, css: str) -> Markup:
    low, high = axis.at(ci[0]), axis.at(ci[1])
    line = '<line class="{}" x1="{}%" x2="{}%" y1="{}" y2="{}"/>'
    whisker = Markup(line).format(css, low, high, "50%", "50%")
    for end in (low, high):
        whisker += Markup(line).format(css, end, end, "38%", "62%")
    return whisker


def _plain(axes: Axes, title: str) -> None:
    axes.set_title(title, loc="left", fontsize=10, fontweight="bold", color=INK, pad=8)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(LINE)
    axes.tick_params(length=0, labelsize=8, labelcolor=MUTED)
    axes.set_axisbelow(True)
    axes.grid(axis="x", color=LINE, linewidth=0.6)


def _draw_repetition(axes: Axes, results: Results) -> None:
    rates = results.get("repetition", {})
    models = [model for model in results["models"] if model in rates]
    for y, model in enumerate(models):
        rate, ci = 100 * rates[model]["rate"], [100 * end for end in rates[model]["ci"]]
        color = ACCENTS[accent(model, results["models"])][0]
        axes.barh(y, rate, height=0.5, color=color, alpha=0.85)
        axes.plot(ci, [y, y], color=INK, linewidth=1.2)
        label = f"{rate:.1f}%"
        axes.annotate(
            label, (ci[1], y), (5, 0), textcoords="offset points", va="center", fontsize=9
        )
    axes.invert_yaxis()
    axes.margins(x=0.16)
    axes.set_xlim(left=0)
    _plain(axes, "Repetition rate, % of prompts (95% interval)")
    axes.set_yticks(range(len(models)), models, fontsize=9, color=INK)


def _draw_deltas(axes: Axes, deltas: list[DeltaRow], tasks: list[str], models: list[str]) -> None:
    y, ticks, labels = 0.0, [], []
    for task in tasks:
        axes.annotate(
            task,
            (0, y),
            (-6, 0),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            ha="right",
            va="center",
            fontsize=8.5,
            fontweight="bold",
            color=INK,
        )
        for row in (row for row in deltas if row["task"] == task):
            y += 1
            color = ACCENTS[accent(row["to"], models)][0]
            if (ci := row.get("ci")) is not None:
                axes.plot([100 * end for end in ci], [y, y], color=color, linewidth=1.4)
            face = color if significant(row) else "white"
            axes.plot(100 * row["delta"], y, "o", color=color, mfc=face, markersize=4.5)
            ticks.append(y)
            labels.append(f"{row['from']} \u2192 {row['to']}")
        y += 1.1
    axes.axvline(0, color=INK, linewidth=0.8, zorder=0.9)
    axes.set_yticks(ticks, labels)
    axes.set_ylim(y - 0.4, -0.6)
    _plain(axes, "Benchmark change, points (filled: p < 0.05 after Holm)")


def _draw_loss(axes: Axes, log: Curve, models: list[str]) -> None:
    color = ACCENTS[accent(log.stage, models)][0]
    raw = thinned(log.loss)
    axes.plot(*zip(*raw, strict=True), color=color, alpha=0.3, linewidth=0.8)
    axes.plot(*zip(*moving_average(raw), strict=True), color=color, linewidth=1.6)
    _plain(axes, f"{log.stage}: loss by step")
    axes.grid(axis="y", color=LINE, linewidth=0.6)
