"""Sources as chats, {"messages", "kind", "origin", ...}, and counts of the rows left out."""

import contextlib
import hashlib
import json
import logging
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import PurePath
from typing import Any

from rich import box
from rich.table import Table

from sft.config.sections import Source
from sft.data.field_names import META
from sft.data.fields import UnreadFields
from sft.data.formats import MappedRow, apply_columns, read_chats, read_text, unread_content
from sft.data.json_values import field_of
from sft.data.message_trees import assemble_trees
from sft.data.readers import read_records
from sft.data.records import RowError
from sft.errors import UserError
from sft.schema import ChatMessage, SourceFacts

log = logging.getLogger(__name__)

DUPLICATE = "exact duplicate"  # the same record, field by field
SAME_TEXT = "same text"  # another record that gives the same chat
OTHER_KIND, TEXT_KIND = "other", "text"
CALCULATOR = re.compile(r"<<[^<>\n]*=[^<>\n]*>>")
LOOKAHEAD = 10_000  # rows after the first bad one that are searched for more errors
ENCODER = json.JSONEncoder(sort_keys=True, default=str)
MAX_PROBLEMS = 20  # error sentences of a source that are stored


@dataclass(frozen=True)
class SourceCount:
    """Counts of a source's rows, in the fields of `SourceFacts`."""

    source: str
    rows_in: int
    kept: int
    dropped: dict[str, int]
    mended: dict[str, int]
    unread: dict[str, int]
    problems: list[str]


@dataclass(frozen=True)
class ExactDuplicate:
    """The row at `origin` was left out because it repeats the row at `of`."""

    origin: str
    of: str
    rule: str  # DUPLICATE or SAME_TEXT


@dataclass(frozen=True)
class SourceRows:
    """The rows of all sources, a count for each source, and the exact duplicates left out.

    A row is {"messages", "kind", "origin"} ("text" instead of "messages" for plain text) and, if
    the file has them, "tools", "language", "reference" and "id".
    """

    rows: list[dict[str, Any]]
    counts: list[SourceCount]
    repeats: list[ExactDuplicate]


@dataclass(frozen=True)
class ParsedRow:
    """A usable row, the fields from which it was read, and the names of the changes made to it."""

    row: dict[str, Any]
    raw: Any
    changes: tuple[str, ...] = ()
    unread: Mapping[str, str] = field(default_factory=dict)  # see `unread_texts`


def read_sft(sources: Sequence[Source], *, on_error: str = "stop") -> SourceRows:
    """Read chats from files or Hub datasets of any known format.

    Exact duplicates within and across sources are dropped and counted; the first is kept.

    Args:
        sources: their `weight` is not applied here.
        on_error: "stop" raises on the first bad row; "drop" counts and lists it.

    Raises:
        UserError: one sentence with file and line, the rule and the remedy; in either mode for a
            missing file, a file of preferences, a source without a usable row, and content in a
            field that no format reads.
    """
    return collect([(source, _chats(source)) for source in sources], on_error=on_error)


def collect(
    sources: Iterable[tuple[Source, Iterable[ParsedRow | RowError]]], *, on_error: str
) -> SourceRows:
    """Keep, count or refuse the rows of chats or preferences, as `read_sft` describes."""
    assert on_error in ("stop", "drop"), on_error
    read = SourceRows(rows=[], counts=[], repeats=[])
    # Origins of the rows that are kept, by digest.
    seen: dict[str, dict[bytes, str]] = {DUPLICATE: {}, SAME_TEXT: {}}
    for source, found in sources:
        count = _collect(found, source=source, on_error=on_error, seen=seen, into=read)
        read.counts.append(count)
        if count.dropped:
            log.info(
                "%s: %d of %d rows kept (%s)",
                *(source.path, count.kept, count.rows_in, _listed(count.dropped)),
            )
    return read


