"""Records (rows as the file holds them), and errors for records that cannot be used."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sft.data.json_values import type_name
from sft.errors import UserError

MAX_DETAIL = 2_000  # characters: a name or value in the row may be arbitrarily long


@dataclass(frozen=True)
class Record:
    """One row as the file holds it; `origin` is path:line (path:row for Parquet and the Hub)."""

    origin: str
    fields: dict[str, Any]
    cells: bool = False  # every field is text because the format (CSV) has no other type


class RowError(UserError):
    """A row that cannot be used.

    Args:
        rule: short name under which the counts list the row.
        counted: the row is valid but useless, such as a tie between two answers. It is dropped and
            counted, and never stops the run.
        ends: the rest of the file cannot be read, which always stops the run.
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
        shown = detail if len(detail) <= MAX_DETAIL else f"{detail[:MAX_DETAIL]}\u2026"
        # Names of fields may hold line breaks and lone surrogates, which a log cannot encode.
        line = " ".join(f"{origin}: {shown}; {remedy}".splitlines())
        super().__init__(line.encode(errors="backslashreplace").decode())
        self.origin, self.rule, self.detail, self.remedy = origin, rule, detail, remedy
        self.counted, self.ends = counted, ends

    def ending(self) -> "RowError":
        """Return the same error for a file whose rest cannot be read."""
        detail = f"{self.detail}, and nothing after it can be read"
        return RowError(self.origin, rule=self.rule, detail=detail, remedy=self.remedy, ends=True)


def equal_names(origin: str, names: Sequence[str], *, of: str) -> RowError | None:
    """Return the error for columns of one name, of which only the last would be read, or None."""
    twice = ", ".join(sorted({name for name in names if name and names.count(name) > 1}))
    detail, remedy = f"the {of} names {twice} more than once", "give each column a unique name"
    error = RowError(origin, rule="equal column names", detail=detail, remedy=remedy, ends=True)
    return error if twice else None


def invalid_text(origin: str, *, where: str, what: str) -> RowError:
    """Return the error for a character that no tokenizer or file accepts."""
    return RowError(origin, rule="invalid text", detail=f"{where} holds {what}", remedy="remove it")


def wrong_type(origin: str, where: str, value: Any, expected: str) -> RowError:
    """Return the error for a value of another type than `expected`."""
    return RowError(
        origin,
        rule="wrong type",
        detail=f"{where} is {type_name(value)}",
        remedy=f"it must be {expected}",
    )
