"""Log-probabilities of the scored tokens of packed rows, and nothing else.

The vocabulary projection and the softmax run on scored tokens only, in chunks, with the log-sum-exp
in float32 (float64 for a float64 model). `enable_scoring` teaches a causal LM a second forward that
does this inside the model's own call, so that DDP, FSDP and PEFT wrappers keep working (the way of
trl's `add_fused_lm_head`, which off Triton projects every position).
"""

import functools
import types
import weakref
from collections.abc import Sequence
from typing import Any

import torch
from peft import PeftModel

from sft.errors import UserError
from sft.packing.document_attention import DOCUMENTS
from sft.packing.flex_attention import FLEX, block_mask
from sft.packing.kv_cache import Prefix
from sft.packing.layout import (
    PADDING,
    Batch,
    Document,
    RowKind,
    attention_mask,
    lay_out,
    pack,
)
from sft.packing.logprob_head import Scores, score_states

# Families that scale their logits after the projection; silently ignoring it would be wrong.
_SCALED = ("logit_scale", "logits_scaling", "lm_head_multiplier", "output_multiplier")

# Tokens of one scoring forward, padding included: what caches hold, and what fills a device.
CPU_BATCH_TOKENS, BATCH_TOKENS = 4096, 32_768

# What compilers, kernels and upstream's code raise where they do not take rows of a layout: Bloom
# builds its positions from a mask of two dimensions, and has no name for others.
ROW_ERRORS = (RuntimeError, ValueError, TypeError, IndexError)

_enabled: weakref.WeakSet[torch.nn.Module] = weakref.WeakSet()
_without_packing: weakref.WeakSet[torch.nn.Module] = (
    weakref.WeakSet()
)  # models that read no packed rows


def enable_scoring(model: Any) -> Any:
    """Let `model(..., scored=(source, target))` return `Scores`; other calls are untouched.

    Call it on the bare causal LM, before PEFT or a distributed wrapper. Repeating is harmless.

    Raises:
        UserError: the model scales its logits in a way that is not implemented here, or has
            nothing below its head that could be called alone.
    """
    disable_router_logits(model)
    if model in _enabled:
        return model
    config = model.config.get_text_config()
    for name in _SCALED:
        if getattr(config, name, None) not in (None, 1, 1.0):
            raise UserError(
                f"model type {config.model_type!r} scales its logits ({name}="
                f"{getattr(config, name)}), which is not supported; choose another base model"
            )
    if decoder_of(model) is model:
        raise UserError(
            f"model type {config.model_type!r}: what lies below its head has no name by which "
            "transformers would give it, which is not supported; choose another base model"
        )
    softcap = getattr(config, "final_logit_softcapping", None)
    original = model.forward

    @functools.wraps(type(model).forward)  # generate() checks its arguments against the signature
    def forward(self: Any, *args: Any, scored: Any = None, **kwargs: Any) -> Any:
        if scored is None:
            return original(*args, **kwargs)
        source, target = scored
        hidden = decoder_of(self)(*args, **kwargs, use_cache=False).last_hidden_state
        states = hidden.flatten(0, 1)[source]
        return score_states(states, self.get_output_embeddings(), target, softcap=softcap)

    model.forward = types.MethodType(forward, model)
    _enabled.add(model)
    return model


def decoder_of(model: Any) -> Any:
    """What lies below the head of a bare causal LM; the model itself where upstream does not say.
    Llama 4 has it under another name than the one that its class gives."""
    below = model.base_model
    return getattr(model, "model", model) if below is model else below


def disable_router_logits(model: Any) -> None:
    """Have no logits of routers given beside the others, whatever a configuration says: no loss
    here counts them, and upstream's count fails where padded rows go on behind a cache. trl's
    SFTTrainer asks for them, and models that it trained say so."""
    config = model.config.get_text_config()
    if hasattr(config, "output_router_logits"):
        config.output_router_logits = False


