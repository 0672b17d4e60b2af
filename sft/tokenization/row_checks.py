"""Checks hard rules on every token row before a model loads, and prints tables of the rows."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from rich import box
from rich.console import Group
from rich.table import Table

from sft.chat_template.encoding import stop_ids
from sft.chat_template.tokenizer_coverage import Coverage
from sft.chat_template.turn_end import control_tokens, find_turn_end, has_generation_tags
from sft.data.mixture import PAPER_SHARES, share_of_kind
from sft.errors import UserError

EXAMPLES = 3  # origins that an error names


@dataclass(frozen=True)
class Rules:
    """The rules of a tokenizer and its template for a row."""

    stops: frozenset[int]  # every trained turn contains one of these ids
    bos: int | None
    leading_bos: int  # number at the start of a generation prompt: 0 or 1
    unknown: frozenset[int] = frozenset()  # id that replaces unknown text
    byte_ids: frozenset[int] = frozenset()  # ids of single bytes

    @classmethod
    def of(cls, tokenizer: Any) -> "Rules":
        stops = set(stop_ids(tokenizer))
        if has_generation_tags(tokenizer):
            # Earlier turns may end with another control token; `_mask_from_generation_tags` checks
            # the last one.
            stops |= set(tokenizer.convert_tokens_to_ids(control_tokens(tokenizer)))
        begins = int(find_turn_end(tokenizer).bos)
        coverage = Coverage.of(tokenizer)
        unknown = frozenset() if coverage.unknown is None else frozenset({coverage.unknown})
        ids = (unknown, coverage.byte_ids)
        return cls(frozenset(stops), tokenizer.bos_token_id, begins, *ids)


@dataclass
class Tally:
    """Counts over the rows of one source and kind."""

    rows: int = 0
    tokens: int = 0
    trained_tokens: int = 0
    turns: int = 0  # trained
    untrained: int = 0  # assistant turns used only as context
    cut: int = 0  # rows whose last answer is truncated
    left_out: int = 0  # rows longer than `max_length`
    unknown_tokens: int = 0  # replacements of text that the tokenizer cannot represent
    byte_tokens: int = 0  # text represented byte by byte

    def add(
        self,
        tokens: int,
        trained_tokens: int,
        turns: int,
        untrained: int,
        cut: bool,
        unknown_tokens: int = 0,
        byte_tokens: int = 0,
    ) -> None:
        self.unknown_tokens += unknown_tokens
        self.byte_tokens += byte_tokens
        self.rows += 1
        self.untrained += untrained
        self.tokens += tokens
        self.trained_tokens += trained_tokens
        self.turns += turns
        self.cut += cut


@dataclass(frozen=True)
class Checked:
    """Tallies by (source, kind), and for each broken rule the origins of the rows that break it."""

    tallies: dict[tuple[str, str], Tally] = field(default_factory=dict)
    broken: dict[str, list[str]] = field(default_factory=dict)

    def tally(self, origin: str, kind: str) -> Tally:
        """Return the tally for rows of this origin (path:line) and kind."""
        return self.tallies.setdefault((origin.rpartition(":")[0], kind), Tally())


NOTHING_TRAINED = "nothing in it is trained"
NOT_ENDED = "a trained turn has no trained end-of-turn"


def check_row(
    ids: Sequence[int], trained: Sequence[bool], *, rules: Rules, cut: bool = False
) -> tuple[int, list[str]]:
    """Return the number of trained turns in a row, and the rules that it breaks.

    For `<s> q ? a <end> q ? b <end>` with both answers trained: 2 and none. Without the last token
    a rule is broken, unless the row is `cut`.
    """
    flat_ids, flat_trained = np.asarray(ids, dtype=np.int64), np.asarray(trained, dtype=bool)
    lengths, cuts = np.array([len(ids)]), np.array([cut])
    turns, broken = _check(flat_ids, flat_trained, lengths, rules=rules, cut=cuts)
    return int(turns[0]), [rule for rule, rows in broken.items() if rows[0]]


def _check(
    ids: np.ndarray, trained: np.ndarray, lengths: np.ndarray, *, rules: Rules, cut: np.ndarray
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Return trained turns int64 [rows], and for each rule whether a row breaks it, bool [rows].

    `ids` (int64) and `trained` (bool) are the concatenated rows [tokens]; `lengths` (int64) and
    `cut` (bool) have one entry per row.
    """
    rows = len(lengths)
    ends_at = np.cumsum(lengths)
    starts_at = ends_at - lengths
    row_of = np.repeat(np.arange(rows), lengths)
    before, after = np.append(False, trained)[:-1], np.append(trained, False)[1:]
    before[starts_at[lengths > 0]] = after[ends_at[lengths > 0] - 1] = False
    starts, ends = np.flatnonzero(trained & ~before), np.flatnonzero(trained & ~after)
    stops = np.append(0, np.cumsum(np.isin(ids, list(rules.stops))))
    owners = row_of[starts]
    open_ended = (stops[ends + 1] == stops[starts]) & ~(cut[owners] & (ends == ends_at[owners] - 1))
    turns = np.bincount(owners, minlength=rows)
    # Counting one BOS more than required is enough to find a surplus.
    leading = np.zeros(rows, dtype=np.int64)
    for place in range(rules.leading_bos + 1):
        led = (leading == place) & (lengths > place)
        leading[led] += ids[starts_at[led] + place] == rules.bos
    return turns, {
        NOTHING_TRAINED: turns == 0,
        # If eos serves as BOS too, a template that writes neither begins with text.
        f"it does not begin with {rules.leading_bos} BOS token as a prompt does": (turns > 0)
        & (leading != rules.leading_bos),
        NOT_ENDED: np.bincount(owners[open_ended], minlength=rows) > 0,
    }


