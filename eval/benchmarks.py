"""Benchmarks of one model through lm-eval: scores with intervals, and every sample on disk."""

import logging
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import datasets
import numpy as np
from lm_eval.api.task import Task
from lm_eval.evaluator import evaluate
from tqdm import tqdm

from eval import code_tasks, instructions
from eval.engine import Engine
from eval.programs import find_isolation
from eval.stats import score_interval
from eval.tasks import check_tasks, load_tasks, tasks_fingerprint
from sft.config import UserError
from sft.run import write_jsonl

__all__ = ["check_tasks", "run_benchmarks", "summarise", "tasks_fingerprint"]

# How lm-eval's multiple-choice metrics turn log-probabilities into a choice (api/task.py).
_LENGTHS: dict[str, Callable[[str], int]] = {
    "acc_norm": len,
    "acc_bytes": lambda c: len(c.encode()),
}


def run_benchmarks(
    model: Any,
    tokenizer: Any,
    *,
    tasks: Sequence[str],
    task_dir: str | None,
    shots: int,
    chat_template: bool,
    limit: int | None,
    seed: int,
    folder: Path,
    allow_code_execution: bool = False,
    label: str | None = None,
) -> dict[str, dict[str, Any]]:
    """Run the tasks and write folder/<task>.jsonl; returns the results.json entries by task.

    Args:
        model: a causal LM that `sft.scoring.enable_scoring` has seen.
        tasks: names of tasks under `task_dir` or of lm-eval; a group gives an entry for each task.
        shots: few-shot examples, where the task does not pin 0.
        chat_template: ask in the template, examples as turns; otherwise as plain text.
        limit: the first so many documents of each task.
        allow_code_execution: run the programs that the model writes, apart (`eval.programs`).
        label: names the progress bars.

    Raises:
        UserError: a task cannot be loaded, has no documents, runs programs that are not allowed, or
            has no score in [0, 1].
    """
    check_tasks(tasks, task_dir=task_dir, allow_code_execution=allow_code_execution)
    with quiet(), _seeded(seed):
        loaded = load_tasks(tasks, task_dir=task_dir, shots=shots, seed=seed)
        _check_offered(loaded)
        engine = Engine(model, tokenizer, chat=chat_template, seed=seed, label=label)
        evaluated = evaluate(
            lm=engine,
            task_dict={"tasks": loaded},
            limit=limit,
            bootstrap_iters=0,
            apply_chat_template=chat_template,
            fewshot_as_multiturn=chat_template,
        )
    assert evaluated is not None, "one process evaluates"
    entries = {}
    folder.mkdir(parents=True, exist_ok=True)
    for name, samples in evaluated["samples"].items():
        task = loaded[name]
        samples = _first_filter(samples)
        used = int(task.get_config("num_fewshot") or 0)
        facts: dict[str, Any] = {"shots": used, "chat_template": chat_template}
        if code_tasks.runs_programs(task):
            samples = code_tasks.scored(task, samples, label=label)
            facts["isolation"] = find_isolation().name
        if instructions.checks_instructions(task.config.to_dict()):
            samples = instructions.scored(task, samples)
        rows = [_row(name, task, sample, engine) for sample in samples]
        write_jsonl(folder / f"{name}.jsonl", rows)
        entries[name] = summarise(rows) | facts
    return entries


