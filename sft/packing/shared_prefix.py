"""Rows of one chat with a common prefix as a trunk with a branch for each row.

`data.turns: each` makes a row for every assistant turn, which repeats the chat up to it.
Consecutive rows of one origin become a document of `sft.packing.layout`, so that their common
prefix is computed once. For the rows "a b | X", "a b c | Y" and "a b c d | Z" (tokens after | are
trained) and a limit of 9 tokens:

    input_ids  a b X c Y c d Z
    trained    0 0 1 0 1 0 0 1
    branches   1 2 3            (so "a b" is the trunk)
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset

CHUNK = 4096  # documents held as Python lists, which take more memory than Arrow arrays
SCHEMA = pa.schema(
    {
        "origin": pa.string(),
        "input_ids": pa.list_(pa.int32()),
        "trained": pa.list_(pa.bool_()),
        "branches": pa.list_(pa.int32()),
    }
)


@dataclass(frozen=True)
class _Row:
    origin: str
    ids: np.ndarray
    trained: np.ndarray

    @property
    def prompt(self) -> int:
        """The number of tokens before the first trained one."""
        return int(self.trained.argmax()) if self.trained.any() else len(self.trained)


def share_prefixes(rows: Dataset, *, limit: int) -> Dataset:
    """Return rows as documents of at most `limit` tokens, in order.

    Args:
        rows: columns `origin`, `input_ids`, `trained`.

    Returns:
        The same columns and `branches`, the lengths of the branches at the end of `input_ids`;
        empty for a document of one row.
    """
    documents = _documents(rows, limit=limit)
    tables = []
    while some := list(islice(documents, CHUNK)):
        tables.append(pa.Table.from_pylist(some, SCHEMA))
    return Dataset(pa.concat_tables(tables)) if tables else Dataset(SCHEMA.empty_table())


def _documents(rows: Iterable[Any], *, limit: int) -> Iterator[dict[str, Any]]:
    read = (
        _Row(row["origin"], np.asarray(row["input_ids"]), np.asarray(row["trained"], dtype=bool))
        for row in rows
    )
    for _, chat in groupby(read, key=lambda row: row.origin):
        for group, trunk in _groups(list(chat), limit=limit):
            yield _document(group, trunk)


def _groups(rows: Sequence[_Row], *, limit: int) -> list[tuple[list[_Row], int]]:
    """Return groups of consecutive rows with the length of their common prefix."""
    groups: list[tuple[list[_Row], int]] = []
    for row in reversed(rows):  # the last row has the longest prompt
        if groups:
            group, trunk = groups[-1]
            shared = _common_length(row.ids[: row.prompt], group[0].ids[:trunk])
            size = sum(len(each.ids) - shared for each in (row, *group)) + shared
            # Tokens that the group saves must grow: a shorter trunk lengthens the other branches.
            if size <= limit and len(group) * shared > (len(group) - 1) * trunk:
                groups[-1] = ([row, *group], shared)
                continue
        groups.append(([row], row.prompt))
    return groups[::-1]


def _common_length(a: np.ndarray, b: np.ndarray) -> int:
    """Return the length of the common prefix of two sequences."""
    length = min(len(a), len(b))
    differ = np.flatnonzero(a[:length] != b[:length])
    return int(differ[0]) if len(differ) else length


def _document(group: Sequence[_Row], trunk: int) -> dict[str, Any]:
    first = group[0]
    if len(group) == 1:
        ids, trained, branches = first.ids, first.trained, []
    else:
        ids = np.concatenate([first.ids[:trunk], *(row.ids[trunk:] for row in group)])
        trained = np.concatenate([first.trained[:trunk], *(row.trained[trunk:] for row in group)])
        branches = [len(row.ids) - trunk for row in group]
    return {"origin": first.origin, "input_ids": ids, "trained": trained, "branches": branches}
