"""A model's configuration, without what its file could choose for us: code, kernels, files."""

from pathlib import Path
from typing import Any

from transformers import AutoConfig
from transformers.utils import find_adapter_config_file

from sft.errors import UserError
from sft.run.adapters import adapter_base, is_adapter
from sft.run.revisions import located, split_revision


def read_model_config(path: str, *, trust_remote_code: bool) -> Any:
    """The configuration of a directory or a hub id; of an adapter that of its base.

    Fields of the file that transformers would act on by loading code or other files are left out:
    `attn_implementation` and `experts_implementation` may name kernels on the hub
    (transformers/integrations/hub_kernels.py), of the model and of its parts, and
    `transformers_weights` another file of weights.

    Raises:
        UserError: the weights are quantised, which transformers reads with packages and kernels
            that the file chooses; or the hub id is an adapter's, over a base that it chooses.
        OSError, ValueError: upstream's, where there is none or it is not readable.
    """
    if is_adapter(path):
        path = adapter_base(path)
    config: Any = AutoConfig.from_pretrained(**located(path), trust_remote_code=trust_remote_code)
    config._attn_implementation = config._experts_implementation = None  # of its parts, too
    vars(config).pop("transformers_weights", None)
    for part in (config, config.get_text_config()):
        if getattr(part, "quantization_config", None) is not None:
            raise UserError(
                f"model.name_or_path={path} is quantised already, and what is trained is merged "
                "into unquantised weights; name the model that it was made from, with "
                "model.load_in_4bit=true to train over 4-bit weights, or where there is none "
                "(FP8, MXFP4) save it unquantised with transformers (dequantize=True)"
            )
    _refuse_hub_adapter(path)
    return config


def _refuse_hub_adapter(path: str) -> None:
    """Of a hub id with an adapter's configuration transformers loads the adapter, of any kind."""
    if Path(path).is_dir():
        return
    name, revision = split_revision(path)
    if find_adapter_config_file(name, revision=revision) is not None:
        raise UserError(
            f"model.name_or_path={path} holds an adapter; download it and name its directory "
            "(hf download), or name its base"
        )
