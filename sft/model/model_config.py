"""Read a model's configuration, without fields that choose code, kernels or weight files."""

from pathlib import Path
from typing import Any

from transformers import AutoConfig
from transformers.utils import find_adapter_config_file

from sft.errors import UserError
from sft.run.adapters import adapter_base, is_adapter
from sft.run.revisions import located, split_revision


def read_model_config(path: str, *, trust_remote_code: bool) -> Any:
    """Return the configuration of a directory or a Hub id, or of an adapter's base.

    Raises:
        UserError: the weights are quantized, which transformers reads with packages and kernels
            that the file chooses; or the Hub id holds an adapter, over a base that it chooses.
        OSError, ValueError: upstream's, where the configuration is missing or not readable.
    """
    if is_adapter(path):
        path = adapter_base(path)
    config: Any = AutoConfig.from_pretrained(**located(path), trust_remote_code=trust_remote_code)
    # Both may name kernels on the Hub (transformers/integrations/hub_kernels.py); the setters reset
    # the parts of the model, too.
    config._attn_implementation = config._experts_implementation = None
    # It may name another file of weights.
    vars(config).pop("transformers_weights", None)
    for part in (config, config.get_text_config()):
        if getattr(part, "quantization_config", None) is not None:
            raise UserError(
                f"model.name_or_path={path} is quantized already, and adapters are merged into "
                "unquantized weights; name the model that it was made from, with "
                "model.load_in_4bit=true to train over 4-bit weights, or where there is none "
                "(FP8, MXFP4) save it unquantized with transformers (dequantize=True)"
            )
    # transformers loads an adapter of any kind that lies in the same repository.
    name, revision = split_revision(path)
    if not Path(path).is_dir() and find_adapter_config_file(name, revision=revision) is not None:
        raise UserError(
            f"model.name_or_path={path} holds an adapter; download it and name its directory "
            "(hf download), or name its base"
        )
    return config
