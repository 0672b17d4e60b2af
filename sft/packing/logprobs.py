"""Log-probabilities of the scored tokens of packed rows.

The vocabulary projection and the softmax run on scored tokens only, in chunks. `enable_scoring`
adds this to the forward of a causal LM, so that DDP, FSDP and PEFT wrappers keep working, as trl's
`add_fused_lm_head` does (which projects every position without Triton).
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
from sft.packing.lm_head_logprobs import Scores, score_states

# Names by which configurations scale logits after the projection, which is not implemented.
_LOGIT_SCALES = ("logit_scale", "logits_scaling", "lm_head_multiplier", "output_multiplier")

# Tokens of one scoring forward with padding: few enough for a CPU's caches, enough to fill a GPU.
CPU_BATCH_TOKENS, BATCH_TOKENS = 4096, 32_768

# Exceptions that compilers, kernels and models raise for an unsupported row layout. Bloom, for one,
# builds its positions from a mask of two dimensions and fails on others.
ROW_ERRORS = (RuntimeError, ValueError, TypeError, IndexError)

_enabled: weakref.WeakSet[torch.nn.Module] = weakref.WeakSet()
_without_packing: weakref.WeakSet[torch.nn.Module] = (
    weakref.WeakSet()
)  # models that read no packed rows


def enable_scoring(model: Any) -> Any:
    """Make `model(..., scored=(source, target))` return `Scores`; other calls are unchanged.

    Call it on the bare causal LM, before PEFT or a distributed wrapper.

    Raises:
        UserError: the model scales its logits, or its decoder cannot be called without the head.
    """
    disable_router_logits(model)
    if model in _enabled:
        return model
    config = model.config.get_text_config()
    for name in _LOGIT_SCALES:
        if getattr(config, name, None) not in (None, 1, 1.0):
            raise UserError(
                f"model type {config.model_type!r} scales its logits ({name}="
                f"{getattr(config, name)}), which is not supported; choose another base model"
            )
    if decoder_of(model) is model:
        raise UserError(
            f"model type {config.model_type!r} is not supported, since transformers does not name "
            "the decoder below its LM head; choose another base model"
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
    """Return the decoder below the head of a bare causal LM, or the model if it is not known."""
    decoder = model.base_model
    # Llama 4's class names another attribute (base_model_prefix) than the one that it has.
    return getattr(model, "model", model) if decoder is model else decoder


def disable_router_logits(model: Any) -> None:
    """Disable the output of router logits, which no loss uses."""
    # trl's SFTTrainer sets the option, also in the models that it saves. Computing the auxiliary
    # loss (transformers' load_balancing_loss_func) fails for padded rows after a cache.
    config = model.config.get_text_config()
    if hasattr(config, "output_router_logits"):
        config.output_router_logits = False


def score(model: Any, batch: Batch, *, prefix: Prefix | None = None) -> Scores:
    """Score a batch with a model after `enable_scoring`, wrapped or not.

    Gradients flow through `log_probs`.

    Args:
        prefix: a cache that every document continues; not for rows of the layout "separate".
    """
    rows = row_layout(model)
    if prefix is not None and rows == "blocks":
        rows = "masked"  # a dense mask can be extended by columns for the prefix
    more = attention_inputs(model, batch, rows=rows)
    position_ids = batch.position_ids
    if prefix is not None:
        assert rows != "separate", "separate rows take no prefix"
        position_ids = position_ids + prefix.length
        more["past_key_values"] = prefix.cache
        if rows == "masked":
            mask = more["attention_mask"]
            assert isinstance(mask, torch.Tensor), "windows take no prefix"
            # A token attends to the prefix with the value by which it attends to itself.
            visible = mask.diagonal(dim1=2, dim2=3)[..., None]
            before = visible.expand(-1, -1, -1, prefix.length)
            more["attention_mask"] = torch.cat([before, mask], dim=-1)
    scores: Scores = model(
        input_ids=batch.input_ids,
        position_ids=position_ids,
        scored=(batch.source, batch.target),
        **more,
    )
    return scores


def attention_inputs(model: Any, batch: Batch, *, rows: RowKind) -> dict[str, Any]:
    """Return the arguments of a model's forward besides tokens and positions.

    Document and flex attention get spans and block masks; sdpa gets a bool mask over rows and eager
    an additive one. Separate rows get a padding mask.
    """
    if rows == "separate":
        return {"attention_mask": (batch.document != PADDING).long()}
    if rows == "masked":
        additive = attention_of(model) == "eager"
        return {"attention_mask": _masks(model, batch, additive=additive)}
    # transformers passes masks of four dimensions through; these attentions ignore it.
    ignored = torch.ones((1, 1, 1, 1), dtype=torch.bool, device=batch.input_ids.device)
    if rows == "flat":
        return {"attention_mask": ignored, "documents": batch.spans}
    blocks = functools.cache(functools.partial(block_mask, batch))  # layers share them
    return {"attention_mask": ignored, "blocks": blocks}


def _masks(model: Any, batch: Batch, *, additive: bool) -> torch.Tensor | dict[str, torch.Tensor]:
    """Return the mask over rows, or one for each layer type if layers differ in their windows."""
    # transformers does not apply a layer's window to a given mask.

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
    return mask(None)  # unknown layer types: `verify_packing` decides


def log_probs(model: Any, batch: Batch) -> torch.Tensor:
    """Return `score(model, batch).log_probs`: [N] float32."""
    return score(model, batch).log_probs


def sequence_sums(values: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Sum per-token `values` [N] over the scored sequences of `batch`: [S]."""
    sums = values.new_zeros(batch.num_sequences)
    if values.device.type == "cuda":  # index_add on CUDA is not deterministic
        return sums.index_put((batch.sequence,), values, accumulate=True)
    return sums.index_add(0, batch.sequence, values)


def batch_tokens(device: torch.device) -> int:
    """Return the number of tokens of one scoring forward on a device."""
    return CPU_BATCH_TOKENS if device.type == "cpu" else BATCH_TOKENS


def scoring_batch(model: Any, documents: Sequence[Document]) -> Batch:
    """Lay documents out for one scoring forward on the model's device."""
    device = next(model.parameters()).device
    kind = row_layout(model)
    if kind in ("masked", "blocks"):
        # Few shapes on devices that compile a kernel for each; little padding on a CPU.
        bucket = 8 if device.type == "cpu" else 64
        return pack(documents, row_length=0, bucket=bucket).to(device)
    return lay_out(documents, packing=True, rows=kind).to(device)


def disable_packing(model: Any) -> None:
    """Give each sequence its own row on this model from now on."""
    _without_packing.add(_bare(model))


def row_layout(model: Any) -> RowKind:
    """Return how a model, wrapped or not, reads rows (see `sft.packing.layout.lay_out`)."""
    bare = _bare(model)
    if bare in _without_packing:
        return "separate"
    kinds: dict[str, RowKind] = {DOCUMENTS: "flat", FLEX: "blocks"}
    return kinds.get(attention_of(bare), "masked")


def attention_of(model: Any) -> str:
    """Return the name of a model's attention implementation, wrapped or not."""
    return str(_bare(model).config._attn_implementation)


def _bare(model: Any) -> Any:
    if isinstance(model, torch.nn.parallel.DistributedDataParallel):
        model = model.module
    return model.get_base_model() if isinstance(model, PeftModel) else model
