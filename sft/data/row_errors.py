"""Errors for rows that cannot be used: one sentence each, with file and line."""

import json
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

from sft.errors import UserError

HALF_PAIR = re.compile("[\ud800-\udfff]")
DEEPEST = 100  # levels of lists and objects; real rows have fewer than ten
LONGEST = 2_000  # characters of what is said about a row


class RowError(UserError):
    """A row that cannot be used: where, which rule (a short name that counts share), what to do.

    `counted` marks rows that are in order but of no use (a tie between two answers): they are
    dropped and counted, never a reason to stop. `ends` marks the last of a file whose rest cannot
    be read: always a reason to stop.
    """

    def __init__(
        self,
        origin: str,
        *,
        rule: str,
        detail: str,
        remedy: str,
        counted: bool = False,
        ends: bool = False,
    ) -> None:
        # A field's name may hold line breaks or half a surrogate pair; the message stays one line
        # that can be written.
        said = detail if len(detail) <= LONGEST else f"{detail[:LONGEST]}\u2026"
        line = " ".join(f"{origin}: {said}; {remedy}".splitlines())
        super().__init__(line.encode(errors="backslashreplace").decode())
        self.origin, self.rule, self.detail, self.remedy = origin, rule, detail, remedy
        self.counted, self.ends = counted, ends

    def ending(self) -> "RowError":
        """The same, of a file that cannot be read any further."""
        detail = f"{self.detail}, and nothing behind it can be read"
        return RowError(self.origin, rule=self.rule, detail=detail, remedy=self.remedy, ends=True)

    def among(
        self, others: Sequence["RowError"], *, looked_at: int, usable: bool = False
    ) -> UserError:
        """The same with how many of the next `looked_at` rows are as bad and, where some row is
        `usable`, that those which are not may be left out."""
        told = str(self)
        if others:
            rules = Counter(other.rule for other in others)
            each = ", ".join(f"{count} {rule}" for rule, count in rules.most_common())
            more = f"{len(others):,} of the next {looked_at:,} rows"
            told += f"; {more} cannot be used either ({each})"
        if usable and not any(error.ends for error in (self, *others)):
            told += "; data.on_error=drop leaves such rows out"
        return UserError(told)


def too_long(origin: str, size: int, *, limit: int) -> RowError:
    """A row of more bytes than are read at once."""
    return RowError(
        origin,
        rule="row too long",
        detail=f"the row has {size / 2**20:.1f} MB, more than {limit >> 20} MB",
        remedy="split or remove it",
    )


def too_large(origin: str, *, limit: float) -> RowError:
    """A text that is larger, unpacked, than what is read of one file."""
    return RowError(
        origin,
        rule="file too large",
        detail=f"the file has more than {limit / 2**20:,.0f} MB unpacked",
        remedy="unpack it, or save one row a line (.jsonl) in several files",
        ends=True,
    )


def truncated(origin: str, error: Exception) -> RowError:
    """A compressed file that ends before its text does."""
    return RowError(
        origin,
        rule="truncated file",
        detail=f"the compressed file breaks off here ({error})",
        remedy="fetch it again",
        ends=True,
    )


def not_utf8(origin: str, error: UnicodeDecodeError) -> RowError:
    """Bytes of another encoding."""
    return RowError(
        origin,
        rule="invalid UTF-8",
        detail=f"byte {error.start + 1} ({error.object[error.start]:#04x}) is not UTF-8",
        remedy="convert the file to UTF-8",
    )


def malformed(origin: str, error: ValueError, *, line: bool = False) -> RowError:
    """What is wrong in a text of JSON, and where; `line` says that the text is a row's alone."""
    what, remedy = str(error)[:80], "correct the row"
    if isinstance(error, json.JSONDecodeError):
        what = f"{error.msg.removesuffix(' at')} at column {error.colno}"
        if line and _breaks_off(error):
            what = f"the row ends in the middle, behind column {len(error.doc)}"
            remedy = "complete the row, or fetch the file again"
        elif line and error.msg == "Extra data":
            what, remedy = _extra(error, what), "write one object a line, nothing behind it"
    return RowError(
        origin,
        rule="malformed JSON",
        detail=f"malformed JSON ({what})",
        remedy=f"a file holds one JSON object a line, or (.json) one array of them; {remedy}",
    )


def _extra(error: json.JSONDecodeError, what: str) -> str:
    rest = error.doc[error.pos :].strip()
    if rest == ",":
        return f"a comma behind the object, as in an array, at column {error.colno}"
    found = f"another object behind the first, at column {error.colno}"
    return found if rest.startswith("{") else what


def _breaks_off(error: json.JSONDecodeError) -> bool:
    """Whether more text could have made valid JSON of a line: a text in it is never closed, or the
    decoder wants more behind its last character or letter of a word."""
    rest = error.doc[error.pos :]
    return error.msg.startswith("Unterminated string") or any(
        word.startswith(rest) for word in ("true", "false", "null", "-")
    )


def equal_names(origin: str, names: Sequence[str], *, of: str) -> RowError:
    """Columns of one name, of which only the last would be read."""
    return RowError(
        origin,
        rule="equal column names",
        detail=f"the {of} names {', '.join(names)} more than once",
        remedy="give each column a name of its own",
        ends=True,
    )


def invalid_text(origin: str, *, where: str, what: str) -> RowError:
    """Text with a character that no tokenizer or file takes."""
    return RowError(origin, rule="invalid text", detail=f"{where} holds {what}", remedy="remove it")


def half_pair(value: Any, *, where: str = "") -> str:
    """Where in JSON data half a surrogate pair stands, in a name or a text; "" if nowhere."""
    if isinstance(value, str):
        return (where or "the row") if HALF_PAIR.search(value) else ""
    if isinstance(value, dict):
        inner = [(name, f"{where}.{name}" if where else name) for name in value]
        named = (half_pair(name, where=f"the name {place!r}") for name, place in inner)
        below = (half_pair(value[name], where=place) for name, place in inner)
        return next(filter(None, (*named, *below)), "")
    if isinstance(value, list):
        below = (half_pair(one, where=f"{where}[{i}]") for i, one in enumerate(value))
        return next(filter(None, below), "")
    return ""


def is_deep(value: Any) -> bool:
    """Whether lists and objects stand in each other more than `DEEPEST` levels deep."""
    level: list[Any] = [[value]]
    for _ in range(DEEPEST + 1):
        inner = [one.values() if isinstance(one, dict) else one for one in level]
        level = [one for values in inner for one in values if isinstance(one, dict | list)]
        if not level:
            return False
    return True


def type_name(value: Any) -> str:
    """What a user calls the type of a JSON value."""
    names = {
        type(None): "null",
        bool: "true or false",
        int: "a number",
        float: "a number",
        str: "text",
        list: "a list",
        dict: "an object",
    }
    return names.get(type(value), type(value).__name__)
