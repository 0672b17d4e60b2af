"""Decide whether a model is a chat model: it stops where its chat template ends a turn."""

from pathlib import Path

from transformers import AutoTokenizer, GenerationConfig
from transformers.utils import GENERATION_CONFIG_NAME

from sft.chat_template.encoding import ids_of
from sft.chat_template.turn_end import find_turn_end
from sft.errors import UserError
from sft.model.model_config import read_model_config
from sft.run.adapters import adapter_base, is_adapter, tokenizer_path
from sft.run.revisions import located


def is_chat_model(path: str, *, trust_remote_code: bool) -> bool:
    """Whether the stored tokenizer has a chat template whose end of turn is one of the eos ids."""
    # A template alone is not enough: Qwen's base models have their chat model's.
    stored = AutoTokenizer.from_pretrained(
        **located(tokenizer_path(path)), trust_remote_code=trust_remote_code
    )
    if stored.chat_template is None:
        return False
    if is_adapter(path) and not (Path(path) / GENERATION_CONFIG_NAME).is_file():
        path = adapter_base(path)  # PEFT's `save_pretrained` writes no generation settings
    try:
        # `GenerationConfig.from_pretrained` names its first argument differently.
        place = located(path)
        name = place.pop("pretrained_model_name_or_path")
        declared = ids_of(GenerationConfig.from_pretrained(name, **place).eos_token_id)
    except OSError:  # the model has no generation_config.json
        config = read_model_config(path, trust_remote_code=trust_remote_code)
        declared = ids_of(getattr(config, "eos_token_id", None))
    try:
        ending = find_turn_end(stored).ids[0]
    except UserError:
        return False  # the template does not end turns
    return ending in declared
