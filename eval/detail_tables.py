"""Rows of the report's smaller tables: repetition by group and definition, safety by category."""

from collections.abc import Mapping
from typing import Any

from eval.tables import Cell, Measure
from eval.wording import percent, percent_range


def repetition_details(results: Mapping[str, Any]) -> list[Measure]:
    """`repetition_detail` as rows, one cell a model: groups, other definitions, near-loops."""
    found, models = results.get("repetition_detail", {}), results["models"]
    rows: dict[tuple[str, str], dict[str, Cell]] = {}
    for model, entry in found.items():
        for part in entry["groups"]:
            name = " / ".join(filter(None, (part["language"], part["category"])))
            rows.setdefault((name, f"n = {part['n']:,}"), {})[model] = _rate(part)
        for part in entry["sensitivity"][1:]:
            rows.setdefault((part["definition"], "in place of the definition"), {})[model] = _rate(
                part
            )
        if "double_cap" in entry:
            again = entry["double_cap"]
            caption = f"{again['cap']:,} tokens, loops followed to {2 * again['cap']:,}"
            rows.setdefault(("twice the cap", caption), {})[model] = _rate(again)
        if "sampled" in entry:
            again = entry["sampled"]
            caption = f"at temperature {again['temperature']:g}, the same definition"
            rows.setdefault(("sampled", caption), {})[model] = _rate(again)
        caption = "cut at the cap, the same words again and again but for a number; not counted"
        rows.setdefault(("near-loops", caption), {})[model] = _rate(entry["near_loops"])
    return _measures(rows, models)


def safety_details(results: Mapping[str, Any]) -> list[Measure]:
    """`safety` by category and by what is due: safe, unsafe and refused, one cell a model."""
    rows: dict[tuple[str, str], dict[str, Cell]] = {}
    for model, entry in results.get("safety", {}).items():
        for part in entry["categories"]:
            due = "harmful" if part["harmful"] else "harmless"
            counts = f"{part['safe']} / {part['unsafe']} / {part['refusal']}"
            good = part["n"] - part["unsafe" if part["harmful"] else "refusal"]
            cell = Cell(counts, "", "", None, good / part["n"])
            rows.setdefault((part["category"], f"{due}, n = {part['n']:,}"), {})[model] = cell
    return _measures(rows, results["models"])


def _rate(entry: Mapping[str, Any]) -> Cell:
    return Cell(percent(entry["rate"]), percent_range(entry["ci"]), "", None, entry["rate"])


def _measures(
    rows: Mapping[tuple[str, str], Mapping[str, Cell]], models: list[str]
) -> list[Measure]:
    return [
        Measure(name, caption, tuple(cells.get(model) for model in models))
        for (name, caption), cells in rows.items()
    ]
