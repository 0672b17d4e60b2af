"""Micro-batches as forward passes of packed rows of a bounded number of tokens.

A micro-batch of any number of rows takes the memory of one pass, and short rows fill the tokens
that long ones leave.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import PartialState

from sft.distributed.sharding import sharded
from sft.packing.layout import Batch, Document, RowKind, Segment, best_fit, lay_out
from sft.packing.logprobs import batch_tokens, row_layout


@dataclass(frozen=True)
class Layout:
    """The layout of a micro-batch in rows and passes."""

    packing: bool  # whether a row may hold several documents
    rows: RowKind  # how the model reads rows (see `sft.packing.layout.lay_out`)
    pass_tokens: int  # of one forward and backward pass, unless a document is longer

    @classmethod
    def of(cls, model: Any, *, packing: bool) -> "Layout":
        """Return the layout for a model on the device of this process."""
        tokens = pass_tokens(PartialState().device, sharded=sharded())
        return cls(packing, row_layout(model), tokens)


def pass_tokens(device: torch.device, *, sharded: bool) -> int:
    """Return the tokens of one forward and backward pass."""
    # Half of a scoring forward, since activations are stored. Sharded models (FSDP, DeepSpeed) take
    # a micro-batch in one pass, because all processes must gather weights equally often.
    return sys.maxsize if sharded else batch_tokens(device) // 2


def collate_chats(examples: Sequence[dict[str, Any]], *, layout: Layout) -> dict[str, Any]:
    """Return the chats of a micro-batch as packed rows; `num_items` counts trained tokens."""

    def inputs(rows: Sequence[dict[str, Any]], batch: Batch) -> dict[str, Any]:
        return {"rows": batch, "num_items": torch.tensor(len(batch.target))}

    return in_passes(examples, chat_document, inputs, layout=layout)


def chat_document(row: dict[str, Any]) -> Document:
    """Return a token row as a trunk, with the branches of `sft.packing.shared_prefix` if any."""
    ids, trained, lengths = row["input_ids"], row["trained"], row.get("branches") or ()
    at = len(ids) - sum(lengths)
    trunk, branches = Segment(ids[:at], trained[:at]), []
    for length in lengths:
        branches.append(Segment(ids[at : at + length], trained[at : at + length]))
        at += length
    return Document(trunk, tuple(branches))


def in_passes(
    examples: Sequence[dict[str, Any]],
    document: Callable[[dict[str, Any]], Document],
    inputs: Callable[[Sequence[dict[str, Any]], Batch], dict[str, Any]],
    *,
    layout: Layout,
) -> dict[str, Any]:
    """Split a micro-batch into forward passes of a bounded number of tokens.

    Args:
        inputs: returns the inputs of `compute_loss`, with `rows` and `num_items`.

    Returns:
        `passes`, the sum of `num_items`, and the two keys by which transformers counts tokens.
    """
    passes = []
    documents = [document(example) for example in examples]
    for part in best_fit([len(d) for d in documents], row_length=layout.pass_tokens):
        parts = [documents[i] for i in part]
        batch = lay_out(parts, packing=layout.packing, rows=layout.rows)
        passes.append(inputs([examples[i] for i in part], batch))
    rows: list[Batch] = [each["rows"] for each in passes]
    return {
        "passes": passes,
        "num_items": torch.stack([each["num_items"] for each in passes]).sum(),
        "input_ids": torch.cat([batch.input_ids.flatten() for batch in rows]),
        "attention_mask": torch.cat([(batch.document >= 0).flatten() for batch in rows]),
    }
