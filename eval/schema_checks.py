"""Check stored measures, which may come from another run or have been edited, against a schema.

pydantic checks in strict mode: a boolean is no number, and text is no number. Keys that a schema
does not list are ignored.
"""

from functools import cache
from typing import Any

from pydantic import TypeAdapter, ValidationError

from eval.schema import Results
from sft.data.json_values import is_too_deep


def first_mismatch(value: Any, schema: Any) -> str | None:
    """Return the place of the first part of JSON data that does not fit a schema, or None."""
    # pydantic does not visit unlisted keys, whose depth would exceed the recursion limit later.
    if is_too_deep(value):
        return "its depth"
    try:
        _adapter(schema).validate_python(value, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        return _place(first["loc"])
    return None


@cache
def _adapter(schema: Any) -> TypeAdapter[Any]:
    return TypeAdapter(schema)


def _place(location: tuple[int | str, ...]) -> str:
    """Format a location as `benchmarks.gsm8k.ci[0]`."""
    # Below the only key with a union, pydantic adds the name of the member that it tried.
    if "outcome" in location:
        location = location[: location.index("outcome") + 1]
    parts = [f"[{part}]" if isinstance(part, int) else f".{part}" for part in location]
    return "".join(parts).removeprefix(".") or "the record"


def unknown_name(results: Results) -> str | None:
    """Return a place in results.json that names a model, stage or task that it does not hold."""
    models = set(results["models"])
    changes = {(row["task"], row["from"], row["to"]) for row in results.get("deltas", [])}
    deltas = [*results.get("deltas", [])]
    if "language" in results:
        deltas += results["language"]["deltas"]
    for section in results.get("same_format", {}).values():
        deltas += section["deltas"]
        for row in section["deltas"]:
            if (row["task"], row["from"], row["to"]) not in changes:
                return f"the change of {row['task']} in one format"
    for row in deltas:
        if not {row["from"], row["to"]} <= models:
            return f"the change of {row['task']} from {row['from']} to {row['to']}"
    stages = results.get("stages", {})
    for key, measured in (("epochs", results.get("epochs")), ("loops", results.get("loops"))):
        for stage, points in (measured or {}).items():
            if not points or stage not in stages:
                return f"{key}.{stage}"
    return None
