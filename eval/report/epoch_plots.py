"""Picture and table of the measures in training, over the epochs of all stages."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from markupsafe import Markup

from eval.metrics.number_format import DASH, REPETITION, percent, percent_range
from eval.report.plots import Scale, accent, scale
from eval.schema import Results, TrainingPoint, TrainingScore

Key = Literal["epochs", "loops"]
LABELS = 12  # numbered epochs below a picture, at most


@dataclass(frozen=True)
class EpochPanel:
    """One measure over the epochs of all stages."""

    title: str
    caption: str
    y: Scale
    labels: tuple[tuple[float, str], ...]  # place in percent of the width, epoch
    picture: Markup


@dataclass(frozen=True)
class _Point:
    """A measured step; `x` counts epochs over all stages, `first` marks the first of a stage."""

    stage: str
    epoch: float
    x: float
    first: bool
    row: TrainingPoint

    def entry(self, measure: str) -> TrainingScore | None:
        """Return the score of a measure at this step; the repetition rate has the same form."""
        if measure != REPETITION:
            return self.row.get("benchmarks", {}).get(measure)
        if (rate := self.row.get("repetition")) is None:
            return None
        share = "share of endless answers"
        return {"score": rate["rate"], "ci": rate["ci"], "n": rate["n"], "metric": share}


def epoch_panels(results: Results, *, key: Key = "epochs") -> list[EpochPanel]:
    """Return a panel for repetition and one for each benchmark that was measured in training.

    Args:
        key: "epochs" for the measures at each epoch, "loops" for the loop checks within stages.
    """
    points = list(_points(results, key))
    if not points:
        return []
    x = Scale(0, 1.05 * (points[-1].x or 1), ())
    every = -(-len(points) // LABELS)
    labels = tuple((x.at(p.x), f"{p.epoch:.3g}") for p in points[::every])
    panels = []
    for measure in _measures(points):
        entries = [(p, entry) for p in points if (entry := p.entry(measure)) is not None]
        ends = [end for _, entry in entries for end in entry["ci"]]
        y = scale(ends, zero=measure == REPETITION, num_ticks=4)
        counts = " / ".join(dict.fromkeys(f"{entry['n']:,}" for _, entry in entries))
        picture = _picture(entries, x=x, y=y, models=results["models"])
        caption = f"{entries[0][1]['metric']}, n = {counts}"
        panels.append(EpochPanel(measure, caption, y, labels, picture))
    return panels


def epoch_table(results: Results, *, key: Key = "epochs") -> list[list[str]]:
    """Return the same numbers as rows of text, the head first; empty without any."""
    points = list(_points(results, key))
    if not points:
        return []
    names = _measures(points)
    rows = [["stage", "epoch", "step", *names]]
    for p in points:
        cells = []
        for name in names:
            entry = p.entry(name)
            known = entry and f"{percent(entry['score'])} {percent_range(entry['ci'])}"
            cells.append(known or DASH)
        rows.append([p.stage, f"{p.epoch:.3g}", f"{p.row['step']:,}", *cells])
    return rows


def _points(results: Results, key: Key) -> Iterator[_Point]:
    before = 0.0
    for stage, rows in results.get(key, {}).items():
        for i, row in enumerate(rows):
            yield _Point(stage, row["epoch"], before + row["epoch"], i == 0, row)
        last = rows[-1]  # may be before the last step of the stage
        steps = results["stages"][stage]["steps"]
        before += last["epoch"] * steps / last["step"] if last["step"] else 1


def _measures(points: list[_Point]) -> list[str]:
    found = dict.fromkeys(REPETITION for p in points if REPETITION in p.row)
    return list(found | dict.fromkeys(task for p in points for task in p.row.get("benchmarks", {})))


def _picture(
    entries: list[tuple[_Point, TrainingScore]], *, x: Scale, y: Scale, models: list[str]
) -> Markup:
    """Draw dots with their intervals, joined in order, in the color of their stage."""
    shapes = Markup("")
    for tick in y.ticks:
        shapes += _line("grid", (0, 100), (100 - y.at(tick),) * 2)
    before: tuple[float, float] | None = None
    for point, entry in entries:
        here = x.at(point.x), 100 - y.at(entry["score"])
        parts = _line("ci", (here[0],) * 2, tuple(100 - y.at(end) for end in entry["ci"]))
        if before is not None:
            parts += _line("link", (before[0], here[0]), (before[1], here[1]))
            if point.first:
                shapes += _line("border", (before[0],) * 2, (0, 100))
        words = (
            f"{point.stage}, epoch {point.epoch:.3g}: {percent(entry['score'])}, 95% interval "
            f"{percent_range(entry['ci'])}"
        )
        dot = '<circle class="dot clear" cx="{}%" cy="{}%" r="4"><title>{}</title></circle>'
        parts += Markup(dot).format(*here, words)
        shapes += Markup('<g class="m{}">{}</g>').format(accent(point.stage, models), parts)
        before = here
    return Markup('<svg role="img">{}</svg>').format(shapes)


def _line(css: str, x: tuple[float, ...], y: tuple[float, ...]) -> Markup:
    line = '<line class="{}" x1="{}%" x2="{}%" y1="{}%" y2="{}%"/>'
    return Markup(line).format(css, *x, *(round(value, 3) for value in y))
