"""Compare the planner's memory estimate with measured peaks on this machine, case by case.

    python tests/benchmarks/memory_peaks.py [CASE ...] [--json FILE]
    python tests/benchmarks/memory_peaks.py --list

Each case trains a random model for two steps with `train_sft` or `train_dpo` in a separate process,
on rows of one length, and `sft.planning.budget.Planner` plans the same rows. A small training runs
first so that the memory of libraries is not counted. Without names all cases of this machine run:
on a GPU those for CUDA, with the peak of torch's allocator; else those for the CPU, with the
kernel's high-water mark of resident memory. The processes use the malloc settings that every run
sets (`sft.model.placement.return_freed_memory`). The limit is 10 %.
"""

if __name__ == "__main__":  # before the slow imports, so that Ctrl-C there ends quietly
    from sft import end_on_interrupt

    end_on_interrupt()

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from arguments import figures
from datasets import Dataset
from train_cases import word_tokenizer
from transformers import AutoConfig, AutoModelForCausalLM

from dpo.trainer import train_dpo
from sft.config.sections import DpoStage, LoraSection, ModelSection, SftStage
from sft.context import RunContext
from sft.model.loading import load_trainable
from sft.model.placement import Placement, choose_placement, return_freed_memory
from sft.planning.budget import Planner, StageWorkload, chats_workload, pairs_workload
from sft.planning.devices import Machine
from sft.run.command import run_command
from sft.training.trainer import train_sft

BOUND = 0.1
Shape = dict[str, Any]
SMOL: Shape = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 6,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49152,
    "tie_word_embeddings": True,
}
QWEN: Shape = {
    "hidden_size": 512,
    "intermediate_size": 1536,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "vocab_size": 32000,
    "tie_word_embeddings": False,
}
GPT2: Shape = {"n_embd": 384, "n_layer": 6, "n_head": 6, "vocab_size": 8000}
# The shape of Qwen3 0.6B, the smallest for a GPU.
LARGE: Shape = {
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 49152,  # the size of `word_tokenizer`
    "tie_word_embeddings": True,
}


@dataclass(frozen=True)
class Case:
    """A model and how it is trained. The second half of a row is scored; of a pair the prompt is
    the first half, and each answer a quarter."""

    family: str
    shape: Shape
    rows: int  # of a micro-batch
    length: int  # tokens of a row
    stage: str = "sft"
    lora: LoraSection = field(default_factory=LoraSection)
    attention: str = "documents"
    compute: torch.dtype = torch.float32
    checkpointing: bool = False
    micro: int = 1  # micro-batches of a step
    load_in_4bit: bool = False

    @property
    def placement(self) -> Placement:
        if torch.cuda.is_available():
            return choose_placement(ModelSection(load_in_4bit=self.load_in_4bit))
        cpu = torch.device("cpu")
        return Placement(cpu, torch.float32, self.compute, self.attention, reasons=())

    @property
    def section(self) -> SftStage | DpoStage:
        kind = SftStage if self.stage == "sft" else DpoStage
        options = {
            "per_device_train_batch_size": self.rows,
            "gradient_accumulation_steps": self.micro,
            "activation_checkpointing": self.checkpointing,
            "num_train_epochs": 1.0,
            "save_strategy": "no",
            "report_to": [],
        }
        return kind(trl=kind().trl | options)

    @property
    def data(self) -> Dataset:
        """Return enough rows for two steps."""
        return Dataset.from_list([_row(self.stage, self.length)] * (2 * self.rows * self.micro))

    @property
    def workload(self) -> StageWorkload:
        if self.stage == "sft":
            return chats_workload("sft", self.section, self.data)
        half, quarter = self.length // 2, self.length // 4
        return pairs_workload(self.section, [(half, quarter, quarter)] * len(self.data))


def _row(stage: str, length: int) -> dict[str, Any]:
    ids = [5 + i % 90 for i in range(length)]
    half, quarter = length // 2, length // 4
    if stage == "sft":
        return {"input_ids": ids, "trained": [False] * half + [True] * (length - half)}
    scored = {"chosen_scored": [True] * quarter, "rejected_scored": [True] * quarter}
    answers = {"chosen_ids": ids[half : half + quarter], "rejected_ids": ids[:quarter]}
    return {"prompt_ids": ids[:half]} | answers | scored


