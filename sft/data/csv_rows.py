"""CSV files with a header to records; every cell is text."""

import csv
import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from sft.data.records import MAX_RECORD_BYTES, Record, read_lines
from sft.data.row_errors import RowError, equal_names

SEPARATORS = (",", ";", "\t", "|")
NAMED = re.compile(r"sep=(.)\s*")  # a first line by which Excel names the separator


def read_csv(path: Path, *, tabs: bool = False) -> Iterator[Record | RowError]:
    """Rows of a CSV file.

    Cells are separated by commas or, where the header holds no comma, by what separates its names:
    semicolons, tabs or vertical bars.

    Args:
        tabs: the separator is a tab, whatever the header holds (.tsv).
    """
    failed: list[RowError] = []
    place = [f"{path}:1"]

    def texts() -> Iterator[str]:
        for origin, line in read_lines(path):
            place[0] = origin
            if isinstance(line, RowError):
                failed.append(line if line.ends else line.ending())
                return
            yield line

    csv.field_size_limit(MAX_RECORD_BYTES)
    lines = texts()
    first = next(lines, "")
    named = NAMED.fullmatch(first)
    separator = "\t" if tabs else named.group(1) if named else _separator(first)
    rows = chain([] if named or not first else [first], lines)
    reader = csv.reader(rows, delimiter=separator, strict=True)
    header: list[str] | None = None
    while True:
        try:
            cells = next(reader, None)
        except csv.Error as error:
            yield _malformed(place[0], f"malformed CSV ({error})").ending()
            return
        yield from failed
        if cells is None or failed:
            return
        if header is None:
            header = cells
            if twice := sorted({name for name in header if name and header.count(name) > 1}):
                yield equal_names(place[0], twice, of="header")
                return
        elif len(cells) != len(header):
            if cells:
                what = f"{len(cells)} fields where the header names {len(header)}"
                yield _malformed(place[0], what)
        else:
            yield _row(place[0], header, cells)


def _separator(header: str) -> str:
    """What separates the names of a header: a comma where there is one between two of them."""
    counts = {separator: _count(header, separator) for separator in SEPARATORS}
    return "," if counts[","] > 1 else max(counts, key=lambda separator: counts[separator])


def _count(header: str, separator: str) -> int:
    try:
        return len(next(csv.reader([header], delimiter=separator, strict=True), []))
    except csv.Error:
        return 0


def _row(origin: str, header: list[str], cells: list[str]) -> Record | RowError:
    """A row by the header's names. Columns without a name may be several where they are empty, as
    spreadsheets write them."""
    nameless = [cell for name, cell in zip(header, cells, strict=True) if not name]
    if len(nameless) > 1 and any(nameless):
        return _malformed(origin, "cells in several columns without a name")
    return Record(origin, dict(zip(header, cells, strict=True)), cells=True)


def _malformed(origin: str, what: str) -> RowError:
    return RowError(
        origin,
        rule="malformed CSV",
        detail=what,
        remedy="quote the field that holds a separator, a quote or a line break",
    )
