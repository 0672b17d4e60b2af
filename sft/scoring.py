"""Log-probabilities of the scored tokens of packed rows, and nothing else.

The vocabulary projection and the softmax run on scored tokens only, in chunks, with the log-sum-exp
in float32 (float64 for a float64 model). `enable_scoring` teaches a causal LM a second forward that
does this inside the model's own call, so that DDP, FSDP and PEFT wrappers keep working (the way of
trl's `add_fused_lm_head`, which off Triton projects every position).
"""

import functools
import logging
import types
import weakref
from collections.abc import Sequence
from typing import Any

import torch
from peft import PeftModel

from sft.attention import DOCUMENTS
from sft.config import UserError
from sft.head import Scores, score_states
from sft.packing import (
    PADDING,
    Batch,
    Document,
    RowKind,
    Segment,
    attention_mask,
    lay_out,
    pack,
)
from sft.prefix import Prefix

log = logging.getLogger(__name__)

# Families that scale their logits after the projection; silently ignoring it would be wrong.
_SCALED = ("logit_scale", "logits_scaling", "lm_head_multiplier", "output_multiplier")

# Tokens of one scoring forward, padding included: what caches hold, and what fills a device.
CPU_BATCH_TOKENS, BATCH_TOKENS = 4096, 32_768

# Rounding per token between packed and single rows, by the dtype of the weights.
ROUNDING = {
    torch.float64: 1e-6,
    torch.float32: 1e-3,
    torch.bfloat16: 0.1,
    torch.float16: 0.05,
}

_enabled: weakref.WeakSet[torch.nn.Module] = weakref.WeakSet()
_apart: weakref.WeakSet[torch.nn.Module] = weakref.WeakSet()  # models that read no packed rows


def enable_scoring(model: Any) -> Any:
    """Let `model(..., scored=(source, target))` return `Scores`; other calls are untouched.

    Call it on the bare causal LM, before PEFT or a distributed wrapper. Repeating is harmless.

    Raises:
        UserError: the model scales its logits in a way that is not implemented here.
    """
    if model in _enabled:
        return model
    config = model.config.get_text_config()
    for name in _SCALED:
        if getattr(config, name, None) not in (None, 1, 1.0):
            raise UserError(
                f"model type {config.model_type!r} scales its logits ({name}="
                f"{getattr(config, name)}), which is not supported; choose another base model"
            )
    softcap = getattr(config, "final_logit_softcapping", None)
    original = model.forward

    @functools.wraps(type(model).forward)  # generate() checks its arguments against the signature
    def forward(self: Any, *args: Any, scored: Any = None, **kwargs: Any) -> Any:
        if scored is None:
            return original(*args, **kwargs)
        source, target = scored
        hidden = self.base_model(*args, **kwargs, use_cache=False).last_hidden_state
        states = hidden.flatten(0, 1)[source]
        return score_states(states, self.get_output_embeddings(), target, softcap=softcap)

    model.forward = types.MethodType(forward, model)
    _enabled.add(model)
    return model


def score(model: Any, batch: Batch, *, prefix: Prefix | None = None) -> Scores:
    """Score a batch with a model that `enable_scoring` has seen, wrapped or not.

    Gradients flow through `log_probs`. Attention goes document by document where the model was
    loaded so, else over rows by mask: sdpa (bool) or eager (additive). A model that reads no packed
    rows gets upstream's own mask of padding.

    Args:
        prefix: what every document is read behind; not for a model that reads rows "apart".
    """
    more: dict[str, Any] = {}
    position_ids = batch.position_ids
    mask: torch.Tensor | dict[str, torch.Tensor]
    kind = rows_of(model)
    if kind == "apart":
        mask = (batch.document != PADDING).long()
    elif kind == "flat":
        # A mask of four dimensions is passed through by upstream; nothing reads this one.
        mask = torch.ones((1, 1, 1, 1), dtype=torch.bool, device=batch.input_ids.device)
        more["documents"] = batch.spans
    else:
        mask = _masks(model, batch, additive=attention_of(model) == "eager")
    if prefix is not None:
        assert kind != "apart", "see takes_prefix"
        position_ids = position_ids + prefix.length
        more["past_key_values"] = prefix.cache
        if kind == "masked":
            assert isinstance(mask, torch.Tensor), "windows take no prefix"
            seen = mask.diagonal(dim1=2, dim2=3)[..., None]  # what a token sees itself with
            mask = torch.cat([seen.expand(-1, -1, -1, prefix.length), mask], dim=-1)
    return model(
        input_ids=batch.input_ids,
        attention_mask=mask,
        position_ids=position_ids,
        scored=(batch.source, batch.target),
        **more,
    )


def _masks(model: Any, batch: Batch, *, additive: bool) -> torch.Tensor | dict[str, torch.Tensor]:
    """The mask over rows; where layers differ in how far they see, one by type of layer, as
    upstream takes them. Upstream narrows no mask that it is given to a layer's window itself."""

    def mask(window: int | None) -> torch.Tensor:
        seen = attention_mask(batch, window=window)
        if not additive:
            return seen
        zero = torch.zeros((), dtype=torch.float32, device=seen.device)
        return torch.where(seen, zero, torch.finfo(torch.float32).min)

    config = _bare(model).config.get_text_config()
    window = getattr(config, "sliding_window", None)
    types = set(getattr(config, "layer_types", None) or ["sliding_attention"])
    if window is None or batch.input_ids.shape[1] <= window or types == {"full_attention"}:
        return mask(None)
    if types == {"sliding_attention"}:
        return mask(window)
    if types == {"full_attention", "sliding_attention"}:
        return {"full_attention": mask(None), "sliding_attention": mask(window)}
    return mask(None)  # layers of another kind: the proof at the start of a run decides


