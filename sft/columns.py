"""What a source's `columns` names: a field of the file, or a part of one that is a list."""

import re
from collections.abc import Mapping
from typing import Any

from sft.messages import decoded

PLACE = re.compile(r"(.+)\[(\d+)\]")


def field_of(column: str) -> str:
    """The field of a column that may be a part of a list, FIELD[0]."""
    found = PLACE.fullmatch(column)
    return found[1] if found else column


def column_of(fields: Mapping[str, Any], column: str) -> Any:
    """A field, or a part of one that is a list (or JSON text of one, as in CSV); None where there
    is none."""
    if column in fields or not (place := PLACE.fullmatch(column)):
        return fields.get(column)
    value = decoded(fields.get(place[1]))
    return value[int(place[2])] if isinstance(value, list) and int(place[2]) < len(value) else None
