"""A tiny base model, rows of two kinds, prompts, a task, and a preset for them."""

from pathlib import Path
from typing import Any

import yaml
from tiny_models import make_tiny_model

from sft.system.atomic_files import write_jsonl
from sft.system.run_marker import read_marker

TASK = """
task: sums
dataset_path: json
dataset_kwargs: {data_files: {test: sums.jsonl, train: sums.jsonl}}
test_split: test
fewshot_split: train
output_type: multiple_choice
doc_to_text: "Question: {{question}}\\nAnswer:"
doc_to_target: "{{gold}}"
doc_to_choice: "{{choices}}"
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""


def chat(question, answer):
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def build_world(folder: Path, tokenizer: Any, **stage: Any) -> Path:
    """Write all files to `folder`; `stage` has options of every training stage."""
    make_tiny_model().save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    rows = [{"messages": chat(f"{i}+{i}", str(2 * i)), "kind": "math"} for i in range(12)] + [
        {"messages": chat(f"say {c}", c * 3), "kind": "dialogue"} for c in "abcdefghijkl"
    ]
    write_jsonl(folder / "rows.jsonl", rows)
    write_jsonl(
        folder / "prompts.jsonl",
        [{"id": str(i), "messages": chat(f"say {i}", "")[:1], "language": "en"} for i in range(6)],
    )
    (folder / "tasks").mkdir()
    (folder / "tasks" / "sums.yaml").write_text(TASK)
    write_jsonl(
        folder / "tasks" / "sums.jsonl",
        [{"question": f"{i}+1", "choices": [str(i + 1), str(i + 2)], "gold": 0} for i in range(8)],
    )
    options = {
        "learning_rate": 1e-2,
        "num_train_epochs": 1,
        "train_batch_size": 8,
        "per_device_train_batch_size": 4,
        "max_length": 128,
    } | stage
    preset = {
        # No loop check would fit the time budget of a stage of seconds.
        "run": {"dir": str(folder / "run"), "loop_budget": 0},
        "model": {"name_or_path": str(folder / "base"), "dtype": "float32"},
        "data": {"sft": [{"path": str(folder / "rows.jsonl")}]},
        "sft_all": options,
        "sft_dialogue": options,
        "pairs": {
            "prompts": [{"path": str(folder / "rows.jsonl")}],
            "samples_per_prompt": 3,
            "max_new_tokens": 12,
        },
        "dpo": options,
        "eval": {
            "tasks": ["sums"],
            "task_dir": str(folder / "tasks"),
            "base_shots": 2,
            "repetition": {"prompts": str(folder / "prompts.jsonl"), "cap": 80},
        },
    }
    (folder / "preset.yaml").write_text(yaml.safe_dump(preset))
    return folder


def foreign_files(run: Path) -> list[Path]:
    """Return files of a run directory that are not on the list of files that the run wrote."""
    marker = read_marker(run)
    assert marker is not None, f"{run} has no marker"
    return marker.foreign_files(marker.folder)
