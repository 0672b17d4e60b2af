"""A KV cache that writes in place, loses rows cheaply and starts from a shared beginning."""

from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer


def preallocated_cache(config: Any, *, length: int) -> DynamicCache:
    """The model's cache with room for `length` tokens in each layer that attends to everything.

    Layers with a sliding window or a state keep the kind that transformers gives them.
    """
    cache = DynamicCache(config=config)
    cache.layers = [
        PreallocatedLayer(length) if type(layer) is DynamicLayer else layer
        for layer in cache.layers
    ]
    return cache


def sees_everything(cache: DynamicCache) -> bool:
    """Whether every layer attends to all tokens, however far back."""
    return all(type(layer) is PreallocatedLayer for layer in cache.layers)


class PreallocatedLayer(DynamicLayer):
    """A cache layer that writes in place; DynamicLayer copies all keys and values at each step."""

    def __init__(self, length: int) -> None:
        super().__init__()
        self.length, self.used = length, 0

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        new = key_states.shape[-2]
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.key_room = self._room_for(key_states)
            self.value_room = self._room_for(value_states)
        self.key_room[:, :, self.used : self.used + new] = key_states
        self.value_room[:, :, self.used : self.used + new] = value_states
        self.used += new
        return self._show()

    def batch_repeat_interleave(self, repeats: int) -> None:
        """A row for each of `repeats` where there was one."""
        rows = []
        for room in (self.key_room, self.value_room):
            wide = room.new_empty(repeats, *room.shape[1:])
            wide[:, :, : self.used] = room[:, :, : self.used]
            rows.append(wide)
        self.key_room, self.value_room = rows
        self._show()

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep rows `indices`: those below len(indices) in place, the others moved into gaps."""
        here = torch.arange(len(indices), device=indices.device)
        gaps = here[indices != here]
        for room in (self.key_room, self.value_room):
            room[gaps, :, : self.used] = room[indices[gaps], :, : self.used]
        self.key_room = self.key_room[: len(indices)]
        self.value_room = self.value_room[: len(indices)]
        self._show()

    def _room_for(self, states: torch.Tensor) -> torch.Tensor:
        batch, heads, _, dim = states.shape
        return states.new_empty(batch, heads, self.length, dim)

    def _show(self) -> tuple[torch.Tensor, torch.Tensor]:
        keys, values = self.key_room[:, :, : self.used], self.value_room[:, :, : self.used]
        self.keys, self.values = keys, values
        return keys, values
