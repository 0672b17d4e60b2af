"""A table of what became of each source's rows: kept, left out, changed, and fields not read."""

from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

from rich import box
from rich.table import Table


def source_table(sources: Sequence[Mapping[str, Any]], *, title: str) -> Table:
    """A line for each source.

    Args:
        sources: `SourceCount` as plain data, as data.json keeps it.
    """
    table = Table(title=title, box=box.SIMPLE, title_justify="left")
    table.add_column("source", overflow="fold")
    for heading in ("read", "kept"):
        table.add_column(heading, justify="right")
    for heading in ("left out", "changed", "fields that nothing reads"):
        table.add_column(heading, overflow="fold")
    names = [PurePath(source["source"]).name for source in sources]
    unique = len(set(names)) == len(names)
    for source, name in zip(sources, names, strict=True):
        table.add_row(
            name if unique else source["source"],
            f"{source['rows_in']:,}",
            f"{source['kept']:,}",
            *(_listed(source.get(part, {})) for part in ("dropped", "mended", "unread")),
        )
    return table


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in counts.items())