def _collect(
    found: Iterable[ParsedRow | RowError],
    *,
    source: Source,
    on_error: str,
    seen: dict[str, dict[bytes, str]],
    into: SourceRows,
) -> SourceCount:
    rows_in, before = 0, len(into.rows)
    dropped: Counter[str] = Counter()
    changes: Counter[str] = Counter()
    problems: list[str] = []
    unread = UnreadFields(source.ignore)
    rows = iter(found)
    for item in rows:
        rows_in += 1
        if isinstance(item, RowError):
            if item.ends:
                raise item
            if on_error == "stop" and not item.counted:
                raise _with_following(item, rows, usable=len(into.rows) > before)
            dropped[item.rule] += 1
            problems.append(str(item))
            continue
        origin = item.row["origin"]
        unread.add(origin, item.unread)
        digests = {DUPLICATE: _digest(item.raw), SAME_TEXT: _digest(_content(item.row))}
        rule = next((rule for rule, digest in digests.items() if digest in seen[rule]), None)
        if rule is not None:
            dropped[rule] += 1
            into.repeats.append(ExactDuplicate(origin, of=seen[rule][digests[rule]], rule=rule))
            continue
        for rule, digest in digests.items():
            seen[rule][digest] = origin
        changes.update(item.changes)
        into.rows.append(item.row)
    kept = len(into.rows) - before
    # A source may consist of repeats of the others; its counts show it.
    if not kept and not (dropped[DUPLICATE] or dropped[SAME_TEXT]):
        why = _listed(dict(dropped.most_common())) or "it has none"
        first = f"; first: {problems[0]}" if problems else ""
        raise UserError(f"{source.path}: no usable row ({why}); a source holds at least one{first}")
    unread.check()
    return SourceCount(
        source=source.path,
        rows_in=rows_in,
        kept=kept,
        dropped=dict(dropped.most_common()),
        mended=dict(changes.most_common()),
        unread=dict(unread.counts.most_common()),
        problems=problems[:MAX_PROBLEMS],
    )


def _with_following(
    first: RowError, rest: Iterable[ParsedRow | RowError], *, usable: bool
) -> UserError:
    """Return the first error with a count of those in the rows after it, and the remedy drop."""
    following: list[ParsedRow | RowError] = []
    # An error that ends the source early is raised again after this row is corrected.
    with contextlib.suppress(UserError):
        following.extend(islice(rest, LOOKAHEAD))
    others = [row for row in following if isinstance(row, RowError) and not row.counted]
    message = str(first)
    if others:
        rules = _listed(dict(Counter(other.rule for other in others).most_common()))
        rows = f"{len(others):,} of the next {len(following):,} rows"
        message += f"; {rows} cannot be used either ({rules})"
    usable = usable or any(isinstance(row, ParsedRow) for row in following)
    if usable and not any(error.ends for error in others):
        message += "; data.on_error=drop leaves such rows out"
    return UserError(message)


def _digest(value: Any) -> bytes:
    text = ENCODER.encode(value)
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def _content(row: dict[str, Any]) -> dict[str, Any]:
    """Return the part of a row that training sees, without its origin and labels."""
    keys = ("messages", "prompt", "chosen", "rejected", "tools", "text")
    return {k: row[k] for k in keys if k in row}


def read_rows(source: Source) -> Iterator[MappedRow | RowError]:
    """Yield the records of a source under names that the formats know."""
    # Keys of messages are named as messages[].key, and are no fields.
    ignored = {name for name in source.ignore if "[]." not in name}
    columns = set(source.columns.values())
    records = read_records(source)
    if not source.columns and "role" not in source.ignore:
        records = assemble_trees(records)
    for record in records:
        if isinstance(record, RowError):
            yield record
            continue
        ignored -= record.fields.keys()
        columns = {n for n in columns if field_of(record.fields, n) not in record.fields}
        try:
            yield apply_columns(record, source.columns, ignore=source.ignore)
        except RowError as error:
            yield error
    if missing := ignored | columns:
        raise UserError(
            f"{source.path}: ignore or columns names {', '.join(map(repr, sorted(missing)))}, "
            "which no row has; correct the name"
        )


