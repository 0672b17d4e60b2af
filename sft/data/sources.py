"""Sources to chats, {"messages", "kind", "origin", ...}, and counts of what is left out and why."""

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
from sft.data.messages import Message
from sft.data.readers import read_records
from sft.data.records import Record, RowError
from sft.errors import UserError

log = logging.getLogger(__name__)

DUPLICATE = "exact duplicate"  # the same record, field by field
SAME_TEXT = "same text"  # another record that comes to the same chat
OTHER_KIND, TEXT_KIND = "other", "text"
CALCULATOR = re.compile(r"<<[^<>\n]*=[^<>\n]*>>")
LOOKED_ON = 10_000  # rows behind one that ends the reading, for how many more are like it
ENCODER = json.JSONEncoder(sort_keys=True, default=str)
EXAMPLES = 20  # problems of a source that are kept word for word


@dataclass(frozen=True)
class SourceCount:
    """What became of a source's rows: rows_in = kept + the sum of dropped."""

    source: str
    rows_in: int
    kept: int
    dropped: dict[str, int]  # by rule
    mended: dict[str, int]  # rows kept with something cut, by rule
    unread: dict[str, int]  # rows with text in a field that nothing read, by field
    problems: list[str]  # the first sentences, with file and line


@dataclass(frozen=True)
class ExactDuplicate:
    """The row at `origin` was left out, because it is that at `of` again."""

    origin: str
    of: str
    rule: str  # DUPLICATE or SAME_TEXT


@dataclass(frozen=True)
class SourceRows:
    """Rows of {"messages", "kind", "origin"} (plain text: "text" in the place of "messages") and,
    where the file has them, "tools", "language", "reference" and "id"; a count for each source; and
    what was left out as an exact repetition."""

    rows: list[dict[str, Any]]
    counts: list[SourceCount]
    repeats: list[ExactDuplicate]


def read_sft(sources: Sequence[Source], *, on_error: str = "stop") -> SourceRows:
    """Read chats from files or hub datasets of any known format.

    Exact duplicates within and across sources are dropped and counted in either mode: of several
    the first is kept.

    Args:
        sources: their `weight` is not applied here.
        on_error: "stop" raises on the first bad row; "drop" counts and lists it.

    Raises:
        UserError: one sentence with file and line, the rule and the remedy; always for a missing
            file, a file of another kind (preferences) and a source without a usable row.
    """
    return collect([(source, _chats(source)) for source in sources], on_error=on_error)


@dataclass(frozen=True)
class ParsedRow:
    """A usable row, the fields that it was read from, and what was mended in it, by name."""

    row: dict[str, Any]
    raw: Any
    mended: tuple[str, ...] = ()
    unread: Mapping[str, str] = field(default_factory=dict)  # see `unread_texts`


