"""Models: device, dtype, attention and LoRA are chosen here, each with its reason."""

import ctypes
import gc
import logging
import os
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from accelerate import PartialState
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedTokenizerBase,
    set_seed,
)

from sft.attention import DOCUMENTS
from sft.chat import ensure_template, stop_ids
from sft.config import LoraSection, ModelSection, UserError, find_path
from sft.run import is_adapter
from sft.scoring import enable_scoring, settle_layout
from sft.vocabulary import add_tokens, token_rows

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Placement:
    """Where and how a model runs; `reasons` has a line for each choice."""

    device: torch.device
    weights: torch.dtype  # of what is trained, and of everything under full fine-tuning
    compute: torch.dtype  # of matrix products: autocast when it differs from `weights`
    attention: str
    reasons: tuple[str, ...]

    @property
    def autocast(self) -> bool:
        """Whether training casts for its matrix products."""
        return self.compute != self.weights

    @property
    def inference(self) -> torch.dtype:
        """Dtype of the weights when a model only answers: as stored on CPU, native elsewhere."""
        return self.weights if self.device.type == "cpu" else self.compute


def choose_placement(section: ModelSection) -> Placement:
    """Pick device, dtypes and attention for this machine, as far as the preset leaves it open.

    The device is the launcher's choice (accelerate). Trained weights stay in float32; matrix
    products run in bfloat16 where the hardware has it.

    Raises:
        UserError: the preset asks for a dtype that this device does not compute natively.
    """
    device = PartialState().device
    if device.type == "cpu":
        _use_all_cores()
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
    attention, why_attention = section.attn_implementation, "set by the preset"
    if attention == "auto" and device.type == "cpu":
        attention, why_attention = DOCUMENTS, "a call for each: no padding, no masks over rows"
    elif attention == "auto":
        attention, why_attention = "sdpa", "takes the masks of packed rows, in few shapes"
    reasons = (
        f"device: {device.type} ({_device_name(device)})",
        f"dtype: weights float32, matrix products {str(compute)[6:]} ({why_native})",
        f"attention: {attention} ({why_attention})",
        "compile: off (packed rows come in many shapes, and each would be compiled anew)",
    )
    for reason in reasons:
        log.info("%s", reason)
    return Placement(device, torch.float32, compute, attention, reasons)


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
    return subprocess.run(query, capture_output=True, text=True, check=False).stdout.strip()


def resolve_model_path(name_or_path: str) -> str:
    """A local directory, found as presets' paths are, or the hub id unchanged.

    Raises:
        UserError: it looks like a path but is none, or the directory holds no model.
    """
    found = find_path(name_or_path)
    if found is None:
        if name_or_path.startswith((".", "/", "~")) or name_or_path.count("/") > 1:
            raise UserError(
                f"model.name_or_path={name_or_path}: no such directory; give a local model "
                "directory or a hub id like org/name"
            )
        return name_or_path
    if not found.is_dir():
        raise UserError(f"model.name_or_path={name_or_path} is a file; give the model's directory")
    if not any((found / f).is_file() for f in ("config.json", "adapter_config.json")):
        raise UserError(
            f"model.name_or_path={name_or_path} holds no config.json; give a directory saved by "
            "save_pretrained"
        )
    return str(found.resolve())


def check_model(section: ModelSection) -> str:
    """Resolve the model and read its configuration, before any weights are loaded.

    Returns the resolved path or hub id.

    Raises:
        UserError: there is no such model, it is no causal LM, or it has no safetensors weights.
    """
    path = resolve_model_path(section.name_or_path)
    try:
        config = read_config(path, section)
    except (OSError, ValueError) as error:
        reason = str(error).split("\n")[0]
        raise UserError(
            f"model.name_or_path={section.name_or_path}: no model could be read there ({reason}); "
            "give a local model directory or a hub id that this machine can reach"
        ) from None
    if type(config) not in AutoModelForCausalLM._model_mapping:
        raise UserError(
            f"model.name_or_path={section.name_or_path} is a {config.model_type!r} model, not a "
            "causal language model; choose a decoder such as Llama or Qwen"
        )
    folder = Path(path)
    if folder.is_dir() and not list(folder.glob("*.safetensors")):
        raise UserError(
            f"model.name_or_path={section.name_or_path} holds no *.safetensors weights; save it "
            "again with save_pretrained (pickled weights are not loaded)"
        )
    return path


