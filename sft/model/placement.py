"""Where and how a model runs: device, dtype and attention, each with its reason."""

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
    """Where and how a model runs; `reasons` has a line for each choice."""

    device: torch.device
    weights: torch.dtype  # of what is trained, and of everything under full fine-tuning
    compute: torch.dtype  # of matrix products: autocast when it differs from `weights`
    attention: str
    reasons: tuple[str, ...]
    load_in_4bit: bool = False  # frozen weights in NF4, under LoRA

    @property
    def autocast(self) -> bool:
        """Whether training casts for its matrix products."""
        return self.compute != self.weights

    @property
    def inference(self) -> torch.dtype:
        """Dtype of the weights when a model only answers."""
        return inference_dtype(self.device, self.weights, self.compute)


def inference_dtype(
    device: torch.device, weights: torch.dtype, compute: torch.dtype
) -> torch.dtype:
    """That of trained weights on a CPU, that of matrix products elsewhere."""
    return weights if device.type == "cpu" else compute


def choose_placement(section: ModelSection) -> Placement:
    """Pick device, dtypes and attention for this machine, as far as the preset leaves it open.

    The device is the launcher's choice (accelerate). Trained weights stay in float32; matrix
    products run in bfloat16 where the hardware has it.

    Raises:
        UserError: the preset asks for a dtype or an attention that this device does not have, or
            for 4-bit weights where they cannot be trained over.
    """
    device = PartialState().device
    if section.load_in_4bit:
        check_4bit(device)
    if device.type == "cpu":
        _use_all_cores()
        return_freed_memory()
    if device.type == "cuda":
        # cuDNN's attention plans anew for each shape, and each next token of an answer is one.
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
        reasons += ("frozen weights: 4-bit NF4, scales quantised too (model.load_in_4bit)",)
    for reason in reasons:
        log.info("%s", reason)
    return Placement(device, torch.float32, compute, attention, reasons, section.load_in_4bit)


def _choose_attention(wanted: str, device: torch.device) -> tuple[str, str]:
    """The attention to load models with, and why; `sft.packing.equivalence` falls back where a
    model fails it."""
    flex = device.type == "cuda" and is_triton_available()
    if wanted == FLEX and not flex:
        raise UserError(
            "model.attn_implementation=flex needs CUDA and the package triton, and this is "
            f"{device.type}; set model.attn_implementation=auto"
        )
    if wanted != "auto":
        return wanted, "set by the preset"
    if device.type == "cpu":
        return DOCUMENTS, "a call for each: no padding, no masks over rows"
    if flex:
        return FLEX, "blocks that no token sees into are skipped, no masks over rows"
    lack = "; flex attention needs the package triton" if device.type == "cuda" else ""
    return "sdpa", f"takes the masks of packed rows, in few shapes{lack}"


def _compile(attention: str) -> str:
    """What torch.compile is used for, and why for no more."""
    why = "packed rows come in many shapes, and each would be compiled anew"
    if attention == FLEX:
        return f"flex attention alone, for any length (the rest: {why})"
    return f"off ({why})"


# glibc's names and the values that a plan holds for (`sft.planning.step_memory` counts what is
# alive).
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
RETURNED_FROM = 64 * 1024  # bytes


def return_freed_memory() -> None:
    """Have glibc return every freed tensor to the system at once, in this process.

    By default it raises its threshold with each large tensor that is freed, up to 32 MiB, and keeps
    freed ones below that in its heap: below 1 GiB a process then holds 10 to 50 % more than what is
    alive. An environment that sets `MALLOC_MMAP_THRESHOLD_` itself is left as it is.
    """
    if platform.libc_ver()[0] == "glibc" and "MALLOC_MMAP_THRESHOLD_" not in os.environ:
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_THRESHOLD, RETURNED_FROM)
        libc.mallopt(M_TRIM_THRESHOLD, 0)


def _use_all_cores() -> None:
    """Undo the single thread that `accelerate launch` gives a process unless told `--cpu`."""
    by_launcher = "ACCELERATE_MIXED_PRECISION" in os.environ
    if by_launcher and os.environ.get("OMP_NUM_THREADS") == "1":
        cores = psutil.cpu_count(logical=False) or 1
        torch.set_num_threads(max(1, cores // PartialState().num_processes))


def _native_dtypes(device: torch.device) -> tuple[set[torch.dtype], str]:
    """Dtypes whose matrix products the hardware runs without emulation, and how we know."""
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
    """Where a whole model in float32 has room, when the device has not: main memory."""
    cpu = torch.device("cpu")
    return replace(placement, device=cpu, compute=torch.float32, load_in_4bit=False)