def score(model: Any, batch: Batch, *, prefix: Prefix | None = None) -> Scores:
    """Score a batch with a model that `enable_scoring` has seen, wrapped or not.

    Gradients flow through `log_probs`.

    Args:
        prefix: what every document is read behind; not for a model that reads rows "separate".
    """
    rows = row_layout(model)
    if prefix is not None and rows == "blocks":
        rows = "masked"  # a mask over rows can be widened by what stands before them
    more = attention_inputs(model, batch, rows=rows)
    position_ids = batch.position_ids
    if prefix is not None:
        assert rows != "separate", "these rows take no prefix"
        position_ids = position_ids + prefix.length
        more["past_key_values"] = prefix.cache
        if rows == "masked":
            mask = more["attention_mask"]
            assert isinstance(mask, torch.Tensor), "windows take no prefix"
            seen = mask.diagonal(dim1=2, dim2=3)[..., None]  # what a token sees itself with
            before = seen.expand(-1, -1, -1, prefix.length)
            more["attention_mask"] = torch.cat([before, mask], dim=-1)
    scores: Scores = model(
        input_ids=batch.input_ids,
        position_ids=position_ids,
        scored=(batch.source, batch.target),
        **more,
    )
    return scores


def attention_inputs(model: Any, batch: Batch, *, rows: RowKind) -> dict[str, Any]:
    """What a model's forward takes beside tokens and positions.

    Attention goes document by document or block by block where the model was loaded so, else over
    rows by mask: sdpa (bool) or eager (additive). A model that reads no packed rows gets upstream's
    own mask of padding.
    """
    if rows == "separate":
        return {"attention_mask": (batch.document != PADDING).long()}
    if rows == "masked":
        additive = attention_of(model) == "eager"
        return {"attention_mask": _masks(model, batch, additive=additive)}
    # A mask of four dimensions is passed through by upstream; nothing reads this one.
    unread = torch.ones((1, 1, 1, 1), dtype=torch.bool, device=batch.input_ids.device)
    if rows == "flat":
        return {"attention_mask": unread, "documents": batch.spans}
    blocks = functools.cache(functools.partial(block_mask, batch))  # layers share them
    return {"attention_mask": unread, "blocks": blocks}


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
    if values.device.type == "cuda":  # where index_add adds in whichever order its threads come
        return sums.index_put((batch.sequence,), values, accumulate=True)
    return sums.index_add(0, batch.sequence, values)


def batch_tokens(device: torch.device) -> int:
    """How many tokens one scoring forward should hold on a device."""
    return CPU_BATCH_TOKENS if device.type == "cpu" else BATCH_TOKENS


def scoring_batch(model: Any, documents: Sequence[Document]) -> Batch:
    """Documents for one scoring forward, on the model's device: one row without padding where
    attention goes document by document, else a row each."""
    device = next(model.parameters()).device
    kind = row_layout(model)
    if kind in ("masked", "blocks"):
        # Few shapes where kernels are compiled for each; little padding where they are not.
        bucket = 8 if device.type == "cpu" else 64
        return pack(documents, row_length=0, bucket=bucket).to(device)
    return lay_out(documents, packing=True, rows=kind).to(device)


def disable_packing(model: Any) -> None:
    """From now on each sequence has a row of its own on this model."""
    _without_packing.add(_bare(model))


def row_layout(model: Any) -> RowKind:
    """Which rows a model reads, wrapped or not (see `sft.packing.layout.lay_out`)."""
    bare = _bare(model)
    if bare in _without_packing:
        return "separate"
    kinds: dict[str, RowKind] = {DOCUMENTS: "flat", FLEX: "blocks"}
    return kinds.get(attention_of(bare), "masked")


def attention_of(model: Any) -> str:
    """The name of the attention that a model computes with, wrapped or not."""
    return str(_bare(model).config._attn_implementation)


def _bare(model: Any) -> Any:
    if isinstance(model, torch.nn.parallel.DistributedDataParallel):
        model = model.module
    return model.get_base_model() if isinstance(model, PeftModel) else model