def log_probs(model: Any, batch: Batch) -> torch.Tensor:
    """`score(model, batch).log_probs`: [N] float32."""
    return score(model, batch).log_probs


def sequence_sums(values: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Sum per-token `values` [N] over the scored sequences of `batch`: [S]."""
    sums = values.new_zeros(batch.num_sequences)
    return sums.index_add(0, batch.sequence, values)


def settle_layout(model: Any) -> None:
    """Prove on the live backend that rows score as single sequences do, or find rows that do.

    Document by document falls back to sdpa, and packed rows to a row for each sequence (layers with
    convolutions or states carry over what stands before); each is logged.

    Raises:
        UserError: not even single rows score as the model's own forward does.
    """
    name = model.config.model_type
    if attention_of(model) == DOCUMENTS and (flaw := layout_flaw(model)):
        log.info("attention: sdpa (document by document, %s: %s)", name, flaw)
        model.set_attn_implementation("sdpa")
    if flaw := layout_flaw(model):
        log.info("packing: off, prompts are not shared (%s in packed rows: %s)", name, flaw)
        _apart.add(_bare(model))
        if flaw := layout_flaw(model):
            raise UserError(
                f"rows do not score as single sequences do on {name!r} with {attention_of(model)} "
                f"attention ({flaw}); set model.attn_implementation=sdpa or eager, or choose "
                "another model"
            )


def layout_flaw(model: Any) -> str | None:
    """What is wrong with rows on the live backend, or None where they are as they must be.

    A trunk with two branches and a neighbour share one row. Each sequence's log-prob must equal
    that of the model's own forward on the sequence alone, within the rounding of its weights, and
    changing a branch or the neighbour must leave the others exactly as they were. Takes
    milliseconds on small models.
    """
    generator = torch.Generator().manual_seed(0)
    vocab = min(model.config.get_text_config().vocab_size, 1000)

    def ids(n: int) -> list[int]:
        return torch.randint(vocab, (n,), generator=generator).tolist()

    trunk, first, second, lone = ids(7), ids(5), ids(3), ids(6)
    weight = next(model.parameters())

    def packed(first: list[int], lone: list[int]) -> torch.Tensor:
        pair = Document(
            Segment(trunk, [False] * 7), (Segment(first, [True] * 5), Segment(second, [True] * 3))
        )
        neighbour = Document(Segment(lone, [False] + [True] * 5))
        batch = lay_out([pair, neighbour], packing=True, rows=rows_of(model)).to(weight.device)
        return sequence_sums(log_probs(model, batch), batch)

    was_training = model.training
    model.eval()
    with torch.no_grad():
        sums = packed(first, lone)
        alone = torch.stack(
            [
                _plain(model, trunk, first, weight.device),
                _plain(model, trunk, second, weight.device),
                _plain(model, lone[:1], lone[1:], weight.device),
            ]
        )
        changed = packed(ids(5), ids(6))
    model.train(was_training)
    lengths = torch.tensor([5.0, 3.0, 5.0], device=weight.device)
    worst = ((sums - alone).abs() / lengths).max().item()
    leak = (changed[1] - sums[1]).abs().item()
    if worst <= ROUNDING[weight.dtype] and leak == 0:
        return None
    return f"log-probs differ by {worst:.3g} nats per token, {leak:.3g} across branches"


def batch_tokens(device: torch.device) -> int:
    """How many tokens one scoring forward should hold on a device."""
    return CPU_BATCH_TOKENS if device.type == "cpu" else BATCH_TOKENS


def scoring_batch(model: Any, documents: Sequence[Document]) -> Batch:
    """Documents for one scoring forward, on the model's device: one row without padding where
    attention goes document by document, else a row each."""
    device = next(model.parameters()).device
    kind = rows_of(model)
    if kind == "masked":
        # Few shapes where kernels are compiled for each; little padding where they are not.
        bucket = 8 if device.type == "cpu" else 64
        return pack(documents, row_length=0, bucket=bucket).to(device)
    return lay_out(documents, packing=True, rows=kind).to(device)


def rows_of(model: Any) -> RowKind:
    """Which rows a model reads, wrapped or not (see `sft.packing.lay_out`)."""
    bare = _bare(model)
    if bare in _apart:
        return "apart"
    return "flat" if attention_of(bare) == DOCUMENTS else "masked"


def _plain(model: Any, prompt: Any, completion: Any, device: torch.device) -> torch.Tensor:
    tokens = torch.tensor([[*prompt, *completion]], device=device)
    logits = model(input_ids=tokens).logits[0, len(prompt) - 1 : -1].float()
    picked = logits.log_softmax(-1).gather(1, tokens[0, len(prompt) :, None])
    return picked.sum()


def attention_of(model: Any) -> str:
    """The name of the attention that a model computes with, wrapped or not."""
    return _bare(model).config._attn_implementation


def _bare(model: Any) -> Any:
    if isinstance(model, torch.nn.parallel.DistributedDataParallel):
        model = model.module
    return model.get_base_model() if isinstance(model, PeftModel) else model
