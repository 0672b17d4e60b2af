"""Check that 4-bit weights (QLoRA) can be trained over, and configure their quantization."""

import importlib.util

import torch
from transformers import BitsAndBytesConfig

from sft.distributed.sharding import sharded, sharding_strategy
from sft.errors import UserError


def check_4bit(device: torch.device) -> None:
    """Check that 4-bit weights are possible: CUDA, bitsandbytes, and no sharding."""
    if device.type == "mps":
        raise UserError(
            "model.load_in_4bit=true needs an NVIDIA GPU: bitsandbytes does not train on a Mac; "
            "set model.load_in_4bit=false, which keeps LoRA's frozen weights in bfloat16 "
            "(recipes/presets/smollm2_1.7b_lora_mac.yaml), or choose a smaller model"
        )
    if device.type != "cuda":
        raise UserError(
            f"model.load_in_4bit=true needs an NVIDIA GPU (CUDA) and this command runs on "
            f"{device.type}; set model.load_in_4bit=false, which keeps LoRA's frozen weights "
            "unquantized"
        )
    require_bitsandbytes()
    if sharded():
        raise UserError(
            "model.load_in_4bit=true keeps the full model on each device, and "
            f"{sharding_strategy()} shards it; launch without it, or set model.load_in_4bit=false"
        )


def require_bitsandbytes() -> None:
    """Raise UserError if bitsandbytes is not installed."""
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UserError(
            "model.load_in_4bit=true needs bitsandbytes, which is not installed; run "
            "`pip install -e '.[qlora]'` in the checkout, or set model.load_in_4bit=false"
        )


def nf4(compute: torch.dtype) -> BitsAndBytesConfig:
    """Return 4-bit NormalFloat with double quantization (QLoRA, arXiv 2305.14314, section 3)."""
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute,
    )
