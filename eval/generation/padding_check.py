"""Check, before a model's first generation, that padded batches decode as single rows do.

A prompt that is shorter than the longest of its batch is padded on the left. Attention masks the
padding out; recurrent states (Mamba, RWKV) and positions that count all tokens may not.
"""

import weakref
from collections.abc import Sequence
from typing import Any

import torch

from eval.generation.batch import DecodingBatch
from sft.errors import UserError
from sft.model.architecture import window_of
from sft.packing.tolerances import TOLERANCES, error_summary, relative_error

LONG, SHORT = 28, 4  # tokens of the two prompts of a batch

_supported: weakref.WeakKeyDictionary[Any, bool] = weakref.WeakKeyDictionary()


def supports_padding(model: Any) -> bool:
    """Return whether prompts of different lengths may share a batch; checked once for each model.

    Raises:
        UserError: a single prompt continues differently with a cache than without.
    """
    if model not in _supported:
        _supported[model] = _check(model)
    return _supported[model]


def _check(model: Any) -> bool:
    window = window_of(model.config)
    if window is not None and window < LONG + 2:
        return True  # the prompts do not fit the context, which happens with toy models only
    generator = torch.Generator().manual_seed(0)
    vocabulary = min(model.config.get_text_config().vocab_size, 1000)
    drawn = torch.randint(vocabulary, (LONG + SHORT + 1,), generator=generator).tolist()
    long, short, following = drawn[:LONG], drawn[LONG:-1], drawn[-1]
    mismatch = _cache_mismatch(model, [long], following)
    if mismatch is not None:
        raise UserError(
            f"a {model.config.model_type!r} model continues differently with a KV cache than "
            f"without ({mismatch}), so it cannot generate here; choose another model"
        )
    return _cache_mismatch(model, [long, short], following) is None


def _cache_mismatch(model: Any, prompts: Sequence[list[int]], following: int) -> str | None:
    """Return how the logits of a batch differ from those of single rows without a cache, or None.

    Compared are the logits after the prompts and after one more token.
    """
    try:
        batch = DecodingBatch(model, prompts, [2] * len(prompts), seeds=None)
        after_prompt = batch.forward(0, batch.width)
        batch.tokens[:, batch.width] = following
        after_token = batch.forward(batch.width, batch.width + 1)
    except (RuntimeError, ValueError, TypeError, AttributeError) as error:
        return error_summary(error)
    found = torch.stack([after_prompt, after_token], 1).float()
    weight = next(model.parameters())
    errors = []
    for prompt, row in zip(prompts, found, strict=True):
        tokens = torch.tensor([[*prompt, following]], device=weight.device)
        errors.append(relative_error(row, model(input_ids=tokens).logits[0, -2:].float()))
    # `max` may drop a NaN, while NaN <= tolerance is False.
    if all(error <= TOLERANCES[weight.dtype].cached for error in errors):
        return None
    shown = ", ".join(f"{error:.2g}" for error in errors)
    return f"logits of the rows are {shown} of their size off"
