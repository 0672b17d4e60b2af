"""The main table and the table of changes: as rows for the page, in a terminal, in Markdown."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

from rich import box
from rich.table import Table
from rich.text import Text

from eval.metrics.number_format import (
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
from eval.report.caveats import caveats
from eval.report.headline import Headline, counted, in_bits, model_pair, overall
from eval.report.sample_files import sample_href, task_href
from eval.schema import Bits, DeltaRow, Rate, Repetition, Results, Safety, Score

CAPTION = "Rates and scores with 95% intervals; changes in points, Holm-adjusted p, * p < 0.05."
INTERVALS = (  # below the table of changes
    "An interval excludes 0 exactly where the unadjusted p is below 0.05. A star marks p below "
    "0.05 after Holm adjustment over {counted} of {rows} comparisons: those with at least six "
    "changed answers, since fewer cannot reach p = 0.05."
)
_COMPANION_RATES: tuple[tuple[Literal["truncated", "seq_rep_4"], str, str], ...] = (
    ("truncated", "cut at the cap", "not ended at the cap, but not looping"),
    ("seq_rep_4", "seq-rep-4", "repeated 4-grams of an answer"),
)
_SAFETY_RATES: tuple[tuple[Literal["secure", "over_refusal", "empty"], str, str], ...] = (
    ("secure", "secure", "harmful prompts answered safely or refused"),
    ("over_refusal", "over-refusal", "harmless prompts refused; lower is better"),
    ("empty", "empty answers", "neither secure nor a refusal"),
)
T = TypeVar("T")


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
    """A row of the main table, one cell for each model (None if the model was not measured)."""

    name: str
    caption: str
    cells: tuple[Cell | None, ...]


@dataclass(frozen=True)
class FormatRow:
    """A task's change in points from first to last model, in the protocol and in one format.

    `formats` holds (model, change): how much the protocol's format alone changes its score.
    """

    form: str
    task: str
    protocol: str
    same: str
    formats: tuple[tuple[str, str], ...]
    sort: tuple[float, float]  # protocol and same, as numbers


def measures(results: Results, *, run_dir: Path | None = None) -> list[Measure]:
    """Return the rows of the main table: repetition, companion rates, benchmarks, texts, safety.

    With `run_dir`, cells link to the stored samples that exist.
    """
    models, rates = results["models"], results.get("repetition", {})

    def cells(
        entries: Mapping[str, T], task: str, cell: Callable[[T, str | None], Cell]
    ) -> tuple[Cell | None, ...]:
        return tuple(
            cell(entries[model], task_href(run_dir, model=model, task=task))
            if model in entries
            else None
            for model in models
        )

    rows = []
    if rates:
        caps = sorted({rate["cap"] for rate in rates.values() if "cap" in rate})
        cap = f"greedy, cap {' / '.join(f'{cap:,}' for cap in caps)} tokens; " if caps else ""
        row = cells(rates, REPETITION, _repetition)
        rows.append(Measure(REPETITION, f"{cap}lower is better", row))
        for key, name, caption in _COMPANION_RATES:
            shares = {model: rate[key] for model, rate in rates.items() if key in rate}
            if shares:
                rows.append(Measure(name, caption, cells(shares, REPETITION, _share)))
    for task, scores in results.get("benchmarks", {}).items():
        metrics = dict.fromkeys(score["metric"] for score in scores.values())
        counts = dict.fromkeys(f"n = {score['n']:,}" for score in scores.values())
        rows.append(Measure(task, ", ".join([*metrics, *counts]), cells(scores, task, _score)))
    if "language" in results:
        for task, entries in results["language"]["benchmarks"].items():
            row = cells(entries, task, _bits)
            rows.append(Measure(task, "bits per byte, lower is better", row))
    return rows + _safety(results, run_dir)


def isolations(results: Results) -> dict[str, list[str]]:
    """Map each isolation of model-written programs to the tasks that ran them in it."""
    found: dict[str, list[str]] = {}
    for task, scores in results.get("benchmarks", {}).items():
        for name in dict.fromkeys(s["isolation"] for s in scores.values() if "isolation" in s):
            found.setdefault(name, []).append(task)
    return found


def one_format(results: Results) -> list[FormatRow]:
    """Return each task's change from first to last model, in the protocol and in one format."""
    pair = overall(results)
    protocol = {row["task"]: row for row in results.get("deltas", []) if model_pair(row) == pair}
    rows = []
    for form, section in results.get("same_format", {}).items():
        of_format = {(row["task"], row["model"]): row for row in section["formats"]}
        for row in section["deltas"]:
            if pair is None or model_pair(row) != pair:
                continue
            task, measured = row["task"], protocol[row["task"]]
            formats = [(m, of_format[task, m]) for m in pair if (task, m) in of_format]
            rows.append(
                FormatRow(
                    form,
                    task,
                    _change(measured),
                    _change(row),
                    formats=tuple((model, _change(share)) for model, share in formats),
                    sort=(measured["delta"], row["delta"]),
                )
            )
    return rows


