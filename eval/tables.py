"""The main table and the table of changes: as rows for the page, in a terminal, in Markdown."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from rich import box
from rich.table import Table
from rich.text import Text

from eval.showcase import sample_file
from eval.wording import (
    DASH,
    REPETITION,
    Headline,
    overall,
    p_value,
    percent,
    percent_range,
    points,
    points_range,
    significant,
)

CAPTION = "Rates and scores with 95% intervals; changes in points, p after Holm, * p < 0.05."


@dataclass(frozen=True)
class Cell:
    """A number of the main table: value and interval as text, the format, the samples' address."""

    value: str
    ci: str
    note: str
    href: str | None
    sort: float


@dataclass(frozen=True)
class Measure:
    """A row of the main table, one cell a model (None where the model was not measured)."""

    name: str
    caption: str
    cells: tuple[Cell | None, ...]


def measures(results: dict[str, Any], *, run_dir: Path | None = None) -> list[Measure]:
    """Rows of the main table: repetition and what stands beside it, then each benchmark.

    With `run_dir`, cells link to the stored samples that exist.
    """
    models, rates = results["models"], results.get("repetition", {})
    rows = []
    if rates:
        caps = sorted({rate["cap"] for rate in rates.values() if "cap" in rate})
        cap = f"greedy, cap {' / '.join(f'{cap:,}' for cap in caps)} tokens; " if caps else ""
        beside = (
            ("rate", REPETITION, f"{cap}lower is better"),
            ("truncated", "cut at the cap", "had not ended there, but not endless"),
            ("seq_rep_4", "seq-rep-4", "4-grams that an answer repeats"),
        )
        hrefs = [_href(run_dir, model, "generations.jsonl") for model in models]
        for key, name, caption in beside:
            cells = tuple(
                _rate(rates[model], key, href) if key in rates.get(model, {}) else None
                for model, href in zip(models, hrefs, strict=True)
            )
            if any(cells):
                rows.append(Measure(name, caption, cells))
    for task, scores in results.get("benchmarks", {}).items():
        metrics = dict.fromkeys(score["metric"] for score in scores.values())
        counts = dict.fromkeys(f"n = {score['n']:,}" for score in scores.values())
        cells = tuple(
            _score(scores[model], _href(run_dir, model, f"samples/{task}.jsonl"))
            if model in scores
            else None
            for model in models
        )
        rows.append(Measure(task, ", ".join([*metrics, *counts]), cells))
    return rows


def console_table(results: dict[str, Any]) -> Table:
    """The main table for a terminal; four models fit 80 columns.

    One row a measure, one column a model, the change from first to last model at the end.
    """
    pair = overall(results)
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), collapse_padding=True, pad_edge=False)
    table.add_column("", overflow="fold")
    for model in results["models"]:
        table.add_column(Text(model), justify="right", overflow="fold")
    if pair:
        table.add_column(Text(f"{pair[0]} \u2192 {pair[1]}"), justify="right", overflow="fold")
    changes = {
        row["task"]: row for row in results.get("deltas", []) if (row["from"], row["to"]) == pair
    }
    for measure in measures(results):
        line = [Text(measure.name, style="bold")]
        line += [_two_lines(c.value, c.ci) if c else Text(DASH, "dim") for c in measure.cells]
        change = changes.get(measure.name)
        if change:
            # A star where the change stands after Holm, so that colour is not needed.
            star = "*" if significant(change) else " "
            p = p_value(change.get("p_holm")) + " "
            line.append(_two_lines(points(change["delta"]) + star, p))
        table.add_row(*line)
    table.caption, table.caption_justify = CAPTION, "left"
    return table


def markdown(results: dict[str, Any], *, trained: str, headline: Headline) -> str:
    """report.md: the headline, the main table and the changes; the page has the rest."""
    lines = [f"# {md(headline.title)}", "", md(trained), "", md(headline.answer), ""]
    lines += [f"- **{md(step.label)}** {md(step.text)}" for step in headline.steps]
    tables = results_tables(results)
    lines += ["", "## Results", "", *tables] if tables else []
    lines += ["", "Pictures, answers side by side and the method: [report.html](report.html)."]
    return "\n".join(lines) + "\n"


def results_tables(results: dict[str, Any]) -> list[str]:
    """Lines of Markdown: the main table, and the changes from model to model with their tests."""
    lines = []
    rows = measures(results)
    if rows:
        cells = [
            [
                m.name,
                m.caption,
                *(" ".join((c.value, c.ci, c.note)) if c else DASH for c in m.cells),
            ]
            for m in rows
        ]
        lines += md_table(["", "", *results["models"]], cells)
    if results.get("deltas"):
        changes = [
            [
                row["task"],
                f"{row['from']} \u2192 {row['to']}",
                points(row["delta"]) + " *" * significant(row),
                points_range(row.get("ci")),
                p_value(row.get("p_holm")),
                f"{row['n']:,}",
                row["test"],
            ]
            for row in results["deltas"]
        ]
        head = ["measure", "step", "change, points", "95% interval", "after Holm", "n", "test"]
        lines += ["", "## Changes", "", *md_table(head, changes)]
    if rows:
        lines += ["", md(CAPTION)]
    return lines


def _rate(entry: dict[str, Any], key: str, href: str | None) -> Cell:
    if key != "rate":
        return Cell(percent(entry[key]), "", "", href, entry[key])
    ci = percent_range(entry.get("ci"))
    return Cell(percent(entry[key]), ci, f"n = {entry['n']:,}", href, entry[key])


def _score(entry: dict[str, Any], href: str | None) -> Cell:
    note = f"{entry['shots']}-shot" + (", chat" if entry.get("chat_template") else "")
    return Cell(percent(entry["score"]), percent_range(entry.get("ci")), note, href, entry["score"])


def _href(run_dir: Path | None, model: str, name: str) -> str | None:
    if run_dir is None or sample_file(run_dir, model=model, name=name) is None:
        return None
    return quote(f"eval/{model}/{name}")


def _two_lines(value: str, below: str) -> Text:
    return Text.assemble(value, ("\n" + below if below else "", "dim"))


def md(text: str) -> str:
    """Text as Markdown that shows it literally, in one line."""
    flat = " ".join(text.split())
    return re.sub(r"([\\`*_{}\[\]<>#|~&!])", r"\\\1", flat)


def md_table(head: list[str], rows: list[list[str]]) -> list[str]:
    """Lines of a Markdown table."""
    lines = [head, ["---"] * len(head), *([md(cell) for cell in row] for row in rows)]
    lines[0] = [md(cell) for cell in head]
    return [f"| {' | '.join(line)} |" for line in lines]
