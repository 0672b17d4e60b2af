"""JSON files as records, in each layout that exporters write.

    {"prompt": ...}             an object a line (JSON Lines)
    {"prompt": ...}
    [{"prompt": ...}, ...]      one array of objects, on one line or many
    {"data": [{...}, ...]}      one object whose only field is that array
    {                           objects over several lines, one or many
      "prompt": ...
    }

The content decides which it is, not the suffix. A layout of columns instead of rows is refused.
"""

import json
import re
from collections.abc import Iterator
from itertools import chain, count
from pathlib import Path
from typing import Any

from sft.data.json_values import find_lone_surrogate, is_too_deep, type_name
from sft.data.messages import is_messages
from sft.data.records import Record, RowError, invalid_text
from sft.data.text_files import (
    MAX_RECORD_BYTES,
    READ_ERRORS,
    TooLarge,
    open_bytes,
    read_lines,
    read_text,
)
from sft.errors import UserError

WHITE = " \t\r\n"  # the white space of JSON; `str.strip` removes more
# Names under which a file that is one object holds its rows.
WRAPPERS = (
    *("data", "rows", "records", "examples", "samples", "items"),
    *("train", "dataset", "results"),
)
# A first line of pretty-printed JSON, before any row.
OPENING = re.compile(rf"\{{\s*(\"({'|'.join(WRAPPERS)})\"\s*:\s*\[?\s*\{{?)?")
# The escape with which a surrogate begins; texts without it need no search for lone ones.
SURROGATE_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")


def read_json(path: Path) -> Iterator[Record | RowError]:
    """Yield the records of a JSON file; raise a `UserError` if it is one object of columns."""
    try:
        yield from _read_layout(path)
    except RowError as error:
        yield error


def _read_layout(path: Path) -> Iterator[Record | RowError]:
    """Detect the layout by the first lines and yield the records; raise where the file ends."""
    lines: Iterator[tuple[str, str | RowError]] = (
        (o, t) for o, t in read_lines(path) if isinstance(t, RowError) or t.strip(WHITE)
    )
    first = next(lines, None)
    if first is None:
        return
    origin, line = first
    if isinstance(line, str):
        second = next(lines, None)
        value = _decode(origin, line)
        broken = isinstance(value, RowError)
        # Whether an incomplete first line starts an array over several lines is decided by its last
        # character: a row that was cut off can end in any character.
        is_open = broken and line.rstrip(WHITE)[-1] in "[{,}"
        if line.lstrip(WHITE)[0] == "[" and (second is None or is_open):
            yield from _read_array(_Text(path))
            return
        if isinstance(value, dict) and second is None:
            yield from _read_single_object(path, origin, value, line)
            return
        if broken and line.lstrip(WHITE)[0] == "{" and _spans_lines(path, line):
            yield from _read_objects(path)
            return
        lines = chain([second] if second else [], lines)
    for origin, text in chain([first], lines):
        yield text if isinstance(text, RowError) else _record(origin, _decode(origin, text), text)


