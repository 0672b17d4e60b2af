"""Run one training case on one set of rows in a separate process; see train_speed.py.

    python tests/benchmarks/train_cases.py "sft ours" FOLDER [3]

prints {"seconds", "peak_gib"} for each of three runs, or of one without the number. The time
includes preparation of the rows by the trainer, reference log-probs and training, but not loading
the model. On CUDA the first run of a process also compiles kernels.
"""

if __name__ == "__main__":  # before the slow imports, so that Ctrl-C there ends quietly
    from sft import end_on_interrupt

    end_on_interrupt()

import argparse
import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from arguments import count
from datasets import Dataset
from peft import LoraConfig
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
from transformers.utils import is_flash_attn_2_available, is_liger_kernel_available
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from dpo.trainer import train_dpo
from sft.config.sections import DpoStage, LoraSection, ModelSection, SftStage
from sft.context import RunContext
from sft.errors import UserError
from sft.model.loading import load_trainable
from sft.model.placement import Placement, choose_placement
from sft.run.command import run_command
from sft.training.trainer import train_sft

VOCABULARY, EOS, PAD = 49152, 2, 0
CUDA = torch.cuda.is_available()
LORA = LoraSection(r=16)
COMMON: dict[str, Any] = {"learning_rate": 1e-4, "num_train_epochs": 1, "max_length": 1024}
Rows = list[dict[str, Any]]


