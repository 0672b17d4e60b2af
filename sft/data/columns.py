"""What a source's `columns` names: a field of the file, or a part of one, FIELD[0] or FIELD.KEY."""

import re
from collections.abc import Mapping
from typing import Any

from sft.data.messages import decoded

STEP = re.compile(r"\[(\d+)\]|\.([^.\[\]]+)")
PART = re.compile(r"(.+?)((?:\[\d+\]|\.[^.\[\]]+)+)")


def field_of(fields: Mapping[str, Any], column: str) -> str:
    """The field that a column is, or is a part of; a field of that very name comes first."""
    found = None if column in fields else PART.fullmatch(column)
    return found[1] if found else column


def column_of(fields: Mapping[str, Any], column: str) -> Any:
    """A field, or a part of a list or an object in one (or of its JSON text, as in CSV); None where
    there is none."""
    name = field_of(fields, column)
    value = fields.get(name)
    for place, key in STEP.findall(column.removeprefix(name)):
        value = decoded(value)
        if place:
            within = isinstance(value, list) and int(place) < len(value)
            value = value[int(place)] if within else None
        else:
            value = value.get(key) if isinstance(value, dict) else None
    return value


def text_in(value: Any, column: str) -> str | None:
    """The column of a text in a list or an object that `column` names: under `text`, `value` or
    `answer`, else the first; None where there is none."""
    if isinstance(value, str):
        return column
    parts: list[tuple[str, Any]] = []
    if isinstance(value, list):
        parts = [(f"{column}[{i}]", part) for i, part in enumerate(value)]
    elif isinstance(value, dict):
        first = [key for key in ("text", "value", "answer") if key in value]
        parts = [(f"{column}.{key}", value[key]) for key in dict.fromkeys([*first, *value])]
    return next(filter(None, (text_in(part, name) for name, part in parts)), None)