R16 = LoraSection(r=16)
DORA = LoraSection(r=16, use_dora=True)
DROPPED = LoraSection(r=16, lora_dropout=0.1)
CASES = {
    "llama, all weights": Case("llama", SMOL, 4, 256),
    "llama, accumulating": Case("llama", SMOL, 2, 256, micro=2),
    "llama, LoRA": Case("llama", SMOL, 4, 256, lora=R16),
    "llama, checkpointing": Case("llama", SMOL, 8, 256, checkpointing=True),
    "llama, LoRA, checkpointing": Case("llama", SMOL, 8, 256, lora=R16, checkpointing=True),
    "llama, masks over rows": Case("llama", SMOL, 4, 256, attention="sdpa"),
    "llama, LoRA, several passes": Case("llama", SMOL, 12, 256, lora=R16),
    "llama, DoRA": Case("llama", SMOL, 4, 256, lora=DORA),
    "llama, LoRA, dropout": Case("llama", SMOL, 4, 256, lora=DROPPED),
    "llama, bfloat16": Case("llama", SMOL, 4, 256, compute=torch.bfloat16),
    "llama, LoRA, bfloat16": Case("llama", SMOL, 4, 256, lora=R16, compute=torch.bfloat16),
    "qwen3, all weights": Case("qwen3", QWEN, 2, 512),
    "qwen3, LoRA, long rows": Case("qwen3", QWEN, 2, 1024, lora=LoraSection(r=8)),
    "gpt2, all weights": Case("gpt2", GPT2, 8, 256),
    "DPO, all weights": Case("llama", SMOL, 2, 512, stage="dpo"),
    "DPO, LoRA": Case("llama", SMOL, 4, 256, stage="dpo", lora=R16),
    # Here the reference of all pairs at once needs more than a step. Tied embeddings, since unused
    # rows of an embedding stay in the mapped file and need no memory.
    "DPO, LoRA, a pair at a time": Case(
        "llama", SMOL, 1, 256, stage="dpo", lora=R16, checkpointing=True, micro=4
    ),
}
CUDA_CASES = {
    "CUDA, all weights": Case("qwen3", LARGE, 8, 1024),
    "CUDA, all weights, checkpointing": Case("qwen3", LARGE, 16, 1024, checkpointing=True),
    "CUDA, LoRA": Case("qwen3", LARGE, 8, 1024, lora=R16),
    "CUDA, LoRA, several passes": Case("qwen3", LARGE, 24, 1024, lora=R16),
    "CUDA, DoRA": Case("qwen3", LARGE, 4, 1024, lora=DORA),
    "CUDA, DPO, LoRA": Case("qwen3", LARGE, 4, 2048, stage="dpo", lora=R16),
    "CUDA, DPO, a pair at a time": Case(
        "qwen3", LARGE, 1, 1024, stage="dpo", lora=R16, checkpointing=True, micro=32
    ),
    "CUDA, QLoRA": Case("qwen3", LARGE, 4, 1024, lora=R16, load_in_4bit=True),
    "CUDA, QLoRA, checkpointing": Case(
        "qwen3", LARGE, 4, 2048, lora=R16, checkpointing=True, load_in_4bit=True
    ),
}
ALL = CASES | CUDA_CASES


def main() -> int:
    """Parse the command line and measure; exit as `run_command` does."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("cases", nargs="*", metavar="CASE", help="in quotes; see --list")
    parser.add_argument("--list", action="store_true", help="the names of the cases, and no more")
    parser.add_argument("--json", type=figures, help="write the figures to this file, too")
    parser.add_argument("--measure", metavar="CASE", choices=list(ALL), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if unknown := [name for name in given.cases if name not in ALL]:
        parser.error(f"no such case: {'; '.join(unknown)} (see --list)")

    def work() -> None:
        if given.list:
            print("\n".join(ALL))
        elif given.measure:  # of the child
            print(json.dumps({"peak": measure(ALL[given.measure], given.measure)}))
        else:
            sys.exit(compare(given.cases or list(_of_this_machine()), file=given.json))

    return run_command(work, resumable=False)


def _of_this_machine() -> dict[str, Case]:
    return CUDA_CASES if torch.cuda.is_available() else CASES


def compare(names: list[str], *, file: Path | None) -> bool:
    """Print planned and measured bytes of each case; return whether one exceeds the limit."""
    own = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")
    environment = {key: value for key, value in os.environ.items() if key not in own}
    figures = {}
    print(f"{'case':34} {'planned':>10} {'measured':>10} {'ratio':>6}", flush=True)
    for name in names:
        command = [sys.executable, __file__, "--measure", name]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"{name}: {done.stderr}")
        planned, measured = plan(ALL[name]), json.loads(done.stdout.splitlines()[-1])["peak"]
        figures[name] = {"planned": planned, "measured": measured, "ratio": planned / measured}
        shown = f"{planned / 2**20:7,.0f} MB {measured / 2**20:7,.0f} MB"
        print(f"{name:34} {shown} {planned / measured:6.3f}", flush=True)
        if file is not None:
            file.write_text(json.dumps(figures, indent=1))
    worst = max(abs(each["ratio"] - 1) for each in figures.values())
    print(f"worst {worst:.1%}, bound {BOUND:.0%}")
    return worst > BOUND


def plan(case: Case) -> int:
    config = AutoConfig.for_model(case.family, **case.shape)
    planner = Planner(config, case.lora, case.placement, Machine("this machine", float("inf")))
    memory = planner.stage(case.workload).memory
    assert memory is not None
    return memory.total - memory.process  # like the peak, above the memory in use before


def measure(case: Case, name: str) -> int:
    """Return the peak in bytes above the memory before the model was loaded."""
    return_freed_memory()
    shallow = case.shape | {"num_hidden_layers": 1, "n_layer": 1, "vocab_size": 100}
    small = replace(case, shape=shallow, rows=4, length=16, micro=1)
    context = RunContext(Path(), word_tokenizer(), case.placement, case.lora, 0, False)
    with tempfile.TemporaryDirectory() as folder:
        peaks = []
        for place, each in (("small", small), ("model", case)):
            made = Path(folder) / place
            config = AutoConfig.for_model(each.family, **each.shape)
            model: Any = AutoModelForCausalLM.from_config(config)
            model.save_pretrained(made)
            del model
            before = start_peak()
            train(each, made, replace(context, folder=made), label=name)
            peaks.append(read_peak() - before)
    return peaks[-1]


def train(case: Case, folder: Path, context: RunContext, *, label: str) -> None:
    model = load_trainable(
        str(folder), case.placement, lora=case.lora, seed=0, trust_remote_code=False
    )
    run = folder / "run"
    options: dict[str, Any] = {"section": case.section, "context": context, "folder": run}
    if case.stage == "sft":
        train_sft(model, case.data, label=label, **options)
    else:
        train_dpo(model, case.data, cache=run / "reference", label=label, **options)


def start_peak() -> int:
    """Reset the high-water mark; return the bytes in use."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    return _resident("VmRSS")


def read_peak() -> int:
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else _resident("VmHWM")


def _resident(field: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise ValueError(field)


if __name__ == "__main__":
    sys.exit(main())
