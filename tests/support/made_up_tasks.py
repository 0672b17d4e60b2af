"""Two small benchmark task files, multiple-choice and generated, over the same eight questions."""

import json
import random

import yaml

CHOICE = {
    "task": "mine_choice",
    "dataset_path": "json",
    "dataset_kwargs": {
        "data_files": {"test": "../data/choice.jsonl", "train": "../data/shots.jsonl"}
    },
    "test_split": "test",
    "fewshot_split": "train",
    "fewshot_config": {"sampler": "first_n"},
    "output_type": "multiple_choice",
    "doc_to_text": "Question: {{question}}\nAnswer:",
    "doc_to_choice": "{{choices}}",
    "doc_to_target": "{{gold}}",
    "metric_list": [
        {"metric": "acc_norm", "aggregation": "mean", "higher_is_better": True},
        {"metric": "acc", "aggregation": "mean", "higher_is_better": True},
    ],
    "metadata": {"version": 1.0, "cluster": "passage"},
}
WRITTEN = CHOICE | {
    "task": "mine_written",
    "output_type": "generate_until",
    "doc_to_choice": None,
    "doc_to_target": "{{choices[gold]}}",
    "generation_kwargs": {"until": ["\n\n"], "do_sample": False, "max_gen_toks": 16},
    "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    "metadata": {"version": 1.0},
}
NAMES = ["mine_choice", "mine_written"]


def write_tasks(tmp_path):
    """Write two tasks of eight documents in four passages, with relative data paths."""
    rng = random.Random(0)
    words = ["sea", "road", "tea", "snow", "a long answer", "cat"]
    rows = [
        {
            "question": f"what is number {i}?",
            "choices": rng.sample(words, 3),
            "gold": i % 3,
            "passage": f"p{i // 2}",
        }
        for i in range(8)
    ]
    (tmp_path / "data").mkdir()
    for name, part in (("choice", rows), ("shots", rows[::-1][:3])):
        lines = "".join(json.dumps(row) + "\n" for row in part)
        (tmp_path / "data" / f"{name}.jsonl").write_text(lines)
    folder = tmp_path / "tasks"
    folder.mkdir()
    for config in (CHOICE, WRITTEN):
        (folder / f"{config['task']}.yaml").write_text(yaml.safe_dump(config))
    return folder


def change(task_dir, **changes):
    (task_dir / "mine_choice.yaml").write_text(yaml.safe_dump(CHOICE | changes))
