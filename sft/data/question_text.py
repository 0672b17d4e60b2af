"""The text of a question whose parts stand in several fields: instruction, passage, options."""

import re
from collections.abc import Mapping
from string import ascii_uppercase
from typing import Any

from sft.data.fields import Fields, strip_whitespace
from sft.data.messages import text_field
from sft.data.records import wrong_type

LEADING = ("instruction", "definition")
MATERIAL = (
    *("context", "contexts", "passage", "passages", "document", "documents", "article"),
    *("paragraph", "story", "background", "excerpt", "input"),
)
OPTIONS = frozenset({"options", "choices"})
COMPANIONS = frozenset({"question", *LEADING, *MATERIAL, *OPTIONS})
FIRST = ("instruction", "prompt")  # asked in front of a passage, other questions behind it
LETTERED = re.compile(r"(?:(?:options?|choices?|opt?)[_ ]?)([A-Ea-e1-5])|([A-E])")
MARKED = re.compile(r"\s*[(（]?([A-Z])\s*[.):、．）]")


def whole_question(fields: Fields, asked: str, text: str, origin: str) -> str:
    """`text` of field `asked` with the fields that belong to it, a line each: what is to be done,
    the passage, the question, the options. An instruction or a prompt stands before its passage.

    What `text` says already is not repeated.

    Raises:
        RowError: such a field is neither text nor a list of texts.
    """
    before: list[str] = []
    behind: list[str] = []
    names = [*LEADING, *MATERIAL, *(["question"] if asked in FIRST else [])]
    held = fields.of(COMPANIONS) - {asked}
    for name in filter(held.__contains__, names):
        if not fields[name]:
            continue
        part = _text(fields[name], origin, where=name)
        # Alpaca's instruction and input are always joined.
        if (asked, name) != ("instruction", "input") and strip_whitespace(part) in strip_whitespace(
            text
        ):
            continue
        front = name in LEADING or asked not in FIRST
        (before if front else behind).append(part)
    parts = [*before, text, *behind, *_options(fields, origin, text=text)]
    return "\n".join(part for part in parts if part.strip())


def _text(value: Any, origin: str, *, where: str) -> str:
    if isinstance(value, list) and value and all(isinstance(part, str) for part in value):
        return "\n".join(text_field(part, origin, where=where) for part in value)
    return text_field(value, origin, where=where)


def _options(fields: Fields, origin: str, *, text: str) -> list[str]:
    """The options to choose from, each with a letter, unless `text` has them all."""
    options = _lettered(fields)
    for name in fields.of(OPTIONS):
        if fields[name]:
            options = _listed(fields[name], origin, where=name)
    if not options:
        return []
    said = strip_whitespace(text)
    if all(strip_whitespace(option) in said for _, option in options):
        return []
    marks = [match[1] if (match := MARKED.match(o)) else "" for _, o in options]
    if 2 * sum(map(str.__eq__, marks, ascii_uppercase)) > len(options):  # real ones may have slips
        return [option for _, option in options]
    return [f"{letter}. {option}" if letter else option for letter, option in options]


def _listed(value: Any, origin: str, *, where: str) -> list[tuple[str, str]]:
    """Options of a text, a list, an object of letters, or of {"label": [...], "text": [...]}."""
    if isinstance(value, str):
        return [("", text_field(value, origin, where=where))]
    if isinstance(value, Mapping):
        columns = [value.get("label"), value.get("text")]
        if all(isinstance(column, list) for column in columns):
            pairs = list(zip(*columns, strict=False))
        else:
            pairs = list(value.items())
    elif isinstance(value, list):
        pairs = list(zip(ascii_uppercase, value, strict=False))
        if len(value) > len(pairs):
            raise wrong_type(origin, where, value, "a list of at most 26 texts")
    else:
        raise wrong_type(origin, where, value, "a list of texts")
    return [(str(letter), text_field(text, origin, where=where)) for letter, text in pairs]


def _lettered(fields: Fields) -> list[tuple[str, str]]:
    """Options in fields of their own, from A (or option_a, option1) on, without a gap."""
    found: dict[int, str] = {}
    for name in fields:
        match = LETTERED.fullmatch(name)
        if match and isinstance(fields.peek(name), str):
            mark = (match[1] or match[2]).upper()
            found[int(mark) - 1 if mark.isdigit() else ascii_uppercase.index(mark)] = name
    if len(found) < 2 or set(found) != set(range(len(found))):
        return []
    return [(ascii_uppercase[i], fields[found[i]]) for i in sorted(found)]
