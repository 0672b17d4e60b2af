"""Which models can be trained here: decoders with a head over the vocabulary; and their shapes."""

import re
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES
from transformers.utils import TRANSFORMERS_DYNAMIC_MODULE_NAME

from sft.errors import UserError

# A class with another head: LlamaForSequenceClassification, BertForPreTraining.
OTHER_HEAD = re.compile(r"For(?!CausalLM|ConditionalGeneration)[A-Z]")


def check_causal(config: PreTrainedConfig, *, given: str) -> None:
    """Refuse a configuration that upstream's causal class would not, or would take for a decoder.

    Args:
        given: the model, as the user wrote it.

    Raises:
        UserError: of another kind: an encoder, an encoder-decoder, a model with another head.
    """
    at = f"model.name_or_path={given}"
    kind = config.model_type
    known = type(config) in AutoModelForCausalLM._model_mapping or _brings_one(config)
    if not known or config.is_encoder_decoder:
        raise UserError(
            f"{at} is a {kind!r} model, not a causal language model; choose a decoder such as "
            "Llama or Qwen"
        )
    # Upstream gives BERT and its like a causal head, over attention that looks ahead.
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
    """How many tokens a sequence may have: the positions that the model was made for, where its
    configuration says, and no more than a chunk where layers attend in chunks (Llama 4), which
    packed rows do not know."""
    text = config.get_text_config()
    limits = [getattr(text, "max_position_embeddings", None)]
    if "chunked_attention" in (getattr(text, "layer_types", None) or ()):
        limits.append(getattr(text, "attention_chunk_size", None))
    return min((limit for limit in limits if limit is not None), default=None)


def layers_of(config: PreTrainedConfig) -> list[PreTrainedConfig]:
    """The configuration of each layer of the text model: the same one where layers are alike."""
    text = config.get_text_config()
    return list(text.per_layer_config) if getattr(text, "num_hidden_layers", None) else []


def head_sizes(layer: PreTrainedConfig) -> tuple[int, int, int]:
    """Attention heads of a layer, and the widths of a key and of a value; zeros without attention.

    Args:
        layer: one of `layers_of`.
    """
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
    """Whether a configuration's class came from the model's own files, which only trust loads."""
    return type(config).__module__.split(".")[0] == TRANSFORMERS_DYNAMIC_MODULE_NAME


def _brings_one(config: PreTrainedConfig) -> bool:
    """Whether the model's own code, trusted by name, holds a causal class for its own kind."""
    return _own_code(config) and "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})
