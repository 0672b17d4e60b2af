"""Choose the device, dtypes and attention of a model, and log the reason for each."""

import ctypes
import logging
import os
import platform
import subprocess
from dataclasses import dataclass, replace

import psutil
import torch
from accelerate import PartialState
from transformers.utils import is_triton_available

from sft.config.sections import ModelSection
from sft.errors import UserError
from sft.model.quantization import check_4bit
from sft.packing.document_attention import DOCUMENTS
from sft.packing.flex_attention import FLEX

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Placement:
    """Device, dtypes and attention of a model."""

    device: torch.device
    weights: torch.dtype  # dtype of trained weights
    compute: torch.dtype  # dtype of matrix products: autocast if it differs from `weights`
    attention: str
    reasons: tuple[str, ...]  # a line for each choice
    load_in_4bit: bool = False  # frozen weights in NF4, under LoRA

    @property
    def autocast(self) -> bool:
        """Whether training casts the inputs of matrix products."""
        return self.compute != self.weights

    @property
    def inference(self) -> torch.dtype:
        """Dtype of the weights at inference."""
        return inference_dtype(self.device, self.weights, self.compute)


def inference_dtype(
    device: torch.device, weights: torch.dtype, compute: torch.dtype
) -> torch.dtype:
    """Return the weights' dtype on a CPU, the matrix products' dtype on other devices."""
    return weights if device.type == "cpu" else compute


def choose_placement(section: ModelSection) -> Placement:
    """Choose what the preset leaves open; accelerate's launcher chooses the device.

    Trained weights are in float32, matrix products in bfloat16 where the hardware supports it.

    Raises:
        UserError: this device does not support the preset's dtype, attention or 4-bit weights.
    """
    device = PartialState().device
    if section.load_in_4bit:
        check_4bit(device)
    if device.type == "cpu":
        _use_all_cores()
        return_freed_memory()
    if device.type == "cuda":
        # cuDNN's attention builds a plan for each shape, and decoding has a new one every token.
        torch.backends.cuda.enable_cudnn_sdp(False)
    native, why_native = _native_dtypes(device)
    if section.dtype == "auto":
        compute = torch.bfloat16 if torch.bfloat16 in native else torch.float32
    else:
        compute = getattr(torch, section.dtype)
        if compute not in native:
            raise UserError(
                f"model.dtype={section.dtype} is not native on {device.type} ({why_native}); "
                "set model.dtype=auto"
            )
    attention, why_attention = _choose_attention(section.attn_implementation, device)
    reasons: tuple[str, ...] = (
        f"device: {device.type} ({_device_name(device)})",
        f"dtype: trained weights float32, matrix products {str(compute)[6:]} ({why_native}); "
        f"measured in {str(inference_dtype(device, torch.float32, compute))[6:]}",
        f"attention: {attention} ({why_attention})",
        f"compile: {_compile(attention)}",
    )
    if section.load_in_4bit:
        reasons += ("frozen weights: 4-bit NF4, scales quantized too (model.load_in_4bit)",)
    for reason in reasons:
        log.info("%s", reason)
    return Placement(device, torch.float32, compute, attention, reasons, section.load_in_4bit)


def _choose_attention(setting: str, device: torch.device) -> tuple[str, str]:
    """Return the attention and the reason; `sft.packing.equivalence` may replace it later."""
    flex = device.type == "cuda" and is_triton_available()
    if setting == FLEX and not flex:
        raise UserError(
            "model.attn_implementation=flex needs CUDA and the package triton, and this is "
            f"{device.type}; set model.attn_implementation=auto"
        )
    if setting != "auto":
        return setting, "set by the preset"
    if device.type == "cpu":
        return DOCUMENTS, "one call per document: no padding, no masks over rows"
    if flex:
        return FLEX, "fully masked blocks are skipped, no masks over rows"
    missing = "; flex attention needs the package triton" if device.type == "cuda" else ""
    return "sdpa", f"takes the masks of packed rows, in few shapes{missing}"


def _compile(attention: str) -> str:
    """Return the use of torch.compile and the reason, for the log."""
    why = "packed rows have many shapes, and each would be compiled separately"
    if attention == FLEX:
        return f"flex attention alone, for any length (the rest: {why})"
    return f"off ({why})"


M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # parameter numbers of glibc's malloc.h
RETURNED_FROM = 64 * 1024  # bytes; `sft.planning.step_memory` predicts memory for this value


def return_freed_memory() -> None:
    """Let glibc return freed tensors to the system immediately, in this process."""
    # By default glibc raises its threshold with each large freed tensor, up to 32 MiB, and keeps
    # smaller ones: below 1 GiB a process then holds 10 to 50 % more than its live tensors.
    if platform.libc_ver()[0] == "glibc" and "MALLOC_MMAP_THRESHOLD_" not in os.environ:
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_THRESHOLD, RETURNED_FROM)
        libc.mallopt(M_TRIM_THRESHOLD, 0)


def _use_all_cores() -> None:
    """Replace the single thread that `accelerate launch` sets without `--cpu`."""
    by_launcher = "ACCELERATE_MIXED_PRECISION" in os.environ
    if by_launcher and os.environ.get("OMP_NUM_THREADS") == "1":
        cores = psutil.cpu_count(logical=False) or 1
        torch.set_num_threads(max(1, cores // PartialState().num_processes))


def _native_dtypes(device: torch.device) -> tuple[set[torch.dtype], str]:
    """Return the dtypes of matrix products without emulation, and the evidence for the log."""
    both = {torch.float32, torch.bfloat16}
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return both | {torch.float16}, "bfloat16 units present"
        return {torch.float32, torch.float16}, "no bfloat16 units before Ampere"
    if device.type == "mps":
        chip = _apple_chip()
        # Metal emulates bfloat16 on the first two generations.
        if any(generation in chip for generation in ("M1", "M2")):
            return {torch.float32, torch.float16}, f"{chip} emulates bfloat16"
        return both | {torch.float16}, f"{chip} has bfloat16"
    capabilities = torch.cpu.get_capabilities()
    for name in ("amx_bf16", "avx512_bf16"):
        if capabilities.get(name):
            return both, f"the processor has {name}"
    return {torch.float32}, "the processor has no bfloat16 instructions"


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "mps":
        return _apple_chip()
    return f"{torch.get_num_threads()} threads"


def _apple_chip() -> str:
    if platform.system() != "Darwin":
        return "Apple GPU"
    query = ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"]
    answer = subprocess.run(
        query, capture_output=True, encoding="utf-8", errors="replace", check=False
    )
    return answer.stdout.strip()


def on_cpu(placement: Placement) -> Placement:
    """Return the placement of a float32 model that fits main memory but not the device."""
    cpu = torch.device("cpu")
    return replace(placement, device=cpu, compute=torch.float32, load_in_4bit=False)