def word_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer with a word for each id, since TRL's DPO takes text: "t5 t6" is [5, 6]."""
    words = {f"t{i}": i for i in range(VOCABULARY)}
    backend = Tokenizer(models.WordLevel(words, unk_token="t0"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token=f"t{EOS}", pad_token=f"t{PAD}", unk_token="t0"
    )


def ours(stage: str, rows: Rows, folder: Path, placement: Placement) -> Callable[[], object]:
    model = load_trainable(
        str(folder / "model"), placement, lora=LORA, seed=0, trust_remote_code=False
    )
    run = Path(tempfile.mkdtemp(dir=folder))
    context = RunContext(run, word_tokenizer(), placement, LORA, 0, False)
    options = COMMON | {"save_strategy": "no"}
    if CUDA:  # about as many tokens per step as TRL's largest cases
        options["per_device_train_batch_size"] = 96 if stage == "sft" else 16
    data = Dataset.from_list(rows)
    if stage == "sft":
        section = SftStage(trl=SftStage().trl | options)
        return lambda: train_sft(
            model, data, section=section, context=context, folder=run, label="sft"
        )
    preferences = DpoStage(trl=DpoStage().trl | options)
    return lambda: train_dpo(
        model, data, section=preferences, context=context, folder=run, cache=run / "reference"
    )


def theirs(stage: str, rows: Rows, folder: Path, placement: Placement, **options: Any) -> Any:
    """Train with TRL on the same tokens. `tuned=True` uses the fastest dtype of the machine, and on
    CUDA flash attention and Liger's kernels if installed."""
    tuned = options.pop("tuned", False)
    flash = tuned and CUDA and is_flash_attn_2_available()
    model = AutoModelForCausalLM.from_pretrained(
        folder / "model",
        dtype=placement.compute if tuned else torch.float32,
        attn_implementation="flash_attention_2" if flash else "sdpa",
    ).to(placement.device)
    given: dict[str, Any] = {
        "output_dir": tempfile.mkdtemp(dir=folder),
        "report_to": [],
        "save_strategy": "no",
        "disable_tqdm": True,
        "use_cpu": placement.device.type == "cpu",
        **COMMON,
        **options,
    }
    if tuned:  # TRL requests bf16 on any processor
        given["bf16"] = placement.compute is torch.bfloat16
        given["use_liger_kernel"] = CUDA and is_liger_kernel_available()
    more = {
        "model": model,
        "processing_class": word_tokenizer(),
        "peft_config": LoraConfig(r=LORA.r, target_modules="all-linear", task_type="CAUSAL_LM"),
    }
    if stage == "sft":
        data = Dataset.from_list(
            [
                {"input_ids": r["input_ids"], "completion_mask": [int(t) for t in r["trained"]]}
                for r in rows
            ]
        )
        given["completion_only_loss"] = True
        return lambda: SFTTrainer(args=SFTConfig(**given), train_dataset=data, **more).train()
    data = Dataset.from_list(
        [
            {
                "prompt": _words(r["prompt_ids"]) + " ",
                "chosen": _words(r["chosen_ids"]),
                "rejected": _words(r["rejected_ids"]),
            }
            for r in rows
        ]
    )
    return lambda: DPOTrainer(args=DPOConfig(**given), train_dataset=data, **more).train()


def _words(ids: list[int]) -> str:
    return " ".join(f"t{i}" for i in ids)


TUNED = {"tuned": True, "gradient_checkpointing": False}
CASES: dict[str, tuple[str, dict[str, Any] | None]] = {
    "sft ours": ("sft", None),
    "sft trl default": ("sft", {}),
    "sft trl packed 512": (
        "sft",
        TUNED | {"packing": True, "per_device_train_batch_size": 1, "max_length": 512},
    ),
    "sft trl batch 4": ("sft", TUNED | {"per_device_train_batch_size": 4}),
    "dpo ours": ("dpo", None),
    "dpo trl default": ("dpo", {}),
    "dpo trl batch 1": ("dpo", TUNED | {"per_device_train_batch_size": 1}),
    "dpo trl batch 4": ("dpo", TUNED | {"per_device_train_batch_size": 4}),
    "dpo trl batch 4, reference first": (
        "dpo",
        TUNED | {"per_device_train_batch_size": 4, "precompute_ref_log_probs": True},
    ),
}
LARGE = TUNED | {"per_device_train_batch_size": 16}
if CUDA:  # what fills a GPU
    packed = {"packing": True, "per_device_train_batch_size": 1}
    CASES |= {
        "sft trl packed 8192": ("sft", TUNED | packed | {"max_length": 8192}),
        "sft trl packed 16384": ("sft", TUNED | packed | {"max_length": 16384}),
        "sft trl batch 16": ("sft", LARGE),
        "sft trl batch 32": ("sft", LARGE | {"per_device_train_batch_size": 32}),
        "dpo trl batch 16": ("dpo", LARGE),
        "dpo trl batch 16, reference first": ("dpo", LARGE | {"precompute_ref_log_probs": True}),
    }


def main() -> int:
    """Parse the command line and train; exit as `run_command` does."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("case", choices=list(CASES), metavar="CASE", help="in quotes")
    parser.add_argument("folder", type=Path, help="rows and a model, as train_speed.py makes them")
    parser.add_argument("times", type=count, nargs="?", default=1)
    given = parser.parse_args()

    def work() -> None:
        file = given.folder / f"{CASES[given.case][0]}.json"
        if not file.is_file():
            raise UserError(f"{file} is missing; train_speed.py makes such a folder of rows")
        rows = json.loads(file.read_text())
        placement = choose_placement(ModelSection())
        for _ in range(given.times):
            print(json.dumps(timed(given.case, rows, given.folder, placement)), flush=True)

    return run_command(work, resumable=False)


def timed(case: str, rows: Rows, folder: Path, placement: Placement) -> dict[str, float]:
    """Run once on a new model; return seconds and peak GiB."""
    stage, options = CASES[case]
    train = (
        ours(stage, rows, folder, placement)
        if options is None
        else theirs(stage, rows, folder, placement, **options)
    )
    cuda = placement.device.type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    train()
    if cuda:
        torch.cuda.synchronize()
        peak = torch.cuda.max_memory_allocated() / 2**30
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # KiB on Linux
    return {"seconds": time.perf_counter() - start, "peak_gib": peak}


if __name__ == "__main__":
    os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"
    sys.exit(main())
