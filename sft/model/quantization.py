"""Frozen weights in 4 bits (QLoRA): where they train, and how they are read."""

import importlib.util

import torch
from transformers import BitsAndBytesConfig

from sft.distributed.sharding import sharded, sharding_strategy
from sft.errors import UserError


def check_4bit(device: torch.device) -> None:
    """Refuse 4-bit weights where they do not train.

    Raises:
        UserError: no CUDA, no bitsandbytes, or weights spread over devices.
    """
    if device.type == "mps":
        raise UserError(
            "model.load_in_4bit=true needs an NVIDIA GPU: bitsandbytes does not train on a Mac; "
            "set model.load_in_4bit=false, which keeps LoRA's frozen weights in bfloat16 "
            "(recipes/presets/smollm2_1.7b_lora_mac.yaml), or choose a smaller model"
        )
    if device.type != "cuda":
        raise UserError(
            f"model.load_in_4bit=true needs an NVIDIA GPU (CUDA) and this command runs on "
            f"{device.type}; set model.load_in_4bit=false, which keeps LoRA's frozen weights whole"
        )
    require_bitsandbytes()
    if sharded():
        raise UserError(
            "model.load_in_4bit=true keeps the whole model on each device, and "
            f"{sharding_strategy()} spreads it over them; launch without it, or set "
            "model.load_in_4bit=false"
        )


def require_bitsandbytes() -> None:
    """Refuse 4-bit weights where the library that reads them is not installed.

    Raises:
        UserError: it is not.
    """
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UserError(
            "model.load_in_4bit=true needs bitsandbytes, which is not installed; run "
            "`pip install -e '.[qlora]'` in the checkout, or set model.load_in_4bit=false"
        )


def nf4(compute: torch.dtype) -> BitsAndBytesConfig:
    """4-bit NormalFloat with its scales quantised again (QLoRA, arXiv 2305.14314, section 3)."""
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute,
    )
