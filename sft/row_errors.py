"""Rows that cannot be used, each told in one sentence with its file and line."""

import json
from collections import Counter
from collections.abc import Sequence

from sft.config import UserError


class RowError(UserError):
    """A row that cannot be used: where, which rule (a short name that counts share), what to do.

    `counted` marks rows that are in order but of no use (a tie between two answers): they are
    dropped and counted, never a reason to stop.
    """

    def __init__(
        self, origin: str, *, rule: str, detail: str, remedy: str, counted: bool = False
    ) -> None:
        # A field's name may hold line breaks; the message stays one line.
        super().__init__(" ".join(f"{origin}: {detail}; {remedy}".splitlines()))
        self.origin = origin
        self.rule = rule
        self.counted = counted

    def among(self, others: Sequence["RowError"], *, looked_at: int) -> UserError:
        """The same, with how many of the next `looked_at` rows are as bad; itself if none is."""
        if not others:
            return self
        rules = Counter(other.rule for other in others)
        each = ", ".join(f"{count} {rule}" for rule, count in rules.most_common())
        drop = "" if "data.on_error=drop" in str(self) else "; data.on_error=drop leaves such out"
        more = f"{len(others):,} of the next {looked_at:,} rows cannot be used either ({each})"
        return UserError(f"{self}; {more}{drop}")


def too_long(origin: str, size: int, *, limit: int) -> RowError:
    """A row of more bytes than are read at once."""
    return RowError(
        origin,
        rule="row too long",
        detail=f"the row has {size / 2**20:.1f} MB, more than {limit >> 20} MB",
        remedy="split or remove it",
    )


def truncated(origin: str, error: Exception) -> RowError:
    """A compressed file that ends before its text does."""
    return RowError(
        origin,
        rule="truncated file",
        detail=f"the compressed file breaks off here ({error})",
        remedy="fetch it again",
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
    return RowError(
        origin,
        rule="malformed JSON",
        detail=f"malformed JSON ({what})",
        remedy=f"a file holds one JSON object a line, or (.json) one array of them; {remedy}",
    )


def _breaks_off(error: json.JSONDecodeError) -> bool:
    """Whether more text could have made valid JSON of a line: a text in it is never closed, or the
    decoder wants more behind its last character or letter of a word."""
    rest = error.doc[error.pos :]
    return error.msg.startswith("Unterminated string") or any(
        word.startswith(rest) for word in ("true", "false", "null", "-")
    )
