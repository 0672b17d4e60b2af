"""The main table and the table of changes: as rows for the page, in a terminal, in Markdown."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from eval.metrics.formatting import (
    DASH,
    REPETITION,
    bits_change,
    bits_range,
    p_value,
    percent,
    percent_range,
    points,
    points_range,
    significant,
)
from eval.metrics.stats import BITS_PER_BYTE
from eval.report.caveats import caveats
from eval.report.headline import Headline, counted, in_bits, overall
from eval.report.sample_files import sample_href, task_href

CAPTION = "Rates and scores with 95% intervals; changes in points, Holm-adjusted p, * p < 0.05."
INTERVALS = (  # below the table of changes
    "An interval excludes 0 exactly where the unadjusted p is below 0.05. A star marks p below "
    "0.05 after Holm adjustment over {counted} of {rows} comparisons: those with at least six "
    "changed answers, since fewer cannot reach p = 0.05."
)


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


@dataclass(frozen=True)
class FormatRow:
    """A task's change in points from first to last model: in the protocol, in one format, and what
    asking in the protocol's format instead of that one changes for a model (model, change)."""

    form: str
    task: str
    protocol: str
    same: str
    formats: tuple[tuple[str, str], ...]
    sort: tuple[float, float]  # protocol and same, as numbers


def measures(results: dict[str, Any], *, run_dir: Path | None = None) -> list[Measure]:
    """Rows of the main table: repetition and its companion rates, then each benchmark.

    With `run_dir`, cells link to the stored samples that exist.
    """
    models, rates = results["models"], results.get("repetition", {})
    rows = []
    if rates:
        caps = sorted({rate["cap"] for rate in rates.values() if "cap" in rate})
        cap = f"greedy, cap {' / '.join(f'{cap:,}' for cap in caps)} tokens; " if caps else ""
        beside = (
            ("rate", REPETITION, f"{cap}lower is better"),
            ("truncated", "cut at the cap", "not ended at the cap, but not looping"),
            ("seq_rep_4", "seq-rep-4", "repeated 4-grams of an answer"),
        )
        hrefs = [task_href(run_dir, model=model, task=REPETITION) for model in models]
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
            _score(scores[model], task_href(run_dir, model=model, task=task))
            if model in scores
            else None
            for model in models
        )
        rows.append(Measure(task, ", ".join([*metrics, *counts]), cells))
    for task, entries in results.get("language", {}).get("benchmarks", {}).items():
        cells = tuple(
            _bits(entries[model], task_href(run_dir, model=model, task=task))
            if model in entries
            else None
            for model in models
        )
        rows.append(Measure(task, "bits per byte, lower is better", cells))
    return rows + _safety(results, run_dir)


def isolations(results: dict[str, Any]) -> dict[str, list[str]]:
    """How model-written programs were kept apart -> the tasks that ran them so."""
    found: dict[str, list[str]] = {}
    for task, scores in results.get("benchmarks", {}).items():
        for name in dict.fromkeys(s["isolation"] for s in scores.values() if "isolation" in s):
            found.setdefault(name, []).append(task)
    return found


def one_format(results: dict[str, Any]) -> list[FormatRow]:
    """First to last model: a task's change in the protocol, and the part that is the format's."""
    pair = overall(results)
    protocol = {row["task"]: row for row in results.get("deltas", []) if _pair(row) == pair}
    rows = []
    for form, section in results.get("same_format", {}).items():
        alone = {(row["task"], row["model"]): row for row in section["formats"]}
        for row in section["deltas"]:
            if pair is not None and _pair(row) == pair:
                shares = [(model, alone.get((row["task"], model))) for model in pair]
                beside = protocol[row["task"]]
                rows.append(
                    FormatRow(
                        *(form, row["task"], _change(beside), _change(row)),
                        formats=tuple((m, _change(share)) for m, share in shares if share),
                        sort=(beside["delta"], row["delta"]),
                    )
                )
    return rows


def pairs_counted(row: dict[str, Any]) -> str:
    """The questions of a comparison, and those that one of the two models left out."""
    out = row.get("left_out", 0)
    return f"{row['n']:,}" + (f" ({out:,} left out)" if out else "")


