"""Attention of packed rows in bfloat16 on a CPU, as matrix products of a tile of queries.

torch's own kernel for the CPU multiplies small blocks one by one; in bfloat16 it takes 1.5 to 2
times as long as this, its backward pass with it (`python tests/benchmarks/kernel_speed.py`).
Here the scores of some queries against all keys that they see are one product, small enough for the
caches; like the kernel, the backward pass computes probabilities again. Scores and probabilities
are rounded to the inputs' dtype: the output and the gradient by queries lie up to twice as far from
exact attention as the kernel's, those by keys and values no further.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from sft.packing.layout import Span

# Queries of one tile; scores of one tile over all heads, and what queries it keeps in any case.
TILE, SCORES, FEWEST = 128, 2**20, 16


@dataclass(frozen=True)
class Piece:
    """A trunk or a branch: its tokens in the row, and the keys they see, their own at the end."""

    queries: slice
    keys: tuple[slice, ...]


def pieces(spans: Sequence[Span], *, before: int) -> list[Piece]:
    """Of the documents of one row, which lie in it in order, without gaps.

    Args:
        before: keys that stand before the row's own and are seen by every document.
    """
    found, at = [], 0
    for span in spans:
        seen = (slice(0, before),) if before else ()
        for number, length in enumerate((span.trunk, *span.branches)):
            own = slice(before + at, before + at + length)
            found.append(Piece(slice(at, at + length), (*seen, own)))
            if number == 0:
                seen = (*seen, own)
            at += length
    return found


def tiled_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    row: Sequence[Piece],
    *,
    scale: float | None = None,
) -> torch.Tensor:
    """Causal attention within each piece of one row.

    Args:
        query: [1, H, L, D].
        key, value: [1, G, S, D] and [1, G, S, E], G dividing H; head h reads group h // (H / G).
        row: the row's pieces; tokens outside of them get zeros.
        scale: of the scores, 1 / sqrt(D) where None.

    Returns:
        [1, H, L, E], laid out in memory as [1, L, H, E].
    """
    given = query.shape[-1] ** -0.5 if scale is None else scale
    out: torch.Tensor = _Tiled.apply(query, key, value, tuple(row), given)  # type: ignore[no-untyped-call]
    return out


class _Tiled(torch.autograd.Function):
    """softmax(scale * Q K^T) V, and in the backward pass dS = P * (dP - rowsum(P * dP))."""

    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        row: tuple[Piece, ...],
        scale: float,
    ) -> torch.Tensor:
        ctx.save_for_backward(query, key, value)
        ctx.row, ctx.scale = row, scale
        out = _like(query, value.shape[-1]).zero_()
        groups = key.shape[1]
        room = _room(query, row)
        for piece in row:
            keys, values = _gather(key, piece), _gather(value, piece)
            for at, seen in _tiles(query, piece):
                ours = _grouped(query, at, groups)
                shares = _shares(ours, keys[:, :seen], at, scale, room)
                _place(out, at, shares @ values[:, :seen])
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:
        query, key, value = ctx.saved_tensors
        by_query = _like(query, query.shape[-1]).zero_()
        # Added up over tiles and branches, so in float32 at least.
        exact = torch.promote_types(key.dtype, torch.float32)
        by_key, by_value = (t.new_zeros(t.shape[1:], dtype=exact) for t in (key, value))
        groups = key.shape[1]
        room, other = _room(query, ctx.row), _room(query, ctx.row)
        for piece in ctx.row:
            keys, values = _gather(key, piece), _gather(value, piece)
            key_sum, value_sum = (t.new_zeros(t.shape, dtype=exact) for t in (keys, values))
            for at, seen in _tiles(query, piece):
                ours, slope = _grouped(query, at, groups), _grouped(grad, at, groups)
                shares = _shares(ours, keys[:, :seen], at, ctx.scale, room)
                value_sum[:, :seen] += shares.transpose(1, 2) @ slope
                by_share = other[: shares.numel()].view(shares.shape)
                torch.bmm(slope, values[:, :seen].transpose(1, 2), out=by_share)
                by_score = torch._softmax_backward_data(by_share, shares, -1, shares.dtype)
                by_score *= ctx.scale
                key_sum[:, :seen] += by_score.transpose(1, 2) @ ours
                _place(by_query, at, by_score @ keys[:, :seen])
            _scatter(by_key, piece, key_sum)
            _scatter(by_value, piece, value_sum)
        return by_query, by_key.to(key.dtype)[None], by_value.to(value.dtype)[None], None, None


def _like(states: torch.Tensor, width: int) -> torch.Tensor:
    """Room for [1, H, L, width], laid out as [1, L, H, width]: what the projections read."""
    one, heads, length, _ = states.shape
    return states.new_empty((one, length, heads, width)).transpose(1, 2)


def _room(query: torch.Tensor, row: Sequence[Piece]) -> torch.Tensor:
    """Room for the scores of the largest tile."""
    heads = query.shape[1]
    sizes = [
        (at.stop - at.start) * seen * heads for piece in row for at, seen in _tiles(query, piece)
    ]
    return query.new_empty(max(sizes, default=0))


def _tiles(query: torch.Tensor, piece: Piece) -> Iterator[tuple[slice, int]]:
    """Queries of each tile of a piece, and how many of its keys the last of them sees."""
    start, stop = piece.queries.start, piece.queries.stop
    total = sum(keys.stop - keys.start for keys in piece.keys)
    size = min(TILE, max(FEWEST, SCORES // (query.shape[1] * total)))
    for at in range(start, stop, size):
        end = min(at + size, stop)
        yield slice(at, end), total - (stop - end)


def _gather(states: torch.Tensor, piece: Piece) -> torch.Tensor:
    """Keys or values that a piece sees, [G, S, D]."""
    parts = [states[0, :, keys] for keys in piece.keys]
    return parts[0] if len(parts) == 1 else torch.cat(parts, 1)


def _scatter(total: torch.Tensor, piece: Piece, gradient: torch.Tensor) -> None:
    """Add what `_gather` took to where it was taken from."""
    lengths = [keys.stop - keys.start for keys in piece.keys]
    for keys, part in zip(piece.keys, gradient.split(lengths, 1), strict=True):
        total[:, keys] += part


def _grouped(states: torch.Tensor, at: slice, groups: int) -> torch.Tensor:
    """Rows of a tile by the keys that their heads share: [1, H, L, D] -> [G, H / G * n, D]."""
    return states[0, :, at].reshape(groups, -1, states.shape[-1])


def _place(states: torch.Tensor, at: slice, tile: torch.Tensor) -> None:
    """Write [G, H / G * n, D] where `_grouped` reads it."""
    states[0, :, at] = tile.view(states.shape[1], -1, states.shape[-1])


def _shares(
    ours: torch.Tensor, keys: torch.Tensor, at: slice, scale: float, room: torch.Tensor
) -> torch.Tensor:
    """softmax of the scores [G, H / G * n, S]; of the last n keys query i sees i + 1."""
    shape = (len(ours), ours.shape[1], keys.shape[1])
    scores = room[: ours.shape[0] * ours.shape[1] * keys.shape[1]].view(shape)
    torch.baddbmm(scores, ours, keys.transpose(1, 2), beta=0, alpha=scale, out=scores)
    size = at.stop - at.start
    unseen = scores.new_full((size, size), -torch.inf).triu(1)
    scores.view(len(ours), -1, size, shape[2])[..., -size:] += unseen
    return torch.softmax(scores, -1, out=scores)