def check_rows(tables: Iterable[pa.Table], *, rules: Rules) -> Checked:
    """Tally and check tables of `origin`, `kind`, `input_ids`, `trained`, `untrained`, `cut`?."""
    checked = Checked()
    for table in tables:
        lengths = pc.list_value_length(table["input_ids"]).to_numpy()
        trained = pc.list_flatten(table["trained"]).to_numpy()
        cut = np.zeros(len(lengths), dtype=bool)
        if "cut" in table.column_names:
            cut = table["cut"].to_numpy()
        ids = pc.list_flatten(table["input_ids"]).to_numpy()
        turns, broken = _check(ids, trained, lengths, rules=rules, cut=cut)
        unknown, of_bytes = (np.isin(ids, list(s)) for s in (rules.unknown, rules.byte_ids))
        # Differences of cumulative sums: `np.add.reduceat` is wrong for empty rows.
        ends = np.append(0, np.cumsum(lengths))
        sums = [np.diff(np.append(0, np.cumsum(c))[ends]) for c in (trained, unknown, of_bytes)]
        origins, kinds = table["origin"].to_pylist(), table["kind"].to_pylist()
        untrained = table["untrained"].to_numpy()
        columns = (lengths, sums[0], turns, untrained, cut, sums[1], sums[2])
        counted = zip(*(column.tolist() for column in columns), strict=True)
        for origin, kind, counts in zip(origins, kinds, counted, strict=True):
            checked.tally(origin, kind).add(*counts)
        for rule, rows in broken.items():
            if rows.any():
                places = [origins[row] for row in np.flatnonzero(rows)]
                checked.broken.setdefault(rule, []).extend(places)
    return checked


def check_no_broken_rules(broken: Mapping[str, Sequence[str]], *, where: str) -> None:
    """Raise UserError with every broken rule, its count and the first origins."""
    violations = [
        f"{len(places)} where {rule} (first: {', '.join(places[:EXAMPLES])})"
        for rule, places in broken.items()
        if places
    ]
    if violations:
        raise UserError(
            f"{where}: rows break a rule that holds for every row: {'; '.join(violations)}; "
            "correct the rows or the chat template (model.chat_template)"
        )


def as_facts(checked: Checked) -> list[dict[str, Any]]:
    """Return the tallies as plain data, one entry per source and kind."""
    return [
        {"source": source, "kind": kind, **vars(tally)}
        for (source, kind), tally in checked.tallies.items()
    ]


def total(checked: Checked) -> Tally:
    columns = zip(*(vars(tally).values() for tally in checked.tallies.values()), strict=True)
    return Tally(*map(sum, columns))


def stage_table(checked: Checked, *, title: str, rules: Rules) -> Group:
    """Return a table of the rows of a stage by source and kind, and the rules that were checked."""
    table = Table(
        title=title, box=box.SIMPLE, title_justify="left", padding=(0, 1, 0, 0), pad_edge=False
    )
    sources = dict.fromkeys(source for source, _ in checked.tallies)
    unique = len({PurePath(source).name for source in sources}) == len(sources)
    names = {source: PurePath(source).name if unique else source for source in sources}
    # On a narrow screen long names are folded, numbers are not.
    for heading, words in (("source", names.values()), ("kind", (k for _, k in checked.tallies))):
        widest = max(map(len, words), default=0)
        table.add_column(heading, overflow="fold", min_width=min(widest, 24), max_width=40)
    more = ["unknown"] * bool(rules.unknown) + ["bytes"] * bool(rules.byte_ids)
    headings = ("rows", "tokens", "trained", "turns", "not\ntrained", "cut", "left\nout", *more)
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for (source, kind), tally in checked.tallies.items():
        table.add_row(names[source], kind, *_cells(tally, more))
    over_all = total(checked)
    if len(checked.tallies) > 1:
        table.add_row("all", "", *_cells(over_all, more), style="bold")
    ended = over_all.turns - over_all.cut
    return Group(
        table,
        f"checked on every row: {rules.leading_bos} BOS at its start; {ended:,} of "
        f"{over_all.turns:,} trained turns end with a trained end-of-turn, {over_all.cut:,} are "
        "cut; none is empty; it begins with its generation prompt, token for token; of "
        f"{over_all.turns + over_all.untrained:,} assistant turns {over_all.untrained:,} are not "
        "trained\n",
    )


def _cells(tally: Tally, more: Sequence[str]) -> list[str]:
    def share(count: int) -> str:
        return f"{count / tally.tokens:.1%}" if tally.tokens else "-"

    counts = [tally.turns, tally.untrained, tally.cut, tally.left_out]
    extra = {"unknown": tally.unknown_tokens, "bytes": tally.byte_tokens}
    first = [f"{tally.rows:,}", f"{tally.tokens:,}", share(tally.trained_tokens)]
    return [*first, *(f"{count:,}" for count in counts), *(share(extra[name]) for name in more)]


def mix_table(rows: Mapping[str, int], tokens: Mapping[str, int]) -> Table:
    """Return a table of rows and tokens by kind, with each share next to the paper's."""
    title = "mix by kind (safety as a share of all rows, the others of the helpful ones)"
    table = Table(title=title, box=box.SIMPLE, title_justify="left")
    table.add_column("kind")
    for heading in ("rows", "tokens", "share", "paper"):
        table.add_column(heading, justify="right")
    for kind in sorted(rows, key=lambda k: -rows[k]):
        paper = f"{PAPER_SHARES[kind]:.1%}" if kind in PAPER_SHARES else "-"
        share = f"{share_of_kind(kind, rows):.1%}"
        table.add_row(kind, f"{rows[kind]:,}", f"{tokens[kind]:,}", share, paper)
    return table
