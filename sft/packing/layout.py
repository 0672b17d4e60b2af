"""Trunk-and-branch rows: one layout for SFT packing, preference pairs and multiple choice.

A row holds documents; a document is a trunk (a prefix) with zero or more branches. A token attends,
causally, to its own trunk and its own branch only. A branch's positions continue from the trunk's
end, and its first token is predicted by the trunk's last.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import torch

PADDING = -1
RowKind = Literal["flat", "blocks", "masked", "separate"]
FLAT_BUCKET = 8  # matrix kernels are fastest on multiples of 8
BLOCK = 128  # tokens of a block of flex attention, torch's default


@dataclass(frozen=True)
class Segment:
    """Token ids and, for each, whether it is a prediction target."""

    ids: Sequence[int]
    scored: Sequence[bool]


@dataclass(frozen=True)
class Document:
    """A trunk and its branches: a chat (no branch), a pair (two), a question (one a choice)."""

    trunk: Segment
    branches: tuple[Segment, ...] = ()

    def __len__(self) -> int:
        return len(self.trunk.ids) + sum(len(b.ids) for b in self.branches)


@dataclass(frozen=True)
class Span:
    """The place of a document: `trunk` tokens of row `row` from `start` on, then its branches."""

    row: int
    start: int
    trunk: int
    branches: tuple[int, ...]


@dataclass(frozen=True)
class Batch:
    """Packed rows: R rows of L tokens, N scored tokens, S scored sequences.

    For one row of two documents, trunk `a b` with branches `c` and `d e`, and trunk `f g`:

        input_ids     a  b  c  d  e  f  g  0
        position_ids  0  1  2  2  3  0  1  0
        document      0  0  0  0  0  1  1 -1
        branch        0  0  1  2  2  0  0  0
        source        1  1  3  5          (b predicts c and d, d predicts e, f predicts g)
        target        c  d  e  g
        sequence      0  1  1  2
        spans         (row 0, start 0, trunk 2, branches 1 2), (row 0, start 5, trunk 2)
    """

    input_ids: torch.Tensor  # [R, L] int64
    position_ids: torch.Tensor  # [R, L] int64, restarts with each document
    document: torch.Tensor  # [R, L] int64, index within the row, PADDING where empty
    branch: torch.Tensor  # [R, L] int64, 0 for the trunk
    source: torch.Tensor  # [N] int64, flat index (r * L + c) of the state that predicts
    target: torch.Tensor  # [N] int64, the token it predicts
    sequence: torch.Tensor  # [N] int64, which scored sequence the token belongs to
    num_sequences: int  # S: a document counts once, or once for each of its branches
    spans: tuple[Span, ...]  # of the documents, by row and place

    def to(self, device: torch.device | str) -> "Batch":
        """Return the batch on `device`."""
        moved: dict[str, Any] = {
            f.name: value.to(device)
            for f in fields(self)
            if isinstance(value := getattr(self, f.name), torch.Tensor)
        }
        return replace(self, **moved)

    @property
    def num_tokens(self) -> int:
        """The number of tokens without padding."""
        return sum(span.trunk + sum(span.branches) for span in self.spans)


def best_fit(lengths: Sequence[int], *, row_length: int) -> list[list[int]]:
    """Return best-fit-decreasing bins of indices, each with a sum of at most `row_length`.

    An item longer than `row_length` gets its own bin. Deterministic: ties go to the first bin.
    """
    bins: list[list[int]] = []
    free: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        length = lengths[index]
        fits = [b for b, tokens in enumerate(free) if tokens >= length]
        if fits:
            tightest = min(fits, key=free.__getitem__)
            bins[tightest].append(index)
            free[tightest] -= length
        else:
            bins.append([index])
            free.append(row_length - length)
    return bins


def pack(
    documents: Sequence[Document], *, row_length: int, bucket: int = 64, pad_id: int = 0
) -> Batch:
    """Lay documents out in rows of about `row_length` tokens.

    Sequences are numbered in the order of `documents`. `row_length=0` gives each document its own
    row.

    Raises:
        ValueError: a branch or a trunk is empty where a scored token needs a predecessor.
    """
    firsts, num_sequences = _number_sequences(documents)
    rows = best_fit([len(d) for d in documents], row_length=row_length)
    width = max((sum(len(documents[i]) for i in row) for row in rows), default=0)
    # One width in multiples of `bucket`, for devices that compile a kernel for each shape.
    width = max(bucket, -(-width // bucket) * bucket)
    shape = (len(rows), width)
    input_ids, position_ids, document, branch = (
        torch.full(shape, value, dtype=torch.int64) for value in (pad_id, 0, PADDING, 0)
    )
    scored: list[tuple[int, int, int]] = []  # (source, target, sequence)
    spans: list[Span] = []
    for r, row in enumerate(rows):
        at = 0
        for d, index in enumerate(row):
            doc = documents[index]
            spans.append(Span(r, at, len(doc.trunk.ids), tuple(len(b.ids) for b in doc.branches)))
            trunk_end = at + len(doc.trunk.ids)
            for b, segment in enumerate((doc.trunk, *doc.branches)):
                n = len(segment.ids)
                start = 0 if b == 0 else len(doc.trunk.ids)
                input_ids[r, at : at + n] = torch.as_tensor(segment.ids, dtype=torch.int64)
                position_ids[r, at : at + n] = torch.arange(start, start + n)
                document[r, at : at + n] = d
                branch[r, at : at + n] = b
                owner = firsts[index] + max(b - 1, 0)
                for i in range(n):
                    if segment.scored[i]:
                        before = trunk_end - 1 if b > 0 and i == 0 else at + i - 1
                        scored.append((r * width + before, segment.ids[i], owner))
                at += n
    source, target, sequence = (
        torch.tensor(scored, dtype=torch.int64).view(len(scored), 3).T.contiguous()
    )
    return Batch(
        *(input_ids, position_ids, document, branch, source, target, sequence),
        num_sequences=num_sequences,
        spans=tuple(spans),
    )


def lay_out(documents: Sequence[Document], *, packing: bool, rows: RowKind) -> Batch:
    """Return the rows of a micro-batch for training or scoring; sequences keep their numbers.

    Args:
        packing: whether a row may hold several documents.
        rows: how the model reads rows. "flat": attention document by document, in one row without
            padding. "blocks": flex attention, in one row too. "masked": attention over full rows,
            none longer than the longest document. "separate": a row for each branch with its trunk,
            for layers that carry state from one document or branch to the next.
    """
    if rows == "separate":
        return pack([single for d in documents for single in unshared(d)], row_length=0)
    if not packing:
        return pack(documents, row_length=0)
    if rows in ("flat", "blocks"):
        bucket = FLAT_BUCKET if rows == "flat" else BLOCK
        return pack(documents, row_length=sum(map(len, documents)), bucket=bucket)
    return pack(documents, row_length=max(map(len, documents)))


def unshared(document: Document) -> list[Document]:
    """Return a document for each branch with the trunk, which only the first one scores."""
    trunk = document.trunk
    if not document.branches:
        return [document]
    unscored = Segment(trunk.ids, [False] * len(trunk.ids))
    trunks = (trunk, *[unscored] * (len(document.branches) - 1))
    return [
        Document(Segment([*before.ids, *branch.ids], [*before.scored, *branch.scored]))
        for before, branch in zip(trunks, document.branches, strict=True)
    ]


def _number_sequences(documents: Sequence[Document]) -> tuple[list[int], int]:
    firsts, count = [], 0
    for index, doc in enumerate(documents):
        if not doc.trunk.ids:
            raise ValueError(f"document {index} has an empty trunk; put its first token there")
        if doc.trunk.scored[0]:
            raise ValueError(f"document {index} scores its first token, which no token predicts")
        if any(not b.ids for b in doc.branches):
            raise ValueError(f"document {index} has an empty branch; drop it before packing")
        firsts.append(count)
        count += max(1, len(doc.branches))
    return firsts, count


def attention_mask(batch: Batch, *, window: int | None = None) -> torch.Tensor:
    """Return a bool mask [R, 1, L, L], true where a query (row) may attend to a key (column).

    Args:
        window: positions that a token attends to, including its own; None: all.
    """
    length = batch.input_ids.shape[1]
    device = batch.input_ids.device
    index = torch.arange(length, device=device)
    causal = index[:, None] >= index[None, :]
    same = batch.document[:, :, None] == batch.document[:, None, :]
    real = (batch.document != PADDING)[:, None, :]
    trunk_or_own = (batch.branch[:, None, :] == 0) | (
        batch.branch[:, :, None] == batch.branch[:, None, :]
    )
    seen = causal & same & real & trunk_or_own
    if window is not None:
        place = batch.position_ids
        seen = seen & (place[:, :, None] - place[:, None, :] < window)
    # Padding attends to itself: an empty softmax row would be NaN.
    return (seen | torch.eye(length, dtype=torch.bool, device=device))[:, None]