def read_each(
    source: Source, read: Callable[[MappedRow], Iterable[ParsedRow]]
) -> Iterator[ParsedRow | RowError]:
    """Yield the rows that `read` returns for each record of a source, or the error it raises."""
    for item in read_rows(source):
        if isinstance(item, RowError):
            yield item
            continue
        try:
            yield from list(read(item))  # all or none of the rows of a record
        except RowError as error:
            yield error


def _chats(source: Source) -> Iterator[ParsedRow | RowError]:
    def read(row: MappedRow) -> Iterator[ParsedRow]:
        parsed = list(_read(row, source))
        messages = [
            message
            for one, _ in parsed
            for message in one.get("messages", [{"content": one.get("text")}])
        ]
        unread = unread_content(row, messages)
        for part, (one, changes) in enumerate(parsed):
            yield ParsedRow(one, raw=(part, row.raw), changes=changes, unread=unread)

    return read_each(source, read)


def _read(record: MappedRow, source: Source) -> Iterator[tuple[dict[str, Any], tuple[str, ...]]]:
    """Yield the rows of a record, each with the names of the changes made to it."""
    if (text := read_text(record)) is not None:
        messages: list[ChatMessage] = [{"role": "user", "content": text}]
        kind = read_kind(record, source, messages=messages, default=TEXT_KIND)
        yield {"text": text, "kind": kind, "origin": record.origin} | metadata(record), ()
        return
    for chat in read_chats(record, tree_paths=source.tree_paths):
        messages, changes = chat.messages, chat.changes
        if source.strip_calculator:
            # GSM8K: "6*7=<<6*7=42>>42" becomes "6*7=42"; "#### 42" at the end is no annotation.
            messages = [
                m | {"content": CALCULATOR.sub("", m["content"])} if m["role"] == "assistant" else m
                for m in messages
            ]
            if messages != chat.messages:
                changes = (*changes, "calculator annotations removed")
        kind = read_kind(record, source, messages=messages)
        row: dict[str, Any] = {"messages": messages, "kind": kind, "origin": record.origin}
        if chat.tools:
            row["tools"] = chat.tools
        yield row | metadata(record), changes


def read_kind(
    record: MappedRow, source: Source, *, messages: Sequence[ChatMessage], default: str = OTHER_KIND
) -> str:
    """Return the kind of a row: by the source's `kind_rule`, its `kind`, or the row's field."""
    question = "\n".join(m["content"] for m in messages if m["role"] == "user")
    for ruled, pattern in source.kind_rule.items():
        if re.search(pattern, question):
            return ruled
    kind = source.kind or record.fields.get("kind")
    if kind is None or kind == "":
        return default
    if not isinstance(kind, str):
        detail, remedy = f"kind is {kind!r}", "it must be text such as math or dialogue"
        raise RowError(record.origin, rule="wrong type", detail=detail, remedy=remedy)
    return kind


def metadata(record: MappedRow) -> dict[str, Any]:
    """Return the fields of `META` that the record has; they pass through unchanged."""
    return {key: record.fields[key] for key in META if record.fields.get(key) is not None}


def source_table(sources: Sequence[SourceFacts], *, title: str) -> Table:
    """Return a table with a line for each source: rows kept, left out and changed."""
    table = Table(title=title, box=box.SIMPLE, title_justify="left")
    table.add_column("source", overflow="fold")
    for heading in ("read", "kept"):
        table.add_column(heading, justify="right")
    for heading in ("left out", "changed", "unread fields"):
        table.add_column(heading, overflow="fold")
    names = [PurePath(source["source"]).name for source in sources]
    unique = len(set(names)) == len(names)
    for source, name in zip(sources, names, strict=True):
        table.add_row(
            name if unique else source["source"],
            f"{source['rows_in']:,}",
            f"{source['kept']:,}",
            # Runs of earlier versions did not count all of these.
            _listed(source.get("dropped", {})),
            _listed(source.get("mended", {})),
            _listed(source.get("unread", {})),
        )
    return table


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in counts.items())