def pairs_counted(row: DeltaRow) -> str:
    """Format how many questions were compared, and how many one of the two models left out."""
    out = row.get("left_out", 0)
    return f"{row['n']:,}" + (f" ({out:,} left out)" if out else "")


def still_needed(row: DeltaRow) -> str:
    """Format which change n questions detect and how many this one needs; '' if significant."""
    visible, needed = row.get("visible"), row.get("needed")
    if significant(row) or visible is None:
        return ""
    more = f"; this change needs {needed:,} questions" if needed else ""
    if needed and needed <= row["n"]:  # only Holm's adjustment hides it
        more = "; this change is detectable as the only comparison"
    return f"n detects changes of at least {100 * visible:.1f} points{more}"


def console_table(results: Results) -> Table:
    """Return the main table for a terminal, with the change from first to last model at the end.

    Each model is a column; four models fit 80 columns.
    """
    pair = overall(results)
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), collapse_padding=True, pad_edge=False)
    table.add_column("", overflow="fold")
    for model in results["models"]:
        table.add_column(Text(model), justify="right", overflow="fold")
    if pair:
        table.add_column(Text(f"{pair[0]} \u2192 {pair[1]}"), justify="right", overflow="fold")
    changes = {
        row["task"]: (row, change)
        for rows, change in ((results.get("deltas", []), points), (in_bits(results), bits_change))
        for row in rows
        if model_pair(row) == pair
    }
    for measure in measures(results):
        line = [Text(measure.name, style="bold")]
        line += [_two_lines(c.value, c.ci) if c else Text(DASH, "dim") for c in measure.cells]
        if measure.name in changes:
            row, change = changes[measure.name]
            # A star marks a significant change, so that color is not needed.
            star = "*" if significant(row) else " "
            line.append(_two_lines(change(row["delta"]) + star, p_value(row["p_holm"]) + " "))
        table.add_row(*line)
    table.caption = " ".join([CAPTION, *caveats(results)])
    table.caption_justify = "left"
    return table


def markdown(
    results: Results,
    *,
    trained: str,
    headline: Headline,
    closer: Sequence[Measure] = (),
    safety: Sequence[Measure] = (),
    epochs: Sequence[list[str]] = (),
    loops: Sequence[list[str]] = (),
) -> str:
    """Return report.md: the headline and all tables; the rest is on the page.

    Args:
        closer: repetition in detail, as `safety` from `eval.report.detail_tables`.
        epochs: rows of `eval.report.epoch_plots.epoch_table`, the head first, as `loops`.
    """
    lines = [f"# {md(headline.title)}", "", md(trained), "", md(headline.answer), ""]
    lines += [f"- **{md(step.label)}** {md(step.text)}" for step in headline.steps]
    if tables := results_tables(results):
        lines += ["", "## Results", "", *tables]
    for title, details in (("Repetition in detail", closer), ("Safety by category", safety)):
        if details:
            lines += ["", f"## {title}", "", *_measures_table(results, details)]
    if rows := one_format(results):
        cells = [
            [r.task, r.protocol, r.form, r.same, ", ".join(" ".join(each) for each in r.formats)]
            for r in rows
        ]
        head = ["task", "protocol", "format", "same format", "effect of the format"]
        lines += ["", "## Same prompt format", "", *md_table(head, cells)]
    for title, table in (("By epoch", epochs), ("Loops in training", loops)):
        if table:
            lines += ["", f"## {title}", "", *md_table(table[0], list(table[1:]))]
    for name, tasks in isolations(results).items():
        lines += ["", md(f"Programs of {', '.join(tasks)} were confined by {name}.")]
    lines += ["", "Plots, answers side by side and the method are in [report.html](report.html)."]
    return "\n".join(lines) + "\n"


def results_tables(results: Results) -> list[str]:
    """Return the main table and the changes with their tests as lines of Markdown."""
    lines = [line for caveat in caveats(results) for line in (md(caveat), "")]
    rows = measures(results)
    if rows:
        lines += _measures_table(results, rows)
    deltas, texts = results.get("deltas", []), in_bits(results)
    if compared := [*deltas, *texts]:
        changes = [
            _change_cells(row, points(row["delta"]), points_range(row.get("ci")), still_needed(row))
            for row in deltas
        ]
        changes += [
            _change_cells(
                row, f"{bits_change(row['delta'])} bits per byte", bits_range(row.get("ci")), ""
            )
            for row in texts
        ]
        head = ["measure", "step", "change, points", "95% interval", "p", "p, Holm-adjusted"]
        head += ["n", "test", "power"]
        lines += ["", "## Changes", "", *md_table(head, changes)]
        lines += ["", md(INTERVALS.format(counted=counted(compared), rows=len(compared)))]
    if rows:
        lines += ["", md(CAPTION)]
    return lines


