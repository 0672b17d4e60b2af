"""Run one benchmark of a tiny model and read its result."""

import json

from made_up_tasks import NAMES

from eval.tasks.benchmark import TaskFormat, run_benchmark
from eval.tasks.lm_eval_model import LmEvalModel
from eval.tasks.task_files import TaskSource


def run(model, tokenizer, task_dir, folder, *, tasks=NAMES, limit=None, chat=False, **ask):
    return {
        task: run_benchmark(
            LmEvalModel(model, tokenizer, chat=chat, seed=0),
            task=task,
            source=task_dir if isinstance(task_dir, TaskSource) else TaskSource(str(task_dir)),
            form=TaskFormat(**{"chat": chat, "shots": 0} | ask),
            limit=limit,
            file=folder / f"{task}.jsonl",
        )
        for task in tasks
    }


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]
