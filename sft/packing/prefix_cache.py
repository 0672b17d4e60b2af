"""What many rows begin with, read once: its keys and values stand before every row.

The shared examples of a few-shot task are the case in point. Inference only.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer


@dataclass(frozen=True)
class Prefix:
    """`length` tokens in a cache that rows are read behind, any number of times."""

    cache: DynamicCache
    length: int


class FixedLayer(DynamicLayer):
    """Keeps what it is given first, and shows it before whatever comes later, which it forgets."""

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


def takes_prefix(model: Any) -> bool:
    """Whether every layer attends to all tokens, however far back, and keeps no other state."""
    return all(type(layer) is DynamicLayer for layer in DynamicCache(config=model.config).layers)


def read_prefix(model: Any, ids: Sequence[int]) -> Prefix:
    """Read `ids` with a model of which `takes_prefix` holds, within
    `sft.distributed.fsdp_forward.reading`."""
    cache = DynamicCache(config=model.config)
    cache.layers = [FixedLayer() for _ in cache.layers]
    device = next(model.parameters()).device
    tokens = torch.tensor([list(ids)], device=device)
    model(input_ids=tokens, past_key_values=cache, use_cache=True, logits_to_keep=1)
    return Prefix(cache, len(ids))