def read_config(path: str, section: ModelSection) -> Any:
    """A model's configuration; of an adapter that of its base."""
    if is_adapter(path):
        path = str(PeftConfig.from_pretrained(path).base_model_name_or_path)
    return AutoConfig.from_pretrained(path, trust_remote_code=section.trust_remote_code)


def context_window(path: str, section: ModelSection) -> int | None:
    """How many positions the model was made for, where its configuration says."""
    config = read_config(path, section)
    return getattr(config.get_text_config(), "max_position_embeddings", None)


def load_tokenizer(path: str, section: ModelSection) -> PreTrainedTokenizerBase:
    """The tokenizer with a chat template and a pad token.

    Labels go by position here, so a pad token that equals eos does no harm; one is still needed
    for generation.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=section.trust_remote_code)
    except (OSError, ValueError) as error:
        reason = str(error).split("\n")[0]
        raise UserError(
            f"model.name_or_path={path}: no tokenizer could be read there ({reason}); save one "
            "beside the model with save_pretrained"
        ) from None
    add_tokens(tokenizer, section.add_tokens)
    log.info("%s", ensure_template(tokenizer, template=section.chat_template))
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
    return tokenizer


def load_model(
    path: str,
    placement: Placement,
    *,
    dtype: torch.dtype | None = None,
    trainable: bool = False,
    trust_remote_code: bool = False,
) -> Any:
    """Load a model or a LoRA adapter directory onto its device, ready to score packed rows.

    Only safetensors are read. An adapter comes back as a PeftModel over its recorded base, its own
    weights in float32. `dtype` is that of the (base) weights, `placement.weights` if absent.
    """
    free_memory()
    adapter = is_adapter(path)
    base = PeftConfig.from_pretrained(path).base_model_name_or_path if adapter else path
    model: Any = AutoModelForCausalLM.from_pretrained(
        base,
        dtype=dtype or placement.weights,
        attn_implementation=placement.attention,
        trust_remote_code=trust_remote_code,
        use_safetensors=True,
    )
    enable_scoring(model).to(placement.device)
    settle_layout(model)
    if adapter:
        model = PeftModel.from_pretrained(model, path, is_trainable=trainable)
    return model.to(placement.device)


def free_memory() -> None:
    """Hand back what the model before this one left behind, cycles of a trainer among it."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    elif torch.backends.mps.is_available():
        torch.mps.empty_cache()
    # glibc keeps freed activations for itself: gibibytes after a training stage on a CPU.
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


def load_trainable(
    path: str,
    placement: Placement,
    *,
    lora: LoraSection,
    seed: int,
    trust_remote_code: bool,
    tokens: Sequence[int] = (),
) -> Any:
    """The model a stage starts from, with what it trains set to require gradients.

    Under LoRA the frozen weights take the compute dtype and the adapter float32; an adapter from
    the stage before is trained on, a whole model gets a new one, beside which the embeddings of
    `tokens` are trained. Otherwise everything trains, in float32.
    """
    dtype = placement.compute if lora.r else placement.weights
    model = load_model(
        path, placement, dtype=dtype, trainable=True, trust_remote_code=trust_remote_code
    )
    if not lora.r or is_adapter(path):
        return model
    config = lora_config(lora)
    config.trainable_token_indices = token_rows(model, tokens) if tokens else None
    set_seed(seed)  # the adapter's first weights are random
    return get_peft_model(model, config)


def lora_config(lora: LoraSection) -> LoraConfig:
    """PEFT's configuration of a new adapter."""
    return LoraConfig(
        r=lora.r,
        lora_alpha=lora.lora_alpha,
        lora_dropout=lora.lora_dropout,
        target_modules=lora.target_modules,
        task_type="CAUSAL_LM",
    )


def save_model(model: Any, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write weights (safetensors), tokenizer with template, and generation settings that stop.

    `generation_config.json` gets every token that ends an assistant turn as an eos id.
    """
    bare: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    bare.config.use_cache = bare.generation_config.use_cache = True  # upstream trains without
    bare.generation_config.eos_token_id = stop_ids(tokenizer)
    bare.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)
    bare.generation_config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