def _unique_fields(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the field {twice[:40]!r} occurs twice in an object")
    return fields


DECODER = json.JSONDecoder(object_pairs_hook=_unique_fields)


def _decode(origin: str, line: str) -> Any:
    """Decode a line; return a RowError if it is not valid JSON."""
    line = line.rstrip(WHITE)  # an error after a line break would be reported on the next line
    try:
        return DECODER.decode(line)
    except RecursionError:
        return _too_deep(origin)
    except ValueError as error:
        return _malformed(origin, error, line=True)


def _record(origin: str, value: Any, text: str) -> Record | RowError:
    """Return the record of a decoded value, which the file holds as `text`."""
    if isinstance(value, RowError):
        return value
    if is_too_deep(value):
        return _too_deep(origin)
    if SURROGATE_ESCAPE.search(text) and (place := find_lone_surrogate(value)):
        return invalid_text(origin, where=place, what="half a surrogate pair")
    if not isinstance(value, dict):
        return RowError(
            origin,
            rule="not an object",
            detail=f"the row is {type_name(value)}, not an object with named fields",
            remedy='write {"messages": [...]} or another known format',
        )
    return Record(origin, value)


def _spans_lines(path: Path, line: str) -> bool:
    """Return whether the object that starts in the first line ends in a later one.

    Pretty-printed objects do; a line that was cut off does not.
    """
    if OPENING.fullmatch(line.strip(WHITE)):
        return True
    try:
        with open_bytes(path) as file:
            start = file.read(MAX_RECORD_BYTES).decode("utf-8-sig", "ignore").lstrip(WHITE)
        _, end = DECODER.raw_decode(start)
    except (*READ_ERRORS, ValueError, RecursionError, TooLarge):
        return False
    return end > len(line.strip(WHITE))


class _Text:
    """A JSON file that is decoded value by value; errors end it."""

    def __init__(self, path: Path) -> None:
        self.path, self.text, self.at = path, read_text(path), 0
        self._line, self._counted = 1, 0

    def next(self) -> str:
        """Return the next character that is no white space; "" at the end."""
        while self.at < len(self.text) and self.text[self.at] in WHITE:
            self.at += 1
        self._line += self.text.count("\n", self._counted, self.at)
        self._counted = self.at
        return self.text[self.at : self.at + 1]

    def value(self) -> tuple[str, Any, str]:
        """Return the origin, the value and the text of the next value."""
        self.next()
        origin, start = f"{self.path}:{self._line}", self.at
        try:
            value, self.at = DECODER.raw_decode(self.text, start)
        except RecursionError:
            raise _too_deep(origin).ending() from None
        except ValueError as error:
            raise _malformed(origin, error).ending() from None
        return origin, value, self.text[start : self.at]

    def error(self, what: str) -> RowError:
        """Return the error for a file that does not continue as JSON at this place."""
        return _malformed(f"{self.path}:{self._line}", ValueError(what)).ending()


def _read_array(reader: _Text, *, at: int | None = None) -> Iterator[Record | RowError]:
    """Decode the rows of an array, the file or, after `at`, a value of the object in the file."""
    reader.at = reader.text.index("[", at or 0) + 1
    for number in count():
        character = reader.next()
        if character == "]":
            rest = reader.text[reader.at + 1 :].strip(WHITE)
            if rest and at is None:
                raise reader.error(f"{rest[:20]!r} after the array")
            return
        if number:
            if character != ",":
                raise reader.error("',' or ']' expected after a row")
            reader.at += 1
        yield _record(*reader.value())


def _read_objects(path: Path) -> Iterator[Record | RowError]:
    """Decode objects over several lines, separated by white space alone."""
    reader = _Text(path)
    origin, value, row = reader.value()
    if isinstance(value, dict) and not reader.next():
        yield from _read_single_object(path, origin, value, row)
        return
    yield _record(origin, value, row)
    while character := reader.next():
        if character == ",":
            raise reader.error("a comma between two objects, but no brackets around all of them")
        yield _record(*reader.value())


def _read_single_object(
    path: Path, origin: str, value: dict[str, Any], text: str
) -> Iterator[Record | RowError]:
    """Yield the records of a file that is one object: itself, or the rows of its only array."""
    if len(value) == 1 and any(is_rows(value.get(name)) for name in WRAPPERS):
        reader = _Text(path)
        yield from _read_array(reader, at=reader.text.index(":"))
    elif layout := _column_layout(value):
        raise UserError(
            f"{origin}: the file is one object of {layout} ({', '.join(list(value)[:5])}), not a "
            "list of rows; save one object a row (pandas: to_json(FILE, orient='records', "
            "lines=True))"
        )
    else:
        yield _record(origin, value, text)


def is_rows(value: Any) -> bool:
    """Return whether this is a list of rows: of objects that are not the messages of a chat."""
    if not isinstance(value, list) or is_messages(value):
        return False
    return all(isinstance(row, dict) for row in value)


def _column_layout(value: dict[str, Any]) -> str:
    """Return what an object of columns or named rows is, in words; "" for a row."""
    columns = list(value.values())
    if len(columns) < 2 or any(is_messages(column) for column in columns):
        return ""
    if all(isinstance(column, list) and column for column in columns):
        plain = not any(isinstance(cell, dict | list) for column in columns for cell in column)
        return "columns" if plain and len({len(column) for column in columns}) == 1 else ""
    if all(isinstance(column, dict) and column for column in columns):
        # pandas' `to_json` numbers the cells of each column.
        numbered = all(key.isdecimal() for column in columns for key in column)
        return "columns" if numbered else "rows by name"
    return ""


def _too_deep(origin: str) -> RowError:
    detail = "JSON nested too deeply"
    return RowError(origin, rule="nested too deeply", detail=detail, remedy="flatten it")


def _malformed(origin: str, error: ValueError, *, line: bool = False) -> RowError:
    """Return the error for invalid JSON; `line` means that the text is one row of JSON Lines."""
    what, remedy = str(error)[:80], "correct the row"
    if isinstance(error, json.JSONDecodeError):
        what = f"{error.msg.removesuffix(' at')} at column {error.colno}"
        if line and _is_cut_off(error):
            what = f"the row ends in the middle, after column {len(error.doc)}"
            remedy = "complete the row, or fetch the file again"
        elif line and error.msg == "Extra data":
            remedy = "write one object a line, nothing after it"
            rest = error.doc[error.pos :].strip()
            if rest == ",":
                what = f"a comma after the object, as in an array, at column {error.colno}"
            elif rest.startswith("{"):
                what = f"another object after the first, at column {error.colno}"
    return RowError(
        origin,
        rule="malformed JSON",
        detail=f"malformed JSON ({what})",
        remedy=f"a file holds one JSON object a line, or (.json) one array of them; {remedy}",
    )


def _is_cut_off(error: json.JSONDecodeError) -> bool:
    """Return whether more characters at the end could have made the line valid JSON."""
    rest = error.doc[error.pos :]
    return error.msg.startswith("Unterminated string") or any(
        word.startswith(rest) for word in ("true", "false", "null", "-")
    )
