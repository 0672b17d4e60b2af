"""Flex attention over packed rows on CUDA, with a block mask from documents and branches.

Flex attention computes blocks of 128 x 128 tokens and skips blocks without a visible key. The block
mask is computed from the documents and branches of each block, so no L x L mask exists, and one
long row costs as much as its documents in separate rows. Importing this module registers it in
transformers as `FLEX`. Calls without `blocks` (generation, a plain forward) use torch's sdpa.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch.nn.attention.flex_attention import BlockMask
from torch.nn.functional import pad
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.flex_attention import flex_attention_forward
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from sft.packing.layout import BLOCK, PADDING, Batch

FLEX = "flex"
# Compiled kernels: for training and scoring, one row or several, each dtype. Beyond torch's default
# limit of 8 (recompile_limit) flex attention silently computes all scores without a kernel.
MAX_COMPILED_VARIANTS = 64


def block_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    blocks: Callable[[int | None], BlockMask] | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Compute attention through transformers' interface: query [R, H, L, D] -> [R, L, H, D].

    Args:
        blocks: returns the block mask of the rows for a layer's window.

    Raises:
        ValueError: the layer uses dropout, which transformers' flex attention does not support.
    """
    if blocks is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    device = query.device.type
    if torch.is_autocast_enabled(device):  # rotary embeddings return float32
        dtype = torch.get_autocast_dtype(device)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    mask = blocks(kwargs.get("sliding_window"))
    output, _ = flex_attention_forward(module, query, key, value, mask, **kwargs)
    return output, None


def block_mask(batch: Batch, window: int | None = None) -> BlockMask:
    """Return `sft.packing.layout.attention_mask` as a block mask [R, 1, L, L].

    Args:
        window: positions that a token attends to, including its own; None: all.
    """
    document, branch, place = (t.int() for t in (batch.document, batch.branch, batch.position_ids))
    # The last position outside the window, as a tensor: a number would be compiled in.
    horizon = torch.full_like(place, -1) if window is None else place - window

    def seen(
        row: torch.Tensor, head: torch.Tensor, query: torch.Tensor, key: torch.Tensor
    ) -> torch.Tensor:
        same = (document[row, query] == document[row, key]) & (document[row, key] != PADDING)
        own = (branch[row, key] == 0) | (branch[row, query] == branch[row, key])
        near = place[row, key] > horizon[row, query]
        return (query == key) | ((query >= key) & same & own & near)

    partial, full = _visible_blocks(document, branch, place, horizon)
    length = document.shape[1]
    return BlockMask.from_kv_blocks(
        *_block_indices(partial & ~full),
        *_block_indices(full),
        BLOCK_SIZE=BLOCK,
        mask_mod=seen,
        seq_lengths=(length, length),
    )


def _visible_blocks(
    document: torch.Tensor, branch: torch.Tensor, place: torch.Tensor, horizon: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return bool [R, query blocks, key blocks]: whether some keys are visible, whether all are.

    Documents and branches never decrease along a row.
    """

    def cells(values: torch.Tensor, beyond: int) -> torch.Tensor:
        filled = pad(values, (0, -values.shape[1] % BLOCK), value=beyond)
        return torch.unflatten(filled, 1, (-1, BLOCK))

    document, branch = cells(document, PADDING), cells(branch, 0)
    place, horizon = cells(place, 0), cells(horizon, -1)
    none = document == PADDING
    first = document.masked_fill(none, torch.iinfo(torch.int32).max).amin(2)
    last, low, high = document.amax(2), branch.amin(2), branch.amax(2)
    full = ~none.any(2)

    def query(values: torch.Tensor) -> torch.Tensor:
        return values[:, :, None]

    def key(values: torch.Tensor) -> torch.Tensor:
        return values[:, None, :]

    index = torch.arange(first.shape[1], device=first.device)[None]
    before = query(index) > key(index)
    meet = before & (query(first) <= key(last)) & (key(first) <= query(last))
    one = meet & query(first == last) & key(first == last)  # the same document, alone in both
    elsewhere = key(low > 0) & (query(low) > key(high))
    past = key(place.amax(2)) <= query(horizon.amin(2))
    some = (meet & ~(one & (elsewhere | past))) | (query(index) == key(index))
    same = key(low == high) & query(low == high) & (query(low) == key(low))
    near = key(place.amin(2)) > query(horizon.amax(2))
    return some, one & query(full) & key(full) & (key(high == 0) | same) & near


def _block_indices(blocks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the number of key blocks of each query block [R, 1, blocks] and their indices."""
    order = blocks.int().argsort(dim=-1, descending=True, stable=True)
    return blocks.sum(-1, dtype=torch.int32)[:, None], order.int()[:, None].contiguous()


AttentionInterface.register(FLEX, block_attention)
AttentionMaskInterface.register(FLEX, sdpa_mask)
