"""Rows of the report's smaller tables: repetition by group and definition, safety by category."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from eval.metrics.formatting import percent, percent_range
from eval.report.sample_files import sample_href
from eval.report.tables import Cell, Measure


def repetition_details(results: Mapping[str, Any], *, run_dir: Path | None = None) -> list[Measure]:
    """`repetition_detail` as rows, one cell a model: groups, other definitions, near-loops.

    With `run_dir`, cells link to the stored answers that exist, here and below.
    """
    found, models = results.get("repetition_detail", {}), results["models"]
    rows: dict[tuple[str, str], dict[str, Cell]] = {}
    for model, entry in found.items():
        greedy, doubled, drawn = (
            sample_href(run_dir, model=model, name=f"generations{suffix}.jsonl")
            for suffix in ("", "-double-cap", "-sampled")
        )
        for part in entry["groups"]:
            name = " / ".join(filter(None, (part["language"], part["category"])))
            rows.setdefault((name, f"n = {part['n']:,}"), {})[model] = _rate(part, greedy)
        for part in entry["sensitivity"][1:]:
            rows.setdefault((part["definition"], "alternative definition"), {})[model] = _rate(
                part, greedy
            )
        if "double_cap" in entry:
            again = entry["double_cap"]
            caption = f"{again['cap']:,} tokens, loops verified up to {2 * again['cap']:,}"
            rows.setdefault(("twice the cap", caption), {})[model] = _rate(again, doubled)
        if "sampled" in entry:
            again = entry["sampled"]
            caption = f"at temperature {again['temperature']:g}, the same definition"
            rows.setdefault(("sampled", caption), {})[model] = _rate(again, drawn)
        caption = "cut at the cap; the same words repeat with only a number changing; not counted"
        rows.setdefault(("near-loops", caption), {})[model] = _rate(entry["near_loops"], greedy)
    return _measures(rows, models)


def safety_details(results: Mapping[str, Any], *, run_dir: Path | None = None) -> list[Measure]:
    """`safety` by category and by what is due: safe, unsafe, refused and empty answers, one cell a
    model."""
    rows: dict[tuple[str, str], dict[str, Cell]] = {}
    for model, entry in results.get("safety", {}).items():
        href = sample_href(run_dir, model=model, name="safety.jsonl")
        for part in entry["categories"]:
            due = "harmful" if part["harmful"] else "harmless"
            empty = part.get("empty", 0)
            counts = f"{part['safe']} / {part['unsafe']} / {part['refusal']} / {empty}"
            good = part["n"] - part["unsafe" if part["harmful"] else "refusal"] - empty
            cell = Cell(counts, "", "", href, good / part["n"])
            rows.setdefault((part["category"], f"{due}, n = {part['n']:,}"), {})[model] = cell
    return _measures(rows, results["models"])


def _rate(entry: Mapping[str, Any], href: str | None) -> Cell:
    return Cell(percent(entry["rate"]), percent_range(entry["ci"]), "", href, entry["rate"])


def _measures(
    rows: Mapping[tuple[str, str], Mapping[str, Cell]], models: list[str]
) -> list[Measure]:
    return [
        Measure(name, caption, tuple(cells.get(model) for model in models))
        for (name, caption), cells in rows.items()
    ]
