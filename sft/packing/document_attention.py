"""Attention document by document, on devices where small kernels are cheap.

Each document's trunk and branches are separate calls of torch's sdpa, without a mask over rows or
padding; the cost is the sum of the documents' squared lengths. Importing this module registers it
in transformers as `DOCUMENTS`. Calls without `documents` (generation, a plain forward) use sdpa.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from sft.errors import UserError
from sft.packing.layout import Span
from sft.packing.tiled_attention import pieces, tiled_attention

DOCUMENTS = "documents"


def document_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    documents: Sequence[Span] | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Compute attention through transformers' interface: query [R, H, L, D] -> [R, L, H, D].

    Args:
        documents: the spans of a `sft.packing.layout.Batch`; the output is zero outside of them.

    Raises:
        UserError: the layer needs an option of attention that is not implemented.
    """
    if documents is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    for name in ("softcap", "s_aux", "position_bias"):
        if kwargs.get(name) is not None:
            raise UserError(
                f"attention with {name} is not computed document by document; set "
                "model.attn_implementation=eager"
            )
    window = kwargs.get("sliding_window")
    if torch.is_autocast_enabled(query.device.type):  # rotary embeddings return float32
        dtype = torch.get_autocast_dtype(query.device.type)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    options = {
        "dropout_p": kwargs.get("dropout", 0.0),
        "scale": kwargs.get("scaling"),
        "enable_gqa": query.shape[1] != key.shape[1],
    }
    near = window is not None and window < key.shape[2]
    tiled = not near and not options["dropout_p"] and _tiles_are_faster(query)
    rows = []
    for r in range(query.shape[0]):
        own, keys, values = (t[r : r + 1] for t in (query, key, value))
        spans = [span for span in documents if span.row == r]
        if tiled:
            seen = pieces(spans, before=key.shape[2] - query.shape[2])
            rows.append(tiled_attention(own, keys, values, seen, scale=options["scale"]))
        else:
            rows.append(_row([own, keys, values], spans, window=window, options=options))
    return (torch.cat(rows) if len(rows) > 1 else rows[0]).transpose(1, 2), None


def _tiles_are_faster(query: torch.Tensor) -> bool:
    # torch's CPU kernel is slower than `sft.packing.tiled_attention` in bfloat16 only.
    return query.device.type == "cpu" and query.dtype == torch.bfloat16


def _row(
    states: Sequence[torch.Tensor],
    spans: Sequence[Span],
    *,
    window: int | None,
    options: dict[str, Any],
) -> torch.Tensor:
    """Compute the attention of one row [1, H, L, D], whose `spans` are in order, without gaps."""
    lengths = [n for span in spans for n in (span.trunk, *span.branches)]
    query, key, value = states
    padding = query.shape[2] - sum(lengths)
    # Keys of a cached prefix (see `sft.packing.kv_cache`), visible to every document.
    before = key.shape[2] - query.shape[2]
    shared = [key[:, :, :before], value[:, :, :before]]
    rest = (query, key[:, :, before:], value[:, :, before:])
    # One split: the backward pass of each slice would allocate a gradient of the full row.
    parts = [state.split([*lengths, padding], dim=2) for state in rest]
    pieces = list(zip(*parts, strict=True))
    outputs = []
    at = 0
    for span in spans:
        own, *trunk = pieces[at]
        if before:
            trunk = [torch.cat(both, 2) for both in zip(shared, trunk, strict=True)]
        outputs.append(_attend(own, *trunk, window=window, options=options))
        for branch in pieces[at + 1 : at + 1 + len(span.branches)]:
            joined = [torch.cat(both, 2) for both in zip(trunk, branch[1:], strict=True)]
            outputs.append(_attend(branch[0], *joined, window=window, options=options))
        at += 1 + len(span.branches)
    outputs.append(query.new_zeros(*query.shape[:2], padding, value.shape[3]))
    return torch.cat(outputs, dim=2)


def _attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    window: int | None,
    options: dict[str, Any],
) -> torch.Tensor:
    """Compute causal attention of queries, which are the last tokens, within `window` tokens."""
    before = key.shape[2] - query.shape[2]
    if not before and (window is None or key.shape[2] <= window):
        return scaled_dot_product_attention(query, key, value, is_causal=True, **options)
    ones = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool, device=query.device)
    mask = ones.tril(before)
    if window is not None:
        mask &= ones.triu(before - window + 1)
    return scaled_dot_product_attention(query, key, value, attn_mask=mask, **options)


AttentionInterface.register(DOCUMENTS, document_attention)
AttentionMaskInterface.register(DOCUMENTS, sdpa_mask)
