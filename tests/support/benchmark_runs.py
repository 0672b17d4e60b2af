"""Run one benchmark of a tiny model and read its result."""

import json

from made_up_tasks import NAMES

from eval.tasks.benchmark import Ask, run_benchmark
from eval.tasks.system_prompt import TurnedEngine
from eval.tasks.task_files import Tasks


def run(model, tokenizer, task_dir, folder, *, tasks=NAMES, limit=None, chat=False, **ask):
    return {
        task: run_benchmark(
            TurnedEngine(model, tokenizer, chat=chat, seed=0),
            task=task,
            source=task_dir if isinstance(task_dir, Tasks) else Tasks(str(task_dir)),
            ask=Ask(**{"chat": chat, "shots": 0} | ask),
            limit=limit,
            file=folder / f"{task}.jsonl",
        )
        for task in tasks
    }


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]
