"""Whether a model is a chat model: it stops where its own chat template ends a turn."""

from pathlib import Path

from transformers import AutoTokenizer, GenerationConfig
from transformers.utils import GENERATION_CONFIG_NAME

from sft.chat_template.encoding import ids_of
from sft.chat_template.turn_end import find_turn_end
from sft.errors import UserError
from sft.model.model_config import read_model_config
from sft.run.adapters import adapter_base, is_adapter, tokenizer_place
from sft.run.revisions import located


def is_chat_model(path: str, *, trust_remote_code: bool) -> bool:
    """Whether the tokenizer stored with the model at `path` has a chat template of its own, and the
    model's own eos ids hold the token that ends a turn in it.

    A base model may have the template of its chat model (Qwen's bases do) but stops at the end of
    the document.
    """
    stored = AutoTokenizer.from_pretrained(
        **located(tokenizer_place(path)), trust_remote_code=trust_remote_code
    )
    if stored.chat_template is None:
        return False
    if is_adapter(path) and not (Path(path) / GENERATION_CONFIG_NAME).is_file():
        path = adapter_base(path)  # PEFT's `save_pretrained` writes no generation settings
    try:
        # Its first argument has another name than that of the other loaders.
        place = located(path)
        name = place.pop("pretrained_model_name_or_path")
        declared = ids_of(GenerationConfig.from_pretrained(name, **place).eos_token_id)
    except OSError:  # the model has no generation_config.json
        config = read_model_config(path, trust_remote_code=trust_remote_code)
        declared = ids_of(getattr(config, "eos_token_id", None))
    try:
        ending = find_turn_end(stored).ids[0]
    except UserError:
        return False  # a template that ends no turn
    return ending in declared
