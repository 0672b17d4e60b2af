"""The proof, before a model's first answers, that rows of a batch are decoded as each is alone.

A prompt that is shorter than its batch mates has padding before it. Attention leaves that out;
states that run over all tokens may not (Mamba, RWKV), nor positions that count them.
"""

import weakref
from collections.abc import Sequence
from typing import Any

import torch

from eval.generation.batch import Batch
from sft.errors import UserError
from sft.model.architecture import window_of

LONG, SHORT = 28, 4  # tokens of two prompts of one batch

# Rounding of logits, as a share of their length, by the dtype of the weights.
ROUNDING = {
    torch.float64: 1e-6,
    torch.float32: 1e-3,
    torch.bfloat16: 0.1,
    torch.float16: 0.02,
}

_takes: weakref.WeakKeyDictionary[Any, bool] = weakref.WeakKeyDictionary()


def takes_padding(model: Any) -> bool:
    """Whether prompts of different lengths may share a batch; looked at once a model.

    Raises:
        UserError: not even alone does a prompt go on with a cache as without.
    """
    if model not in _takes:
        _takes[model] = _prove(model)
    return _takes[model]


def _prove(model: Any) -> bool:
    window = window_of(model.config)
    if window is not None and window < LONG + 2:
        return True  # too small for a proof; nothing but toys is
    generator = torch.Generator().manual_seed(0)
    vocabulary = min(model.config.get_text_config().vocab_size, 1000)
    drawn = torch.randint(vocabulary, (LONG + SHORT + 1,), generator=generator).tolist()
    long, short, following = drawn[:LONG], drawn[LONG:-1], drawn[-1]
    alone = _flaw(model, [long], following)
    if alone is not None:
        raise UserError(
            f"a {model.config.model_type!r} model goes on otherwise with a cache of what it has "
            f"read than without ({alone}), so nothing could be written with it here; choose "
            "another model"
        )
    return _flaw(model, [long, short], following) is None


def _flaw(model: Any, prompts: Sequence[list[int]], following: int) -> str | None:
    """In what the logits behind prompts of a batch, and behind one more token, differ from those of
    a plain forward of each."""
    try:
        batch = Batch(model, prompts, [2] * len(prompts), seeds=None)
        behind = batch.forward(0, batch.width)
        batch.tokens[:, batch.width] = following
        found = torch.stack([behind, batch.forward(batch.width, batch.width + 1)], 1).float()
    except (RuntimeError, ValueError, TypeError, AttributeError) as error:
        return f"{type(error).__name__}: {str(error).strip().splitlines()[0][:160]}"
    weight = next(model.parameters())
    worst = 0.0
    for prompt, row in zip(prompts, found, strict=True):
        tokens = torch.tensor([[*prompt, following]], device=weight.device)
        wanted = model(input_ids=tokens).logits[0, -2:].float()
        worst = max(worst, ((row - wanted).norm() / wanted.norm()).item())
    return None if worst <= ROUNDING[weight.dtype] else f"logits are {worst:.2g} of their size off"
