"""CSV files with a header as records; every cell is text."""

import csv
import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from sft.data.records import Record, RowError, equal_names
from sft.data.text_files import MAX_RECORD_BYTES, read_lines

SEPARATORS = (",", ";", "\t", "|")
SEPARATOR_LINE = re.compile(r"sep=(.)\s*")  # Excel may name the separator in a first line


def read_csv(path: Path, *, tabs: bool = False) -> Iterator[Record | RowError]:
    """Yield the rows of a CSV file, separated by tabs (.tsv) or by what separates the header."""
    origin = f"{path}:1"

    def texts() -> Iterator[str]:
        nonlocal origin
        for place, line in read_lines(path):
            origin = place
            if isinstance(line, RowError):
                raise line if line.ends else line.ending()
            yield line

    csv.field_size_limit(MAX_RECORD_BYTES)
    try:
        lines = texts()
        first = next(lines, "")
        named = SEPARATOR_LINE.fullmatch(first)
        separator = "\t" if tabs else named[1] if named else _separator(first)
        rows = chain([] if named or not first else [first], lines)
        reader = csv.reader(rows, delimiter=separator, strict=True)
        header = next(reader, [])
        if error := equal_names(origin, header, of="header"):
            raise error
        for cells in reader:
            if len(cells) == len(header):
                yield _record(origin, header, cells)
            elif cells:
                detail = f"{len(cells)} fields where the header names {len(header)}"
                yield _malformed(origin, detail)
    except RowError as error:
        yield error
    except csv.Error as error:
        yield _malformed(origin, f"malformed CSV ({error})").ending()


def _separator(header: str) -> str:
    """Return the separator that splits the header into most names, but a comma if that splits."""
    counts = {separator: _count_names(header, separator) for separator in SEPARATORS}
    return "," if counts[","] > 1 else max(SEPARATORS, key=lambda separator: counts[separator])


def _count_names(header: str, separator: str) -> int:
    try:
        return len(next(csv.reader([header], delimiter=separator, strict=True), []))
    except csv.Error:
        return 0


def _record(origin: str, header: list[str], cells: list[str]) -> Record | RowError:
    # Spreadsheets write several empty columns without a name.
    nameless = [cell for name, cell in zip(header, cells, strict=True) if not name]
    if len(nameless) > 1 and any(nameless):
        return _malformed(origin, "cells in several columns without a name")
    return Record(origin, dict(zip(header, cells, strict=True)), cells=True)


def _malformed(origin: str, detail: str) -> RowError:
    remedy = "quote the field that holds a separator, a quote or a line break"
    return RowError(origin, rule="malformed CSV", detail=detail, remedy=remedy)
