"""The planner's memory against what training takes on this machine, case by case.

    python tests/benchmarks/memory_peaks.py [CASE ...]

Each case trains a random model for two steps with `train_sft`, in a process of its own, on rows of
one length. Its peak is the kernel's high-water mark of resident memory, less what the process held
before the model was loaded, a small training being done by then. glibc is told to give every freed
tensor back (MALLOC_MMAP_THRESHOLD_), so that the peak is of what is alive and not of its caches.
The bound is 10 %.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from train_cases import word_tokenizer
from transformers import AutoConfig, AutoModelForCausalLM

from sft.config import LoraSection, SftStage
from sft.memory import Setup, step_memory
from sft.model import load_trainable
from sft.packing import lay_out
from sft.passes import chat_document
from sft.placement import Placement
from sft.setting import Setting
from sft.trainer import train_sft

BOUND = 0.1
SMOL = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 6,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49152,
    "tie_word_embeddings": True,
}
QWEN = {
    "hidden_size": 512,
    "intermediate_size": 1536,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "vocab_size": 32000,
    "tie_word_embeddings": False,
}
GPT2 = {"n_embd": 384, "n_layer": 6, "n_head": 6, "vocab_size": 8000}
# (model type, shape, rank, rows of a micro-batch, tokens of a row, attention, checkpointing,
# micro-batches of a step)
CASES: dict[str, tuple[str, dict[str, Any], int, int, int, str, bool, int]] = {
    "llama, all weights": ("llama", SMOL, 0, 4, 256, "documents", False, 1),
    "llama, accumulating": ("llama", SMOL, 0, 2, 256, "documents", False, 2),
    "llama, LoRA": ("llama", SMOL, 16, 4, 256, "documents", False, 1),
    "llama, checkpointing": ("llama", SMOL, 0, 8, 256, "documents", True, 1),
    "llama, LoRA, checkpointing": ("llama", SMOL, 16, 8, 256, "documents", True, 1),
    "llama, masks over rows": ("llama", SMOL, 0, 4, 256, "sdpa", False, 1),
    "qwen3, all weights": ("qwen3", QWEN, 0, 2, 512, "documents", False, 1),
    "qwen3, LoRA, long rows": ("qwen3", QWEN, 8, 2, 1024, "documents", False, 1),
    "gpt2, all weights": ("gpt2", GPT2, 0, 8, 256, "documents", False, 1),
}


def main() -> None:
    chosen = sys.argv[1:] or list(CASES)
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}
    worst = 0.0
    print(f"{'case':30} {'planned':>9} {'measured':>9} {'off':>7}")
    for case in chosen:
        command = [sys.executable, __file__, "--measure", case]
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
        measured = json.loads(done.stdout.splitlines()[-1])["peak"]
        planned = plan(case)
        off = planned / measured - 1
        worst = max(worst, abs(off))
        print(f"{case:30} {planned / 2**20:6,.0f} MB {measured / 2**20:6,.0f} MB {off:+7.1%}")
    print(f"worst {worst:.1%}, bound {BOUND:.0%}")
    sys.exit(worst > BOUND)


def rows_of(case: str) -> list[dict[str, Any]]:
    """Enough rows for two steps; half of each is scored."""
    _, _, _, rows, length, _, _, micro = CASES[case]
    row = {
        "input_ids": list(range(5, 5 + length)),
        "trained": [False] * (length // 2) + [True] * (length - length // 2),
    }
    return [row] * (2 * rows * micro)


def plan(case: str) -> int:
    kind, shape, rank, rows, _, attention, checkpointing, micro = CASES[case]
    lora = LoraConfig(r=rank, target_modules="all-linear", task_type="CAUSAL_LM") if rank else None
    batch = lay_out(
        [chat_document(row) for row in rows_of(case)[:rows]],
        packing=True,
        rows="flat" if attention == "documents" else "masked",
    )
    return step_memory(
        AutoConfig.for_model(kind, **shape),
        batch,
        Setup(
            lora=lora,
            weights=torch.float32,
            compute=torch.float32,
            attention=attention,
            checkpointing=checkpointing,
            accumulates=micro > 1,
        ),
    ).total


def measure(case: str) -> None:
    kind, shape, rank, rows, _, attention, checkpointing, micro = CASES[case]
    placement = Placement(torch.device("cpu"), torch.float32, torch.float32, attention, reasons=())
    options = {
        "per_device_train_batch_size": rows,
        "gradient_accumulation_steps": micro,
        "activation_checkpointing": checkpointing,
        "num_train_epochs": 1.0,
        "save_strategy": "no",
        "report_to": [],
    }
    section = SftStage(trl=SftStage().trl | options)
    tokenizer = word_tokenizer()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        small = shape | {"num_hidden_layers": 1, "n_layer": 1, "vocab_size": 100}
        for place, sizes in (("small", small), ("model", shape)):
            model: Any = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **sizes))
            model.save_pretrained(folder / place)
            del model
        lora = LoraSection(r=rank)
        setting = Setting(folder, tokenizer, placement, lora, 0, False)
        for place, data in (("small", short_rows()), ("model", rows_of(case))):
            before = resident("VmRSS")
            Path("/proc/self/clear_refs").write_text("5")  # starts the high-water mark anew
            model = load_trainable(
                str(folder / place), placement, lora=lora, seed=0, trust_remote_code=False
            )
            train_sft(
                model,
                Dataset.from_list(data),
                section=section,
                setting=setting,
                folder=folder / f"run-{place}",
                label=case,
            )
            peak = resident("VmHWM") - before
            del model
    print(json.dumps({"peak": peak}))


def short_rows() -> list[dict[str, Any]]:
    return [{"input_ids": [5, 6, 7, 8], "trained": [False, True, True, True]}] * 16


def resident(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise ValueError(field)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        measure(sys.argv[2])
    else:
        main()
