"""The whole chain on real rows, real pretrained models and real benchmark questions."""

import shutil

import pytest
import yaml

from recipes.sft_then_dpo import main
from sft.system.atomic_files import read_json, read_jsonl, write_json, write_jsonl

pytestmark = [pytest.mark.real, pytest.mark.slow]

TASKS = {
    "real_hellaswag": {
        "file": "hellaswag_val_1000.jsonl",
        "output_type": "multiple_choice",
        "doc_to_text": "{{activity_label}}: {{ctx}}",
        "doc_to_target": "{{label}}",
        "doc_to_choice": "{{endings}}",
        "metric_list": [
            {"metric": "acc", "aggregation": "mean", "higher_is_better": True},
        ],
    },
    "real_gsm8k": {
        "file": "gsm8k_test.jsonl",
        "output_type": "generate_until",
        "doc_to_text": "Question: {{question}}\nAnswer:",
        "doc_to_target": "{{answer.split('####')[-1].strip()}}",
        "generation_kwargs": {"until": ["Question:"], "do_sample": False, "max_gen_toks": 40},
        "metric_list": [
            {"metric": "exact_match", "aggregation": "mean", "higher_is_better": True},
        ],
    },
}


def write_tasks(folder):
    folder.mkdir()
    for name, task in TASKS.items():
        config = {
            "task": name,
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": task["file"]}},
            "test_split": "test",
        }
        config |= {key: value for key, value in task.items() if key != "file"}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(config))


@pytest.mark.parametrize(
    ("model", "alpaca", "preferences", "cap", "tasks"),
    [
        ("stories260K", "alpaca_en_first10k.jsonl.gz", "lf_dpo_en_demo.jsonl", 100, list(TASKS)),
        # Its window, doubled here, is shorter than the questions.
        ("poem-zh-750k", "alpaca_zh_translated_9k.jsonl.gz", "lf_dpo_zh_demo.jsonl", 64, []),
    ],
)
def test_the_chain_on_real_data(real_data, tmp_path, model, alpaca, preferences, cap, tasks):
    write_tasks(tmp_path / "tasks")
    shutil.copytree(real_data / "models" / model, tmp_path / model)
    config = read_json(tmp_path / model / "config.json")
    window = 2 * config["max_position_embeddings"]
    write_json(tmp_path / model / "config.json", config | {"max_position_embeddings": window})
    texts = ["Tell me a story.", "写一首诗。", "Hi", "明月"]
    prompts = [
        {"id": text, "messages": [{"role": "user", "content": text}], "language": "en"}
        for text in texts
    ]
    write_jsonl(tmp_path / "prompts.jsonl", prompts)
    stage = {
        "learning_rate": 1e-3,
        "num_train_epochs": 1,
        "train_batch_size": 16,
        "per_device_train_batch_size": 8,
        "max_length": 512,
    }
    preset = {
        "run": {"dir": str(tmp_path / "run")},
        # The vocabularies of these tiny models lack many of the characters.
        "model": {"name_or_path": str(tmp_path / model), "max_unknown": 1.0},
        "data": {
            "sft": [
                {"path": str(real_data / "sft" / alpaca), "kind": "dialogue", "weight": 0.01},
                {
                    "path": str(real_data / "sft" / "gsm8k_train.jsonl.gz"),
                    "kind": "math",
                    "weight": 0.01,
                },
            ],
            "preference": [{"path": str(real_data / "preference" / preferences), "weight": 0.1}],
            "on_error": "drop",
        },
        "sft_all": stage,
        "sft_dialogue": stage,
        "dpo": stage | {"max_length": 1024},
        "eval": {
            "tasks": tasks,
            "task_dir": str(tmp_path / "tasks"),
            "data_dir": str(real_data / "eval"),
            "limit": 6,
            "base_shots": 0,
            "repetition": {"prompts": str(tmp_path / "prompts.jsonl"), "cap": cap},
        },
    }
    (tmp_path / "preset.yaml").write_text(yaml.safe_dump(preset))

    assert main([str(tmp_path / "preset.yaml")]) == 0

    results = read_json(tmp_path / "run" / "results.json")
    assert results["models"] == ["base", "sft-all", "sft-dialogue", "dpo"]
    for facts in results["stages"].values():
        assert facts["steps"] > 0 and facts["tokens"] > 0
    # It learnt something from real rows, and kept the preference margin at zero to begin with.
    first = results["stages"]["sft-all"]
    assert first["loss_last"] < first["loss_first"]
    log = read_jsonl(tmp_path / "run" / "3-dpo" / "log.jsonl")
    assert abs(log[0]["rewards/margins"]) < 0.05
    counts = read_json(tmp_path / "run" / "data" / "data.json")["sources"]
    assert counts[0]["rows_in"] == counts[0]["kept"] + sum(counts[0]["dropped"].values())
    assert counts[0]["dropped"]  # Alpaca has empty outputs
    assert (tmp_path / "run" / "report.html").stat().st_size > 10_000