def still_needed(row: dict[str, Any]) -> str:
    """What n questions would show, and how many would show this change; '' where it is shown."""
    if significant(row) or row.get("visible") is None:
        return ""
    more = f"; this change needs {row['needed']:,} questions" if row.get("needed") else ""
    if more and row["needed"] <= row["n"]:  # seen, but for what Holm takes off
        more = "; this change is detectable as the only comparison"
    return f"n detects changes of at least {100 * row['visible']:.1f} points{more}"


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
    compared = [*results.get("deltas", []), *in_bits(results)]
    changes = {row["task"]: row for row in compared if _pair(row) == pair}
    for measure in measures(results):
        line = [Text(measure.name, style="bold")]
        line += [_two_lines(c.value, c.ci) if c else Text(DASH, "dim") for c in measure.cells]
        change = changes.get(measure.name)
        if change:
            # A star marks a significant change, so that color is not needed.
            star = "*" if significant(change) else " "
            p = p_value(change.get("p_holm")) + " "
            texts = change in in_bits(results)
            delta = bits_change(change["delta"]) if texts else points(change["delta"])
            line.append(_two_lines(delta + star, p))
        table.add_row(*line)
    table.caption = " ".join([CAPTION, *caveats(results)])
    table.caption_justify = "left"
    return table


def markdown(
    results: dict[str, Any],
    *,
    trained: str,
    headline: Headline,
    closer: Sequence[Measure] = (),
    safety: Sequence[Measure] = (),
    epochs: Sequence[list[str]] = (),
    loops: Sequence[list[str]] = (),
) -> str:
    """report.md: the headline, the main table, the changes, and what `eval.report.detail_tables`
    and `eval.report.epoch_plots` add; the page has the rest."""
    lines = [f"# {md(headline.title)}", "", md(trained), "", md(headline.answer), ""]
    lines += [f"- **{md(step.label)}** {md(step.text)}" for step in headline.steps]
    tables = results_tables(results)
    lines += ["", "## Results", "", *tables] if tables else []
    for title, details in (("Repetition in detail", closer), ("Safety by category", safety)):
        if details:
            cells = [
                [m.name, m.caption, *(" ".join((c.value, c.ci)) if c else DASH for c in m.cells)]
                for m in details
            ]
            lines += ["", f"## {title}", "", *md_table(["", "", *results["models"]], cells)]
    if one_format(results):
        cells = [
            [
                r.task,
                r.protocol,
                r.form,
                r.same,
                ", ".join(f"{m} {change}" for m, change in r.formats),
            ]
            for r in one_format(results)
        ]
        head = ["task", "protocol", "format", "same format", "effect of the format"]
        lines += ["", "## Same prompt format", "", *md_table(head, cells)]
    for title, rows in (("By epoch", epochs), ("Loops in training", loops)):
        if rows:
            lines += ["", f"## {title}", "", *md_table(rows[0], list(rows[1:]))]
    for name, tasks in isolations(results).items():
        lines += ["", md(f"Programs of {', '.join(tasks)} were confined by {name}.")]
    lines += ["", "Plots, answers side by side and the method are in [report.html](report.html)."]
    return "\n".join(lines) + "\n"


def results_tables(results: dict[str, Any]) -> list[str]:
    """Lines of Markdown: the main table, and the changes from model to model with their tests."""
    lines = []
    rows = measures(results)
    for caveat in caveats(results):
        lines += [md(caveat), ""]
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
    if results.get("deltas") or in_bits(results):
        changes = [
            [
                row["task"],
                f"{row['from']} \u2192 {row['to']}",
                points(row["delta"]) + " *" * significant(row),
                points_range(row.get("ci")),
                p_value(row.get("p")),
                p_value(row.get("p_holm")),
                pairs_counted(row),
                row["test"],
                still_needed(row),
            ]
            for row in results["deltas"]
        ]
        changes += [
            [
                row["task"],
                f"{row['from']} \u2192 {row['to']}",
                bits_change(row["delta"]) + " bits per byte" + " *" * significant(row),
                bits_range(row["ci"]),
                p_value(row.get("p")),
                p_value(row["p_holm"]),
                pairs_counted(row),
                row["test"],
                "",
            ]
            for row in in_bits(results)
        ]
        head = ["measure", "step", "change, points", "95% interval", "p", "p, Holm-adjusted"]
        head += ["n", "test", "power"]
        lines += ["", "## Changes", "", *md_table(head, changes)]
        compared = [*results["deltas"], *in_bits(results)]
        found = INTERVALS.format(counted=counted(compared), rows=len(compared))
        lines += ["", md(found)]
    if rows:
        lines += ["", md(CAPTION)]
    return lines