def collect(
    sources: Iterable[tuple[Source, Iterable[ParsedRow | RowError]]], *, on_error: str
) -> SourceRows:
    """Keep, count or stop: the one policy for chats and preferences.

    Args:
        sources: each with its contents: usable rows in order, and in the place of the others why
            they are not.

    Raises:
        UserError: the first problem under "stop"; under either a source without a usable row, or
            of which a field with content would be left out of most rows.
    """
    assert on_error in ("stop", "drop"), on_error
    read = SourceRows(rows=[], counts=[], repeats=[])
    # Digests of the rows that are kept, with their origins.
    seen: dict[str, dict[bytes, str]] = {DUPLICATE: {}, SAME_TEXT: {}}
    for source, found in sources:
        count = _collect(found, source=source, on_error=on_error, seen=seen, into=read)
        read.counts.append(count)
        if count.dropped:
            left_out = ", ".join(f"{n} {rule}" for rule, n in count.dropped.items())
            log.info(
                "%s: %d of %d rows kept (%s)", source.path, count.kept, count.rows_in, left_out
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
    mended: Counter[str] = Counter()
    problems: list[str] = []
    unread = UnreadFields(source.ignore)
    rows = iter(found)
    for item in rows:
        rows_in += 1
        if isinstance(item, RowError):
            if item.ends:
                raise item
            if on_error == "stop" and not item.counted:
                raise _among_its_like(item, rows, usable=len(into.rows) > before)
            dropped[item.rule] += 1
            problems.append(str(item))
            continue
        origin = item.row["origin"]
        unread.add(origin, item.unread)
        digests = {DUPLICATE: _digest(item.raw), SAME_TEXT: _digest(_said(item.row))}
        rule = next((rule for rule, digest in digests.items() if digest in seen[rule]), None)
        if rule is not None:
            dropped[rule] += 1
            into.repeats.append(ExactDuplicate(origin, of=seen[rule][digests[rule]], rule=rule))
            continue
        for rule, digest in digests.items():
            seen[rule][digest] = origin
        mended.update(item.mended)
        into.rows.append(item.row)
    kept = len(into.rows) - before
    # A source may repeat others altogether; its counts say so.
    if not kept and not (dropped[DUPLICATE] or dropped[SAME_TEXT]):
        why = ", ".join(f"{n} {rule}" for rule, n in dropped.most_common() if n) or "it has none"
        first = f"; first: {problems[0]}" if problems else ""
        raise UserError(f"{source.path}: no usable row ({why}); a source holds at least one{first}")
    unread.check()
    return SourceCount(
        source=source.path,
        rows_in=rows_in,
        kept=kept,
        dropped=dict(dropped.most_common()),
        mended=dict(mended.most_common()),
        unread=dict(unread.counts.most_common()),
        problems=problems[:EXAMPLES],
    )


def _among_its_like(
    first: RowError, rest: Iterable[ParsedRow | RowError], *, usable: bool
) -> UserError:
    following: list[ParsedRow | RowError] = []
    # What ends the source early is told when this row is mended.
    with contextlib.suppress(UserError):
        following.extend(islice(rest, LOOKED_ON))
    others = [row for row in following if isinstance(row, RowError) and not row.counted]
    usable = usable or any(isinstance(row, ParsedRow) for row in following)
    return first.with_others(others, inspected=len(following), usable=usable)


def _digest(value: Any) -> bytes:
    text = ENCODER.encode(value)
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def _said(row: dict[str, Any]) -> dict[str, Any]:
    """What makes two rows the same: their text, not where they stand or how they are labelled."""
    keys = ("messages", "prompt", "chosen", "rejected", "tools", "text")
    return {k: row[k] for k in keys if k in row}


def read_rows(source: Source) -> Iterator[tuple[Record, MappedRow] | RowError]:
    """The records of a source with their rows under our names.

    Raises:
        UserError: at the end, a field of `ignore` or `columns` that no record has.
    """
    ignored, columns = set(source.ignore), set(source.columns.values())
    records = read_records(source)
    if not source.columns and "role" not in source.ignore:
        records = assemble_trees(records)
    for record in records:
        if isinstance(record, RowError):
            yield record
            continue
        if ignored or columns:
            ignored -= record.fields.keys()
            columns = {n for n in columns if field_of(record.fields, n) not in record.fields}
        try:
            row = apply_columns(record, source.columns, ignore=source.ignore)
        except RowError as error:
            yield error
            continue
        yield record, row
    # Keys of messages are named as messages[].key.
    if missing := {name for name in ignored if "[]." not in name} | columns:
        raise UserError(
            f"{source.path}: ignore or columns names {', '.join(map(repr, sorted(missing)))}, "
            "which no row has; correct the name"
        )


def read_each(
    source: Source, read: Callable[[Record, MappedRow], Iterable[ParsedRow]]
) -> Iterator[ParsedRow | RowError]:
    """What `read` makes of each record of a source, or the RowError that it raises."""
    for item in read_rows(source):
        if isinstance(item, RowError):
            yield item
            continue
        try:
            found = list(read(*item))
        except RowError as error:
            yield error
        else:
            yield from found


def _chats(source: Source) -> Iterator[ParsedRow | RowError]:
    def read(record: Record, row: MappedRow) -> Iterator[ParsedRow]:
        made = list(_read(row, source))
        said = [message for one, _ in made for message in _messages(one)]
        unread = unread_content(row, said)
        for part, (one, mended) in enumerate(made):
            yield ParsedRow(one, raw=(part, record.fields), mended=mended, unread=unread)

    return read_each(source, read)


def _messages(row: dict[str, Any]) -> list[Message]:
    return row["messages"] if "messages" in row else [{"content": row["text"]}]


def _read(record: MappedRow, source: Source) -> Iterator[tuple[dict[str, Any], tuple[str, ...]]]:
    """The rows of a record, each with what was mended in it."""
    if (text := read_text(record)) is not None:
        said = [{"role": "user", "content": text}]
        kind = read_kind(record, source, said=said, default=TEXT_KIND)
        yield {"text": text, "kind": kind, "origin": record.origin} | metadata(record), ()
        return
    for chat in read_chats(record, tree_paths=source.tree_paths):
        messages, mended = chat.messages, chat.mended
        if source.strip_calculator:
            messages = [_without_annotations(message) for message in messages]
            if messages != chat.messages:
                mended = (*mended, "calculator annotations removed")
        kind = read_kind(record, source, said=messages)
        row: dict[str, Any] = {"messages": messages, "kind": kind, "origin": record.origin}
        if chat.tools:
            row["tools"] = chat.tools
        yield row | metadata(record), mended


def _without_annotations(message: Message) -> Message:
    """GSM8K: "6*7=<<6*7=42>>42" becomes "6*7=42"; the "#### 42" at the end is no annotation."""
    if message["role"] != "assistant":
        return message
    return message | {"content": CALCULATOR.sub("", message["content"])}


def read_kind(
    record: MappedRow, source: Source, *, said: Sequence[Message], default: str = OTHER_KIND
) -> str:
    """The first kind whose rule finds its pattern in what the user says, else the source's kind,
    else the row's own, else `default`.

    Raises:
        RowError: the row's own is no text.
    """
    asked = "\n".join(message["content"] for message in said if message["role"] == "user")
    for ruled, pattern in source.kind_rule.items():
        if re.search(pattern, asked):
            return ruled
    kind = source.kind or record.fields.get("kind")
    if kind is None or kind == "":
        return default
    if not isinstance(kind, str):
        raise RowError(
            record.origin,
            rule="wrong type",
            detail=f"kind is {kind!r}",
            remedy="it must be text such as math or dialogue",
        )
    return kind


def metadata(record: MappedRow) -> dict[str, Any]:
    """Fields that pass through unchanged where the record has them."""
    return {key: record.fields[key] for key in META if record.fields.get(key) is not None}


def source_table(sources: Sequence[Mapping[str, Any]], *, title: str) -> Table:
    """A line for each source.

    Args:
        sources: `SourceCount` as plain data, as data.json keeps it.
    """
    table = Table(title=title, box=box.SIMPLE, title_justify="left")
    table.add_column("source", overflow="fold")
    for heading in ("read", "kept"):
        table.add_column(heading, justify="right")
    for heading in ("left out", "changed", "fields that nothing reads"):
        table.add_column(heading, overflow="fold")
    names = [PurePath(source["source"]).name for source in sources]
    unique = len(set(names)) == len(names)
    for source, name in zip(sources, names, strict=True):
        table.add_row(
            name if unique else source["source"],
            f"{source['rows_in']:,}",
            f"{source['kept']:,}",
            *(_listed(source.get(part, {})) for part in ("dropped", "mended", "unread")),
        )
    return table


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in counts.items())
