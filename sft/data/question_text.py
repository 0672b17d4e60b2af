"""The text of a question whose parts are in several fields: instruction, passage, options."""

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
BEFORE_PASSAGE = ("instruction", "prompt")  # other questions follow their passage
LETTERED = re.compile(r"(?:(?:options?|choices?|opt?)[_ ]?)([A-Ea-e1-5])|([A-E])")
MARKED = re.compile(r"\s*[(（]?([A-Z])\s*[.):、．）]")


def full_question(fields: Fields, asked: str, text: str, origin: str) -> str:
    """Return `text` of field `asked` with the fields that belong to it, a line each.

    The order is: task, passage, question, options; an instruction or a prompt precedes its
    passage. A field that `text` contains is not repeated.
    """
    before: list[str] = []
    after: list[str] = []
    names = [*LEADING, *MATERIAL, *(["question"] if asked in BEFORE_PASSAGE else [])]
    present = fields.filled(COMPANIONS) - {asked}
    for name in filter(present.__contains__, names):
        if not fields[name]:
            continue
        part = _text(fields[name], origin, where=name)
        # Alpaca's instruction and input are always joined.
        joined = (asked, name) == ("instruction", "input")
        if not joined and strip_whitespace(part) in strip_whitespace(text):
            continue
        first = name in LEADING or asked not in BEFORE_PASSAGE
        (before if first else after).append(part)
    parts = [*before, text, *after, *_options(fields, origin, text=text)]
    return "\n".join(part for part in parts if part.strip())


def _text(value: Any, origin: str, *, where: str) -> str:
    if isinstance(value, list) and value and all(isinstance(part, str) for part in value):
        return "\n".join(text_field(part, origin, where=where) for part in value)
    return text_field(value, origin, where=where)


def _options(fields: Fields, origin: str, *, text: str) -> list[str]:
    """Return the options to choose from, each with a letter, unless `text` contains them all."""
    options = _lettered(fields)
    for name in fields.filled(OPTIONS):
        if fields[name]:
            options = _listed(fields[name], origin, where=name)
    question = strip_whitespace(text)
    if all(strip_whitespace(option) in question for _, option in options):
        return []
    marks = [match[1] if (match := MARKED.match(o)) else "" for _, o in options]
    # Options with their own letters in order; half of them suffice, since real files have slips.
    if 2 * sum(map(str.__eq__, marks, ascii_uppercase)) > len(options):
        return [option for _, option in options]
    return [f"{letter}. {option}" if letter else option for letter, option in options]


def _listed(value: Any, origin: str, *, where: str) -> list[tuple[str, str]]:
    """Read options of a text, a list, an object of letters, or {"label": [...], "text": [...]}."""
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
    """Return options in separate fields, from A (or option_a, option1) on without a gap."""
    found: dict[int, str] = {}
    for name in fields:
        match = LETTERED.fullmatch(name)
        if match and isinstance(fields.peek(name), str):
            mark = (match[1] or match[2]).upper()
            found[int(mark) - 1 if mark.isdigit() else ascii_uppercase.index(mark)] = name
    if len(found) < 2 or set(found) != set(range(len(found))):
        return []
    return [(ascii_uppercase[i], fields[found[i]]) for i in sorted(found)]