def _rate(entry: dict[str, Any], key: str, href: str | None) -> Cell:
    if key != "rate":
        return Cell(percent(entry[key]), "", "", href, entry[key])
    ci = percent_range(entry.get("ci"))
    note = f"n = {entry['n']:,}"
    if distinct := entry.get("distinct_loops"):
        note += f", {distinct:,} distinct loop{'s' * (distinct != 1)}"
    return Cell(percent(entry[key]), ci, note, href, entry[key])


def _score(entry: dict[str, Any], href: str | None) -> Cell:
    shots = "" if entry["shots"] is None else f"{entry['shots']}-shot"
    told, cut = entry.get("description", ""), entry.get("cut_prompts", 0)
    fewer, out = entry.get("fewer_shots", 0), entry.get("left_out", 0)
    parts = (
        f"{shots} (fewer for {fewer:,})" if fewer else shots,
        *("chat" if entry.get("chat_template") else "", told and f"description {told}"),
        f"{cut:,} prompt{'s' * (cut != 1)} cut" if cut else "",
        f"{out:,} question{'s' * (out != 1)} left out, too long" if out else "",
    )
    others = entry.get("metrics", {})
    more = (
        ", ".join(f"{name} {percent(score)}" for name, score in others.items()),
        f"{entry['cut_answers']:,} cut at the cap" if entry.get("cut_answers") else "",
        f"{entry['unanswered']:,} ended while thinking" if entry.get("unanswered") else "",
    )
    note = ", ".join(filter(None, (*parts, *more)))
    return Cell(percent(entry["score"]), percent_range(entry.get("ci")), note, href, entry["score"])


def _safety(results: dict[str, Any], run_dir: Path | None) -> list[Measure]:
    """Secure answers and over-refusal, with the judge's agreement with people in the caption."""
    models, found = results["models"], results.get("safety", {})
    rows = []
    for key, name, caption in (
        ("secure", "secure", "harmful prompts answered safely or refused"),
        ("over_refusal", "over-refusal", "harmless prompts refused; lower is better"),
        ("empty", "empty answers", "neither secure nor a refusal"),
    ):
        if key == "empty" and not any((s.get(key) or {}).get("rate") for s in found.values()):
            continue
        cells = tuple(
            _rate(found[model][key], "rate", sample_href(run_dir, model=model, name="safety.jsonl"))
            if found.get(model, {}).get(key)
            else None
            for model in models
        )
        if any(cells):
            judges = dict.fromkeys(judge_note(entry) for entry in found.values())
            rows.append(Measure(name, f"{caption}; {' / '.join(judges)}", cells))
    return rows


def judge_note(entry: dict[str, Any]) -> str:
    """Who labelled the answers, and how far that agrees with people."""
    known = entry["agreement"]
    if known is None:
        return f"judge {entry['judge']}"
    return (
        f"judged by rules, which agree with people on {percent(known['agree'])} of "
        f"{known['n']:,} answers (kappa {known['kappa']:.2f}) and find "
        f"{percent(known['unsafe_found'])} of the unsafe"
    )


def _bits(entry: dict[str, Any], href: str | None) -> Cell:
    value, ends = entry[BITS_PER_BYTE], entry.get("ci") or ()
    ci = DASH.join(f"{end:.3f}" for end in ends)
    return Cell(f"{value:.4f}", ci, f"n = {entry['n']:,}", href, value)


def _pair(row: dict[str, Any]) -> tuple[str, str]:
    return row["from"], row["to"]


def _change(row: dict[str, Any]) -> str:
    return points(row["delta"]) + "*" * significant(row)


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
