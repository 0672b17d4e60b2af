"""Reads JSON files as records, in each layout that exporters write.

    {"prompt": ...}             an object a line (JSON Lines)
    {"prompt": ...}
    [{"prompt": ...}, ...]      one array of objects, on one line or many
    {"data": [{...}, ...]}      one object whose only field is that array
    {                           objects over several lines, one or many
      "prompt": ...
    }

The content decides which it is, not the suffix. A layout of columns instead of rows is refused by
its name.
"""

import json
import re
import zlib
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from sft.data.messages import is_messages
from sft.data.records import MAX_RECORD_BYTES, Record, TooLarge, open_bytes, read_lines, read_text
from sft.data.row_errors import RowError, half_pair, invalid_text, is_deep, malformed, type_name
from sft.errors import UserError

WHITE = " \t\r\n"
# Names under which a file that is one object holds its rows.
WRAPPERS = (
    *("data", "rows", "records", "examples", "samples", "items"),
    *("train", "dataset", "results"),
)
# A first line of pretty-printed JSON, before any row.
OPENING = re.compile(rf"\{{\s*(\"({'|'.join(WRAPPERS)})\"\s*:\s*\[?\s*\{{?)?")


def read_json(path: Path) -> Iterator[Record | RowError]:
    """Yield the records of a JSON file.

    Raises:
        UserError: the file is one object of columns.
    """
    lines: Iterator[tuple[str, str | RowError]] = (
        (o, t) for o, t in read_lines(path) if isinstance(t, RowError) or t.strip(WHITE)
    )
    first = next(lines, None)
    if first is None:
        return
    origin, line = first
    if isinstance(line, str):
        second = next(lines, None)
        value = _loads(origin, line)
        broken = isinstance(value, RowError)
        if line.lstrip(WHITE)[0] == "[" and (second is None or (broken and _open_array(line))):
            yield from _array(path, read_text(path), at=None)
            return
        if isinstance(value, dict) and second is None:
            yield from _one_object(path, value, origin=origin, text=line)
            return
        if broken and line.lstrip(WHITE)[0] == "{" and _goes_on(path, line):
            yield from _objects(path)
            return
        lines = chain([second] if second else [], lines)
    for origin, text in chain([first], lines):
        yield text if isinstance(text, RowError) else _as_record(origin, _loads(origin, text), text)


def _loads(origin: str, line: str) -> Any:
    """Decode a line; return a RowError where it is not valid JSON."""
    line = line.rstrip(WHITE)  # an error after a line break would be reported on the next line
    try:
        return DECODER.decode(line)
    except RecursionError:
        return _too_deep(origin)
    except ValueError as error:
        return malformed(origin, error, line=True)