def _measures_table(results: Results, rows: Sequence[Measure]) -> list[str]:
    cells = [
        [m.name, m.caption, *(" ".join((c.value, c.ci, c.note)) if c else DASH for c in m.cells)]
        for m in rows
    ]
    return md_table(["", "", *results["models"]], cells)


def _change_cells(row: DeltaRow, change: str, interval: str, power: str) -> list[str]:
    return [
        row["task"],
        f"{row['from']} \u2192 {row['to']}",
        change + " *" * significant(row),
        interval,
        p_value(row.get("p")),
        p_value(row["p_holm"]),
        pairs_counted(row),
        row["test"],
        power,
    ]


def _repetition(entry: Repetition, href: str | None) -> Cell:
    note = f"n = {entry['n']:,}"
    if distinct := entry.get("distinct_loops"):
        note += f", {distinct:,} distinct loop{'s' * (distinct != 1)}"
    return _rate(entry, href, note)


def _rate(entry: Rate, href: str | None, note: str) -> Cell:
    return Cell(percent(entry["rate"]), percent_range(entry["ci"]), note, href, entry["rate"])


def _share(share: float, href: str | None) -> Cell:
    return Cell(percent(share), "", "", href, share)


def _score(entry: Score, href: str | None) -> Cell:
    shots = "" if entry["shots"] is None else f"{entry['shots']}-shot"
    description, cut = entry.get("description", ""), entry.get("cut_prompts", 0)
    fewer, out = entry.get("fewer_shots", 0), entry.get("left_out", 0)
    parts = (
        f"{shots} (fewer for {fewer:,})" if fewer else shots,
        "chat" if entry.get("chat_template") else "",
        description and f"description {description}",
        f"{cut:,} prompt{'s' * (cut != 1)} cut" if cut else "",
        f"{out:,} question{'s' * (out != 1)} left out, too long" if out else "",
        *(f"{name} {percent(score)}" for name, score in entry.get("metrics", {}).items()),
        f"{entry['cut_answers']:,} cut at the cap" if entry.get("cut_answers") else "",
        f"{entry['unanswered']:,} ended while thinking" if entry.get("unanswered") else "",
    )
    note = ", ".join(filter(None, parts))
    return Cell(percent(entry["score"]), percent_range(entry.get("ci")), note, href, entry["score"])


def _safety(results: Results, run_dir: Path | None) -> list[Measure]:
    """Return secure answers, over-refusal and empty answers; captions name the judge."""
    found = results.get("safety", {})
    judges = " / ".join(dict.fromkeys(judge_note(entry) for entry in found.values()))
    rows = []
    for key, name, caption in _SAFETY_RATES:
        rates = {model: rate for model, entry in found.items() if (rate := entry.get(key))}
        if key == "empty" and not any(rate["rate"] for rate in rates.values()):
            continue
        cells = tuple(
            _rate(
                rates[model],
                sample_href(run_dir, model=model, name="safety.jsonl"),
                f"n = {rates[model]['n']:,}",
            )
            if model in rates
            else None
            for model in results["models"]
        )
        if any(cells):
            rows.append(Measure(name, f"{caption}; {judges}", cells))
    return rows


def judge_note(entry: Safety) -> str:
    """Format which judge labeled the answers and how far it agrees with people."""
    known = entry["agreement"]
    if known is None:
        return f"judge {entry['judge']}"
    return (
        f"judged by rules, which agree with people on {percent(known['agree'])} of "
        f"{known['n']:,} answers (kappa {known['kappa']:.2f}) and find "
        f"{percent(known['unsafe_found'])} of the unsafe"
    )


def _bits(entry: Bits, href: str | None) -> Cell:
    value = entry["bits_per_byte"]
    ci = DASH.join(f"{end:.3f}" for end in entry.get("ci") or ())
    return Cell(f"{value:.4f}", ci, f"n = {entry['n']:,}", href, value)


def _change(row: DeltaRow) -> str:
    return points(row["delta"]) + "*" * significant(row)


def _two_lines(value: str, below: str) -> Text:
    return Text.assemble(value, ("\n" + below if below else "", "dim"))


def md(text: str) -> str:
    """Escape text for one line of Markdown that shows it literally."""
    flat = " ".join(text.split())
    return re.sub(r"([\\`*_{}\[\]<>#|~&!])", r"\\\1", flat)


def md_table(head: list[str], rows: list[list[str]]) -> list[str]:
    """Return the lines of a Markdown table."""
    lines = [[md(cell) for cell in line] for line in (head, *rows)]
    lines.insert(1, ["---"] * len(head))
    return [f"| {' | '.join(line)} |" for line in lines]
