"""JSON values: depth, lone surrogates, type names, and parts named by FIELD[0] or FIELD.KEY."""

import json
import re
from collections.abc import Mapping
from typing import Any

LONE_SURROGATE = re.compile("[\ud800-\udfff]")
MAX_DEPTH = 100  # levels of lists and objects; real rows have fewer than ten
TYPE_NAMES = {
    type(None): "null",
    bool: "true or false",
    int: "a number",
    float: "a number",
    str: "text",
    list: "a list",
    dict: "an object",
}
STEP = re.compile(r"\[(\d+)\]|\.([^.\[\]]+)")
PART = re.compile(r"(.+?)((?:\[\d+\]|\.[^.\[\]]+)+)")


def find_lone_surrogate(value: Any, *, where: str = "") -> str:
    """Return the place of half a surrogate pair, in a name or a text; "" if there is none."""
    if isinstance(value, str):
        return (where or "the row") if LONE_SURROGATE.search(value) else ""
    if isinstance(value, list):
        parts = [(f"{where}[{i}]", part) for i, part in enumerate(value)]
    elif isinstance(value, dict):
        for name in filter(LONE_SURROGATE.search, value):
            return f"the name {f'{where}.{name}' if where else name!r}"
        parts = [(f"{where}.{name}" if where else name, part) for name, part in value.items()]
    else:
        return ""
    places = (find_lone_surrogate(part, where=place) for place, part in parts)
    return next(filter(None, places), "")


def is_too_deep(value: Any) -> bool:
    """Return whether lists and objects are nested more than `MAX_DEPTH` levels deep."""
    level: list[Any] = [[value]]
    for _ in range(MAX_DEPTH + 1):
        inner = [one.values() if isinstance(one, dict) else one for one in level]
        level = [one for values in inner for one in values if isinstance(one, dict | list)]
        if not level:
            return False
    return True


def type_name(value: Any) -> str:
    """Return a JSON value's type in words."""
    return TYPE_NAMES.get(type(value), type(value).__name__)


def number_of(value: Any) -> float | None:
    """Return a number, given as such or as text; None for anything else, such as true."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        return float(value)
    except ValueError:
        return None


def decode_json(value: Any) -> Any:
    """Return the list or object that a text holds as JSON; any other value unchanged."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        try:
            decoded = json.loads(value)
        except (ValueError, RecursionError):
            return value
        return value if is_too_deep(decoded) else decoded
    return value


def field_of(fields: Mapping[str, Any], column: str) -> str:
    """Return the field that a column is or is a part of; a field of exactly that name wins."""
    match = None if column in fields else PART.fullmatch(column)
    return match[1] if match else column


def column_value(fields: Mapping[str, Any], column: str) -> Any:
    """Return a field, or a part of the list or object (or their JSON text) in it, or None."""
    name = field_of(fields, column)
    value = fields.get(name)
    for place, key in STEP.findall(column.removeprefix(name)):
        value = decode_json(value)
        if place:
            exists = isinstance(value, list) and int(place) < len(value)
            value = value[int(place)] if exists else None
        else:
            value = value.get(key) if isinstance(value, dict) else None
    return value


def text_column(value: Any, column: str) -> str | None:
    """Return the column of a text within `value`, which `column` names; None if it has no text.

    In an object the keys `text`, `value` and `answer` are tried first.
    """
    if isinstance(value, str):
        return column
    parts: list[tuple[str, Any]] = []
    if isinstance(value, list):
        parts = [(f"{column}[{i}]", part) for i, part in enumerate(value)]
    elif isinstance(value, dict):
        first = [key for key in ("text", "value", "answer") if key in value]
        parts = [(f"{column}.{key}", value[key]) for key in dict.fromkeys([*first, *value])]
    return next(filter(None, (text_column(part, name) for name, part in parts)), None)


def drop_nulls(value: Any) -> Any:
    """Remove the fields that are null from objects, at any depth."""
    if isinstance(value, dict):
        return {key: drop_nulls(inner) for key, inner in value.items() if inner is not None}
    return [drop_nulls(inner) for inner in value] if isinstance(value, list) else value