def summarise(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Score, interval, n and metric of one task, from its stored rows alone."""
    scores = [row["score"] for row in rows]
    return {
        "score": sum(scores) / len(scores),
        "ci": list(score_interval(scores)),
        "n": len(scores),
        "metric": rows[0]["metric"],
    }


def _check_offered(tasks: Mapping[str, Task]) -> None:
    for name, task in tasks.items():
        if task.OUTPUT_TYPE == "loglikelihood_rolling":
            raise UserError(
                f"task {name} measures perplexity, which is no score in [0, 1]; leave it out"
            )
        if code_tasks.needs_programs(task.config.to_dict()):  # of a group's tasks, too
            code_tasks.check_documents(task)
        if instructions.checks_instructions(task.config.to_dict()):
            instructions.check_documents(task)
        cluster = _cluster_key(task)
        if cluster is not None and cluster not in task.features:
            raise UserError(
                f"task {name}: metadata.cluster names {cluster!r}, which its documents lack; "
                f"they have {', '.join(task.features)}"
            )


def _cluster_key(task: Task) -> str | None:
    """The document field that questions of one passage share, where the task's file names it."""
    return (task.get_config("metadata") or {}).get("cluster")


def _first_filter(samples: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """lm-eval has a sample for each document and filter; the task's first filter counts."""
    return [sample for sample in samples if sample["filter"] == samples[0]["filter"]]


def _row(name: str, task: Task, sample: Mapping[str, Any], engine: Engine) -> dict[str, Any]:
    """A stored row: the contract's keys, and what the verdict rests on."""
    doc = sample["doc"]
    metric, score = _score(name, task, sample)
    cluster = _cluster_key(task)
    row = {
        "doc_id": str(sample["doc_id"]),
        "doc_hash": sample["doc_hash"],
        "score": score,
        "metric": metric,
        "prompt": sample["arguments"][0][0],
        "cluster": None if cluster is None else str(doc[cluster]),
        "filter": sample["filter"],
    }
    if task.OUTPUT_TYPE == "multiple_choice":
        return row | _choice(task, sample, metric)
    answer = sample["resps"][0][0]
    if task.OUTPUT_TYPE == "generate_until":
        reason = engine.finish_reasons[(name, sample["doc_id"])]
        row |= {"finish_reason": reason, "filtered": str(sample["filtered_resps"][0])}
    if "outcome" in sample:
        row["outcome"] = sample["outcome"]
    return row | {"answer": str(answer), "target": str(sample["target"])}


def _score(name: str, task: Task, sample: Mapping[str, Any]) -> tuple[str, float]:
    """The task's first metric with one value in [0, 1] for each document."""
    listed = [entry["metric"] for entry in task.get_config("metric_list") or []]
    for metric in [*listed, *sample["metrics"]]:
        value = sample.get(metric) if isinstance(metric, str) else None
        if isinstance(value, int | float | np.number) and 0 <= value <= 1:
            return metric, float(value)
    raise UserError(
        f"task {name} has no metric in [0, 1] for each document "
        f"({', '.join(sample['metrics'])}); leave it out"
    )


def _choice(task: Task, sample: Mapping[str, Any], metric: str) -> dict[str, Any]:
    """The choice that the metric takes, the right one, and all log-probabilities."""
    choices = [str(choice) for choice in task.doc_to_choice(sample["doc"])]
    logs = [float(resp[0]) for resp in sample["filtered_resps"]]
    values = logs[: len(choices)]
    if metric == "acc_mutual_info":
        values = [a - b for a, b in zip(values, logs[len(choices) :], strict=True)]
    elif metric in _LENGTHS:
        values = [v / _LENGTHS[metric](c) for v, c in zip(values, choices, strict=True)]
    gold = task.doc_to_text(sample["doc"]) if task.multiple_input else sample["target"]
    golds = gold if isinstance(gold, list) else [gold]
    return {
        "answer": choices[int(np.argmax(values))],
        "target": " | ".join(choices[g] if isinstance(g, int) else str(g) for g in golds),
        "choices": choices,
        "log_probs": logs[: len(choices)],
    }


@contextmanager
def quiet() -> Iterator[None]:
    """lm-eval's and datasets' own logs and bars off; what matters is logged or raised here."""
    logger = logging.getLogger("lm_eval")
    level, bars = logger.level, datasets.is_progress_bar_enabled()
    logger.setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    try:
        with patch("lm_eval.api.task.tqdm", partial(tqdm, disable=True)):
            yield
    finally:
        logger.setLevel(level)
        if bars:
            datasets.enable_progress_bars()


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Python's and NumPy's global generators, which some tasks shuffle with; put back after."""
    states = random.getstate(), np.random.get_state()
    random.seed(seed)
    np.random.seed(seed)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
