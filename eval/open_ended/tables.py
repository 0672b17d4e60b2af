"""Tables of open-ended judging for a terminal: grades by category, comparisons, the cost."""

from typing import Literal

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from eval.metrics.number_format import DASH, p_value, percent, percent_range
from eval.open_ended.judgments import Grades, PairResult, Usage


def open_ended_table(
    grades: dict[str, Grades], pairs: dict[str, PairResult], used: Usage, *, judge: str
) -> Group:
    """Return a row for each category, as in the paper's table, and a row for each comparison."""
    parts: list[RenderableType] = [_grades(grades)]
    if pairs:
        parts.append(_pairs(pairs))
    cost = "" if used["cost"] is None else f", cost {used['cost']:.4f}"
    parts.append(
        Text(
            f"{used['requests']:,} requests to {judge}: "
            f"{used['prompt_tokens']:,} + {used['completion_tokens']:,} tokens{cost}",
            "dim",
        )
    )
    return Group(*parts)


def _grades(grades: dict[str, Grades]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    table.add_column("grade, 1 to 10")
    for model in grades:
        table.add_column(Text(model), justify="right")
    names = list(dict.fromkeys(name for entry in grades.values() for name in entry["categories"]))
    for name in names:
        table.add_row(Text(name), *(_two(e["categories"].get(name)) for e in grades.values()))
    halves: tuple[Literal["reasoning", "language"], ...] = ("reasoning", "language")
    for half in halves:
        if all(half in entry for entry in grades.values()):
            table.add_row(f"{half} (mean)", *(_two(entry[half]) for entry in grades.values()))
    for turn in range(max(len(entry["turns"]) for entry in grades.values())):
        cells = (
            _two(e["turns"][turn] if turn < len(e["turns"]) else None) for e in grades.values()
        )
        table.add_row(f"turn {turn + 1}", *cells)
    table.add_row(Text("all", "bold"), *(_score(entry) for entry in grades.values()))
    table.caption_justify = "left"
    unread = sum(entry["unread"] for entry in grades.values())
    table.caption = "With 95% intervals over questions." + (
        f" {unread} replies without a verdict are left out." if unread else ""
    )
    return table


def _pairs(pairs: dict[str, PairResult]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    for head in ("second against first", "wins", "ties", "losses", "win rate", "", "same place"):
        table.add_column(head, justify="left" if head.startswith("second") else "right")
    for name, entry in pairs.items():
        rate = Text(f"{percent(entry['win_rate'])}\n")
        rate.append(percent_range(entry["ci"]), "dim")
        counts = map(str, (entry["wins"], entry["ties"], entry["losses"]))
        place = percent(entry["same_place"])
        table.add_row(Text(name), *counts, rate, p_value(entry["p"]), place)
    table.caption_justify = "left"
    unread = sum(entry["unread"] for entry in pairs.values())
    table.caption = (
        "Each pair judged in both orders; a win needs both. A tie is half a win. Same place: the "
        "judge named the place, not the model."
    ) + (f" {unread} pairs without a verdict in both orders are left out." if unread else "")
    return table


def _score(entry: Grades) -> Text:
    if entry["ci"] is None:
        return Text(_two(entry["score"]), "bold")
    low, high = entry["ci"]
    return Text.assemble((_two(entry["score"]), "bold"), (f"\n{low:.2f}{DASH}{high:.2f}", "dim"))


def _two(grade: float | None) -> str:
    return DASH if grade is None else f"{grade:.2f}"
