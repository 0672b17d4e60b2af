"""KV-cache layers: one that writes in place, and one that repeats a prefix before every row.

`preallocated_cache` serves generation; `read_prefix` computes the common prefix of many rows, such
as few-shot examples, once. Both are for inference only.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer


def attends_to_all_tokens(config: Any) -> bool:
    """Return whether every layer attends to all earlier tokens and keeps no other state."""
    return all(type(layer) is DynamicLayer for layer in DynamicCache(config=config).layers)


@dataclass(frozen=True)
class Prefix:
    """A cache of `length` tokens that any number of rows continue from."""

    cache: DynamicCache
    length: int


def read_prefix(model: Any, ids: Sequence[int]) -> Prefix:
    """Return a cache of `ids`, for a model that attends to all tokens.

    Call it within `sft.distributed.fsdp_forward.eval_without_grad`.
    """
    cache = DynamicCache(config=model.config)
    cache.layers = [PrefixLayer() for _ in cache.layers]  # type: ignore[no-untyped-call]
    device = next(model.parameters()).device
    tokens = torch.tensor([list(ids)], device=device)
    model(input_ids=tokens, past_key_values=cache, use_cache=True, logits_to_keep=1)
    return Prefix(cache, len(ids))


def preallocated_cache(config: Any, *, length: int) -> DynamicCache:
    """Return the model's cache with memory for `length` tokens in each full-attention layer."""
    cache = DynamicCache(config=config)
    # Layers with a sliding window or a state keep the class that transformers gives them.
    cache.layers = [
        PreallocatedLayer(length) if type(layer) is DynamicLayer else layer
        for layer in cache.layers
    ]
    return cache


class PrefixLayer(DynamicLayer):
    """A cache layer that prepends its first keys and values to all later ones."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.keys, self.values = key_states, value_states
            return key_states, value_states
        assert self.keys is not None and self.values is not None
        shape = (len(key_states), -1, -1, -1)
        return (
            torch.cat([self.keys.expand(shape), key_states], dim=2),
            torch.cat([self.values.expand(shape), value_states], dim=2),
        )


class PreallocatedLayer(DynamicLayer):
    """A cache layer that writes in place; DynamicLayer copies all keys and values at each step."""

    def __init__(self, length: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.length, self.used = length, 0

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        new = key_states.shape[-2]
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.key_buffer = self._allocate(key_states)
            self.value_buffer = self._allocate(value_states)
        self.key_buffer[:, :, self.used : self.used + new] = key_states
        self.value_buffer[:, :, self.used : self.used + new] = value_states
        self.used += new
        return self._expose()

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Replace the one row by `repeats` copies of it."""
        rows = []
        for buffer in (self.key_buffer, self.value_buffer):
            copies = buffer.new_empty(repeats, *buffer.shape[1:])
            copies[:, :, : self.used] = buffer[:, :, : self.used]
            rows.append(copies)
        self.key_buffer, self.value_buffer = rows
        self._expose()

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep rows `indices`: those below len(indices) in place, the others moved into gaps."""
        here = torch.arange(len(indices), device=indices.device)
        gaps = here[indices != here]
        for buffer in (self.key_buffer, self.value_buffer):
            buffer[gaps, :, : self.used] = buffer[indices[gaps], :, : self.used]
        self.key_buffer = self.key_buffer[: len(indices)]
        self.value_buffer = self.value_buffer[: len(indices)]
        self._expose()

    def _allocate(self, states: torch.Tensor) -> torch.Tensor:
        batch, heads, _, dim = states.shape
        return states.new_empty(batch, heads, self.length, dim)

    def _expose(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Set and return the used parts of the buffers, under the names that DynamicLayer gives."""
        keys, values = self.key_buffer[:, :, : self.used], self.value_buffer[:, :, : self.used]
        self.keys, self.values = keys, values
        return keys, values
