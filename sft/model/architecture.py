"""Check that a configuration is a causal LM; read its shapes; build it on the meta device."""

import re
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES
from transformers.utils import TRANSFORMERS_DYNAMIC_MODULE_NAME

from sft.errors import UserError

# Classes with another head: LlamaForSequenceClassification, BertForPreTraining.
OTHER_HEAD = re.compile(r"For(?!CausalLM|ConditionalGeneration)[A-Z]")


def check_causal(config: PreTrainedConfig, *, given: str) -> None:
    """Check that a model is a causal LM: no encoder, no encoder-decoder, no other head.

    Args:
        given: the model as the user wrote it.
    """
    at = f"model.name_or_path={given}"
    kind = config.model_type
    known = type(config) in AutoModelForCausalLM._model_mapping or _brings_one(config)
    if not known or config.is_encoder_decoder:
        raise UserError(
            f"{at} is a {kind!r} model, not a causal language model; choose a decoder such as "
            "Llama or Qwen"
        )
    # Upstream gives BERT and similar encoders a causal head over bidirectional attention.
    if kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES and getattr(config, "is_decoder", None) is False:
        raise UserError(
            f"{at} is a {kind!r} model, an encoder whose tokens see what follows them, not a "
            "causal language model; choose a decoder such as Llama or Qwen"
        )
    others = [name for name in config.architectures or () if OTHER_HEAD.search(name)]
    if others:
        raise UserError(
            f"{at} was saved as {others[0]}, whose head is not over the vocabulary, so it is not a "
            "causal language model; give the model that it was made from"
        )


def window_of(config: PreTrainedConfig) -> int | None:
    """Return the number of tokens that a sequence may have; None where it is not configured."""
    text = config.get_text_config()
    limits = [getattr(text, "max_position_embeddings", None)]
    # Packed rows do not implement chunked attention (Llama 4): a sequence must fit one chunk.
    if "chunked_attention" in (getattr(text, "layer_types", None) or ()):
        limits.append(getattr(text, "attention_chunk_size", None))
    return min((limit for limit in limits if limit is not None), default=None)


def layers_of(config: PreTrainedConfig) -> list[PreTrainedConfig]:
    """Return the configuration of each layer of the text model, one object for equal layers."""
    text = config.get_text_config()
    return list(text.per_layer_config) if getattr(text, "num_hidden_layers", None) else []


def head_sizes(layer: PreTrainedConfig) -> tuple[int, int, int]:
    """Return heads, key width and value width of one of `layers_of`; zeros without attention."""
    heads = getattr(layer, "num_attention_heads", None)
    if not heads:
        return 0, 0, 0
    if getattr(layer, "qk_nope_head_dim", None):  # latent attention: keys and values differ
        return heads, layer.qk_nope_head_dim + layer.qk_rope_head_dim, layer.v_head_dim
    size = getattr(layer, "head_dim", None) or layer.hidden_size // heads
    return heads, size, size


def meta_model(config: PreTrainedConfig, **options: Any) -> Any:
    """Build the causal LM that a configuration describes on the meta device, without memory.

    Args:
        options: arguments of `AutoModelForCausalLM.from_config`.
    """
    # Not cached: PEFT and `enable_scoring` change the model in place, and one takes under a second.
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(
            config, trust_remote_code=_own_code(config), **options
        )


def _own_code(config: PreTrainedConfig) -> bool:
    """Whether the configuration's class is trusted code of the model's repository."""
    return type(config).__module__.split(".")[0] == TRANSFORMERS_DYNAMIC_MODULE_NAME


def _brings_one(config: PreTrainedConfig) -> bool:
    """Whether the model's trusted code has a causal LM class."""
    return _own_code(config) and "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})