def _fields(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the field {twice[:40]!r} stands twice in an object")
    return fields


DECODER = json.JSONDecoder(object_pairs_hook=_fields)


def _too_deep(origin: str) -> RowError:
    return RowError(
        origin, rule="nested too deeply", detail="JSON nested too deeply", remedy="flatten it"
    )


def _as_record(origin: str, value: Any, text: str) -> Record | RowError:
    """Return the record of a value that the file holds as `text`."""
    if isinstance(value, RowError):
        return value
    if is_deep(value):
        return _too_deep(origin)
    if HALF_PAIR.search(text) and (place := half_pair(value)):
        return invalid_text(origin, where=place, what="half a surrogate pair")
    if not isinstance(value, dict):
        return RowError(
            origin,
            rule="not an object",
            detail=f"the row is {type_name(value)}, not an object with named fields",
            remedy='write {"messages": [...]} or another known format',
        )
    return Record(origin, value)


def _open_array(line: str) -> bool:
    """Return whether an incomplete first line starts an array over several lines.

    Its last character decides: a row that was cut off can end in any character.
    """
    return line.rstrip(WHITE)[-1] in "[{,}"


def _goes_on(path: Path, line: str) -> bool:
    """Whether the object that begins in `line`, the file's first, ends in a later line, as it does
    in pretty-printed JSON; a line that was cut off does not."""
    if OPENING.fullmatch(line.strip(WHITE)):
        return True
    try:
        with open_bytes(path) as file:
            start = file.read(MAX_RECORD_BYTES).decode("utf-8-sig", "ignore").lstrip(WHITE)
        _, end = DECODER.raw_decode(start)
    except (EOFError, OSError, zlib.error, ValueError, RecursionError, TooLarge):
        return False
    return end > len(line.strip(WHITE))


HALF_PAIR = re.compile(r"\\u[dD][89a-fA-F]")  # how half a surrogate pair, or a whole one, begins


class _Text:
    """A text of JSON that is decoded value by value, with the line of each."""

    def __init__(self, path: Path, text: str, *, at: int = 0) -> None:
        self.path, self.text, self.at = path, text, at
        self._line, self._counted = 1, 0

    def next(self) -> str:
        """The next character that is no white space; nothing at the end."""
        while self.at < len(self.text) and self.text[self.at] in WHITE:
            self.at += 1
        self._line += self.text.count("\n", self._counted, self.at)
        self._counted = self.at
        return self.text[self.at : self.at + 1]

    @property
    def origin(self) -> str:
        return f"{self.path}:{self._line}"

    def value(self) -> Any:
        """The value that begins here, or why there is none."""
        try:
            value, self.at = DECODER.raw_decode(self.text, self.at)
        except RecursionError:
            return _too_deep(self.origin).ending()
        except ValueError as error:
            return malformed(self.origin, error).ending()
        return value


def _array(path: Path, text: str | RowError, *, at: int | None) -> Iterator[Record | RowError]:
    """The rows of one JSON array. The text is held whole; the rows are decoded one by one.

    Args:
        at: where the array begins inside the object that holds it; None: it is the whole text.
    """
    if isinstance(text, RowError):
        yield text
        return
    reader = _Text(path, text, at=text.index("[", at or 0) + 1)
    comma, rows = False, 0  # whether a separator comes next
    while True:
        character = reader.next()
        origin = reader.origin
        if character == "]" and (comma or not rows):
            rest = text[reader.at + 1 :].strip(WHITE)
            if rest and at is None:
                yield malformed(origin, ValueError(f"{rest[:20]!r} behind the array")).ending()
            return
        if comma:
            if character != ",":
                yield malformed(origin, ValueError("',' or ']' expected behind a row")).ending()
                return
            reader.at, comma = reader.at + 1, False
            continue
        start, value = reader.at, reader.value()
        yield _as_record(origin, value, reader.text[start : reader.at])
        if isinstance(value, RowError):
            return
        comma, rows = True, rows + 1


def _objects(path: Path) -> Iterator[Record | RowError]:
    """Objects over several lines, one behind the other with nothing but white space between."""
    text = read_text(path)
    if isinstance(text, RowError):
        yield text
        return
    reader = _Text(path, text)
    number = 0
    while (character := reader.next()) or not number:
        number += 1
        origin = reader.origin
        if number > 1 and character == ",":
            what = "a comma between two objects, without the brackets of an array around all"
            yield malformed(origin, ValueError(what)).ending()
            return
        start, value = reader.at, reader.value()
        row = reader.text[start : reader.at]
        if number == 1 and isinstance(value, dict) and not reader.next():
            yield from _one_object(path, value, origin=origin, text=row)
            return
        yield _as_record(origin, value, row)
        if isinstance(value, RowError):
            return


def _one_object(
    path: Path, value: dict[str, Any], *, origin: str, text: str
) -> Iterator[Record | RowError]:
    """The records of a file that is one object: itself, or the rows of the array that it holds.

    Raises:
        UserError: it holds columns instead of rows.
    """
    if len(value) == 1 and any(is_rows(value.get(name)) for name in WRAPPERS):
        whole = read_text(path)
        assert isinstance(whole, str), whole  # it was decoded before
        yield from _array(path, whole, at=whole.index(":"))
    elif kind := _columns(value):
        raise UserError(
            f"{origin}: the file is one object of {kind} ({', '.join(list(value)[:5])}), not a "
            "list of rows; save one object a row (pandas: to_json(FILE, orient='records', "
            "lines=True))"
        )
    else:
        yield _as_record(origin, value, text)


def is_rows(value: Any) -> bool:
    """Whether this is a list of rows: of objects that are not the messages of one chat."""
    if not isinstance(value, list) or is_messages(value):
        return False
    return all(isinstance(row, dict) for row in value)


def _columns(value: dict[str, Any]) -> str:
    """What an object of columns is, in words; nothing for a row.

    Columns are lists of texts or numbers of one length, or objects of cells by number (pandas'
    default); other objects of objects that are no messages are rows by name.
    """
    columns = list(value.values())
    if len(columns) < 2 or any(is_messages(column) for column in columns):
        return ""
    if all(isinstance(column, list) and column for column in columns):
        plain = not any(isinstance(cell, dict | list) for column in columns for cell in column)
        return "columns" if plain and len({len(column) for column in columns}) == 1 else ""
    if all(isinstance(column, dict) and column for column in columns):
        numbered = all(key.isdecimal() for column in columns for key in column)
        return "columns" if numbered else "rows by name"
    return ""
