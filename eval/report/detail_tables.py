"""Rows of the report's smaller tables: repetition by group and definition, safety by category."""

from pathlib import Path

from eval.metrics.number_format import percent, percent_range
from eval.report.sample_files import sample_href
from eval.report.tables import Cell, Measure
from eval.schema import Rate, Results


class _Rows:
    """Cells by name and caption of a row, then by model."""

    def __init__(self) -> None:
        self._cells: dict[tuple[str, str], dict[str, Cell]] = {}

    def add(self, name: str, caption: str, model: str, cell: Cell) -> None:
        self._cells.setdefault((name, caption), {})[model] = cell

    def measures(self, models: list[str]) -> list[Measure]:
        return [
            Measure(name, caption, tuple(cells.get(model) for model in models))
            for (name, caption), cells in self._cells.items()
        ]


def repetition_details(results: Results, *, run_dir: Path | None = None) -> list[Measure]:
    """Return `repetition_detail` as rows: groups, other definitions, near-loops.

    With `run_dir`, cells link to the stored answers that exist, here and below.
    """
    rows = _Rows()
    for model, entry in results.get("repetition_detail", {}).items():
        greedy, doubled, sampled = (
            sample_href(run_dir, model=model, name=f"generations{suffix}.jsonl")
            for suffix in ("", "-double-cap", "-sampled")
        )
        for group in entry["groups"]:
            name = " / ".join(filter(None, (group["language"], group["category"])))
            rows.add(name, f"n = {group['n']:,}", model, _rate(group, greedy))
        for other in entry["sensitivity"][1:]:  # the first is the main table's definition
            rows.add(other["definition"], "alternative definition", model, _rate(other, greedy))
        if "double_cap" in entry:
            cap = entry["double_cap"]["cap"]
            caption = f"{cap:,} tokens, loops verified up to {2 * cap:,}"
            rows.add("twice the cap", caption, model, _rate(entry["double_cap"], doubled))
        if "sampled" in entry:
            heat = entry["sampled"]["temperature"]
            caption = f"at temperature {heat:g}, the same definition"
            rows.add("sampled", caption, model, _rate(entry["sampled"], sampled))
        caption = "cut at the cap; the same words repeat with only a number changing; not counted"
        rows.add("near-loops", caption, model, _rate(entry["near_loops"], greedy))
    return rows.measures(results["models"])


def safety_details(results: Results, *, run_dir: Path | None = None) -> list[Measure]:
    """Return `safety` by category: safe, unsafe, refused and empty answers."""
    rows = _Rows()
    for model, entry in results.get("safety", {}).items():
        href = sample_href(run_dir, model=model, name="safety.jsonl")
        for part in entry["categories"]:
            kind = "harmful" if part["harmful"] else "harmless"
            empty, wrong = part.get("empty", 0), part["unsafe" if part["harmful"] else "refusal"]
            counts = f"{part['safe']} / {part['unsafe']} / {part['refusal']} / {empty}"
            cell = Cell(counts, "", "", href, (part["n"] - wrong - empty) / part["n"])
            rows.add(part["category"], f"{kind}, n = {part['n']:,}", model, cell)
    return rows.measures(results["models"])


def _rate(entry: Rate, href: str | None) -> Cell:
    return Cell(percent(entry["rate"]), percent_range(entry["ci"]), "", href, entry["rate"])
