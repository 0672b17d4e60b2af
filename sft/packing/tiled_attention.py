"""Attention of packed rows in bfloat16 on a CPU, as matrix products of a tile of queries.

The scores of a tile of queries against all their visible keys are one product that fits the caches;
the backward pass recomputes probabilities. torch's CPU kernel multiplies small blocks one by one
and takes 1.5 to 2 times as long, forward and backward (`python tests/benchmarks/kernel_speed.py`).
Scores and probabilities are rounded to the inputs' dtype: the error of the output and of the
gradient by queries is up to twice the kernel's, those by keys and values are no larger.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from sft.packing.layout import Span

# Most queries of a tile; most scores of a tile over all heads, to fit a CPU's caches; and the
# fewest queries of a tile, also where a long row has more scores.
MAX_QUERIES, MAX_SCORES, MIN_QUERIES = 128, 2**20, 16


@dataclass(frozen=True)
class Piece:
    """A trunk or a branch: its queries in the row and their visible keys, its own keys last."""

    queries: slice
    keys: tuple[slice, ...]


def pieces(spans: Sequence[Span], *, before: int) -> list[Piece]:
    """Return the trunks and branches of the documents of one row, in order and without gaps.

    Args:
        before: keys of a cached prefix before the row's own, visible to every document.
    """
    found, at = [], 0
    for span in spans:
        visible = (slice(0, before),) if before else ()
        for number, length in enumerate((span.trunk, *span.branches)):
            own = slice(before + at, before + at + length)
            found.append(Piece(slice(at, at + length), (*visible, own)))
            if number == 0:
                visible = (*visible, own)
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
    """Compute causal attention within each piece of one row.

    Args:
        query: [1, H, L, D].
        key, value: [1, G, S, D] and [1, G, S, E], G dividing H; head h reads group h // (H / G).
        row: the row's pieces; the output is zero outside of them.
        scale: factor of the scores; None: 1 / sqrt(D).

    Returns:
        [1, H, L, E] with the memory layout of [1, L, H, E].
    """
    factor = query.shape[-1] ** -0.5 if scale is None else scale
    out: torch.Tensor = _Tiled.apply(query, key, value, tuple(row), factor)  # type: ignore[no-untyped-call]
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
        out = _zeros_like(query, value.shape[-1])
        groups = key.shape[1]
        buffer = _score_buffer(query, row)
        for piece in row:
            keys, values = _gather(key, piece), _gather(value, piece)
            for tile, visible in _tiles(query, piece):
                queries = _read_tile(query, tile, groups)
                probs = _probabilities(queries, keys[:, :visible], tile, scale, buffer)
                _write_tile(out, tile, probs @ values[:, :visible])
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:
        query, key, value = ctx.saved_tensors
        by_query = _zeros_like(query, query.shape[-1])
        # Sums over tiles and branches, so in float32 at least.
        exact = torch.promote_types(key.dtype, torch.float32)
        by_key, by_value = (t.new_zeros(t.shape[1:], dtype=exact) for t in (key, value))
        groups = key.shape[1]
        buffer, grad_buffer = _score_buffer(query, ctx.row), _score_buffer(query, ctx.row)
        for piece in ctx.row:
            keys, values = _gather(key, piece), _gather(value, piece)
            key_sum, value_sum = (t.new_zeros(t.shape, dtype=exact) for t in (keys, values))
            for tile, visible in _tiles(query, piece):
                queries, by_output = (_read_tile(t, tile, groups) for t in (query, grad))
                probs = _probabilities(queries, keys[:, :visible], tile, ctx.scale, buffer)
                value_sum[:, :visible] += probs.transpose(1, 2) @ by_output
                by_prob = grad_buffer[: probs.numel()].view(probs.shape)
                torch.bmm(by_output, values[:, :visible].transpose(1, 2), out=by_prob)
                by_score = torch._softmax_backward_data(by_prob, probs, -1, probs.dtype)
                by_score *= ctx.scale
                key_sum[:, :visible] += by_score.transpose(1, 2) @ queries
                _write_tile(by_query, tile, by_score @ keys[:, :visible])
            _scatter(by_key, piece, key_sum)
            _scatter(by_value, piece, value_sum)
        return by_query, by_key.to(key.dtype)[None], by_value.to(value.dtype)[None], None, None


def _zeros_like(states: torch.Tensor, width: int) -> torch.Tensor:
    """Return zeros [1, H, L, width] in the memory layout [1, L, H, width] of the projections."""
    one, heads, length, _ = states.shape
    return states.new_zeros((one, length, heads, width)).transpose(1, 2)


def _score_buffer(query: torch.Tensor, row: Sequence[Piece]) -> torch.Tensor:
    """Return memory for the scores of the largest tile."""
    tiles = [tile for piece in row for tile in _tiles(query, piece)]
    sizes = [(tile.stop - tile.start) * visible for tile, visible in tiles]
    return query.new_empty(max(sizes, default=0) * query.shape[1])


def _tiles(query: torch.Tensor, piece: Piece) -> Iterator[tuple[slice, int]]:
    """Yield the queries of each tile, and the number of keys visible to the last of them."""
    start, stop = piece.queries.start, piece.queries.stop
    total = sum(keys.stop - keys.start for keys in piece.keys)
    size = min(MAX_QUERIES, max(MIN_QUERIES, MAX_SCORES // (query.shape[1] * total)))
    for at in range(start, stop, size):
        end = min(at + size, stop)
        yield slice(at, end), total - (stop - end)


def _gather(states: torch.Tensor, piece: Piece) -> torch.Tensor:
    """Return the keys or values visible to a piece [G, S, D]."""
    parts = [states[0, :, keys] for keys in piece.keys]
    return parts[0] if len(parts) == 1 else torch.cat(parts, 1)


def _scatter(total: torch.Tensor, piece: Piece, gradient: torch.Tensor) -> None:
    """Add the gradient of a piece's keys or values [G, S, D] to the sum over the row."""
    lengths = [keys.stop - keys.start for keys in piece.keys]
    for keys, part in zip(piece.keys, gradient.split(lengths, 1), strict=True):
        total[:, keys] += part


def _read_tile(states: torch.Tensor, tile: slice, groups: int) -> torch.Tensor:
    """Return a tile with the heads of a group as rows: [1, H, L, D] -> [G, H / G * n, D]."""
    return states[0, :, tile].reshape(groups, -1, states.shape[-1])


def _write_tile(states: torch.Tensor, tile: slice, values: torch.Tensor) -> None:
    """Write values [G, H / G * n, D] to the place that `_read_tile` reads."""
    states[0, :, tile] = values.view(states.shape[1], -1, states.shape[-1])


def _probabilities(
    queries: torch.Tensor, keys: torch.Tensor, tile: slice, scale: float, buffer: torch.Tensor
) -> torch.Tensor:
    """Return the softmax of the scores [G, H / G * n, S], with a causal mask on the last n keys."""
    shape = torch.Size((len(queries), queries.shape[1], keys.shape[1]))
    scores = buffer[: shape.numel()].view(shape)
    torch.baddbmm(scores, queries, keys.transpose(1, 2), beta=0, alpha=scale, out=scores)
    size = tile.stop - tile.start
    causal = scores.new_full((size, size), -torch.inf).triu(1)
    scores.view(len(queries), -1, size, shape[2])[..., -size:] += causal
    return torch.softmax(scores, -1, out=scores)
