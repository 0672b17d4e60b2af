"""Run one lm-eval benchmark of one model: a score with its interval, every sample on disk."""

import logging
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import datasets
import numpy as np
from lm_eval.api.task import Task
from lm_eval.evaluator import evaluate
from tqdm import tqdm

from eval.graders import code_execution, ifeval
from eval.graders.sandbox_command import RunCode
from eval.graders.sandbox_probe import find_isolation
from eval.metrics.paired_comparison import clusters_of
from eval.metrics.stats import BITS_PER_BYTE, bits_per_byte, score_interval
from eval.tasks.answer_length import cap_answers, end_at_turn
from eval.tasks.fewshot import FittedShots, restore_rng, rng_states
from eval.tasks.lm_eval_model import LmEvalModel
from eval.tasks.sample_rows import (
    TaskScoring,
    check_references,
    cluster_key,
    is_template,
    other_metrics,
    stored_row,
)
from eval.tasks.task_files import TaskSource, check_tasks, load_tasks
from sft.distributed.collectives import main_first, run_on_main
from sft.errors import UserError
from sft.system.atomic_files import write_jsonl

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TaskFormat:
    """Prompt format and metric of one benchmark.

    Attributes:
        chat: use the chat template, with examples as turns; otherwise plain text.
        shots: number of few-shot examples, fewer for a question that would not fit the window.
        pinned: keep `num_fewshot: 0` of a task file.
        metric: None uses the first one of the task; multiple choice has
            `eval.tasks.sample_rows.CHOICE_METRICS`.
        filter: None uses the first one of the task.
        max_gen_toks: cap on tokens of a generated answer; None uses that of the task.
    """

    chat: bool
    shots: int
    pinned: bool = True
    metric: str | None = None
    filter: str | None = None
    max_gen_toks: int | None = None


def run_benchmark(
    model: LmEvalModel,
    *,
    task: str,
    source: TaskSource,
    form: TaskFormat,
    limit: int | None,
    file: Path,
    code: RunCode = RunCode.NEVER,
) -> dict[str, Any]:
    """Run one task, or all tasks of a group, write its samples to `file` and return its entry.

    Processes share the generation; the main process grades and writes.

    Args:
        model: a new one, in the format of `form`; its seed also seeds the task.
        limit: number of documents, of each task of a group.
        code: whether programs that the model writes are run (`eval.graders.sandbox`).

    Raises:
        UserError: a task cannot be loaded, has no documents, runs programs that are not allowed, or
            has no score in [0, 1].
    """
    check_tasks([task], source=source, code=code)
    with quiet(), _seeded(model.seed):
        loaded = _load(task, source=source, form=form, seed=model.seed)
        run = _evaluate(loaded, model, form=form, limit=limit, configs=source.configs([task]))
        bare = [name for name, scoring in run.scorings.items() if scoring.bare]
        model.score_bare(a[1] for n in bare for s in run.samples[n] for a in s["arguments"])

        def finish() -> dict[str, Any]:
            rows = []
            for name, samples in run.samples.items():
                for sample in _graded(run.tasks[name], samples, code=code, label=model.label):
                    row = stored_row(run.tasks[name], sample, model, scoring=run.scorings[name])
                    if len(run.samples) > 1:
                        row["doc_id"] = f"{name}/{row['doc_id']}"
                    rows.append(row)
            file.parent.mkdir(parents=True, exist_ok=True)
            write_jsonl(file, rows)
            used = _format_entry(task, run, form=form, code=code)
            return summarize(rows) | used | model.prompt_changes

        return run_on_main(finish)


def check_benchmark(
    model: LmEvalModel,
    *,
    task: str,
    source: TaskSource,
    form: TaskFormat,
    limit: int | None,
    needs_data: bool,
) -> None:
    """Run a task on a backend that computes nothing, to find errors of `run_benchmark` early.

    Args:
        needs_data: raise if the data of a task cannot be loaded; otherwise skip the task.

    Raises:
        UserError: as `run_benchmark`.
    """
    with quiet(), _seeded(model.seed):
        try:
            loaded = _load(task, source=source, form=form, seed=model.seed)
        except UserError:
            if needs_data:
                raise
            return  # `eval.tasks.questions` has logged it
        _evaluate(loaded, model, form=form, limit=limit, configs=source.configs([task]))


@dataclass(frozen=True)
class _Evaluation:
    """The tasks of a name (several for a group), and lm-eval's samples of each."""

    tasks: Mapping[str, Task]
    scorings: Mapping[str, TaskScoring]
    fitted: Mapping[str, FittedShots]
    samples: Mapping[str, list[Mapping[str, Any]]]


def _load(task: str, *, source: TaskSource, form: TaskFormat, seed: int) -> dict[str, Task]:
    with main_first():  # the others read its cache
        return load_tasks([task], source=source, shots=form.shots, seed=seed, pinned=form.pinned)


def _evaluate(
    loaded: dict[str, Task],
    model: LmEvalModel,
    *,
    form: TaskFormat,
    limit: int | None,
    configs: Mapping[str, dict[str, Any] | None],
) -> _Evaluation:
    """Run lm-eval; questions that do not fit have no sample."""
    assert model.chat == form.chat
    _check_documents(loaded)
    if form.max_gen_toks is not None:
        cap_answers(loaded, form.max_gen_toks)
    scorings = {
        name: TaskScoring.of(one, metric=form.metric, filter=form.filter)
        for name, one in loaded.items()
    }
    # After `TaskScoring`, whose hash of the task must be equal in both formats for pairing.
    end_at_turn(loaded, configs, chat=form.chat)
    fitted = {name: FittedShots(one, model) for name, one in loaded.items()}
    evaluated = evaluate(
        lm=model,
        task_dict={"tasks": loaded},
        limit=limit,
        bootstrap_iters=0,
        apply_chat_template=form.chat,
        fewshot_as_multiturn=form.chat,
    )
    assert evaluated is not None, "lm-eval runs in one process"
    # lm-eval has a sample for each document and filter; one filter counts.
    samples = {
        name: [
            sample
            for sample in found
            if sample["filter"] == scorings[name].filter
            and (scorings[name].name, sample["doc_id"]) not in model.unfit
        ]
        for name, found in evaluated["samples"].items()
    }
    return _Evaluation(loaded, scorings, fitted, samples)


def scores_key(entry: Mapping[str, Any]) -> str:
    """Return the key of scores.json that holds an entry of `run_benchmark`."""
    return "language" if BITS_PER_BYTE in entry else "benchmarks"


def summarize(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return score, interval, n and metric of one task from its stored rows.

    Language modeling has bits per byte instead of a score. Multiple choice has `metrics`, the score
    by each other metric that the rows allow. Generated answers have the counts `cut_answers` (cut
    at the cap) and `unanswered` (reached the cap within their reasoning). Programs have the count
    `together` (run in one process with their tests, see `eval.graders.sandbox`).
    """
    metric = ", ".join(dict.fromkeys(row["metric"] for row in rows))
    if metric == BITS_PER_BYTE:
        logs, sizes = [r["log_prob"] for r in rows], [r["bytes"] for r in rows]
        ratio = bits_per_byte(logs, sizes, clusters=clusters_of(rows))
        ci = None if ratio.ci is None else list(ratio.ci)
        return {BITS_PER_BYTE: ratio.value, "ci": ci, "n": len(rows), "metric": metric}
    scores = [row["score"] for row in rows]
    entry = {
        "score": sum(scores) / len(scores),
        "ci": list(score_interval(scores, clusters=clusters_of(rows))),
        "n": len(scores),
        "metric": metric,
    }
    if others := other_metrics(rows):
        entry["metrics"] = others
    counts = {
        "cut_answers": sum(row.get("finish_reason") == "cap" for row in rows),
        "together": sum(row.get("together", False) for row in rows),
        "unanswered": sum(bool(r.get("thinking")) and not r["answer"].strip() for r in rows),
    }
    return entry | {key: count for key, count in counts.items() if count}


def _format_entry(
    name: str, run: _Evaluation, *, form: TaskFormat, code: RunCode
) -> dict[str, Any]:
    """Return the keys of an entry that record the prompt format."""
    tasks = run.tasks
    shots = max(
        int(task.get_config("num_fewshot") or 0)
        + int((task.get_config("metadata") or {}).get("shots", 0))
        for task in tasks.values()
    )
    fewer = sum(len(one.fewer) for one in run.fitted.values())
    if fewer:
        log.warning(
            "%s: %d questions have fewer than %d examples, to fit the context window",
            name,
            fewer,
            shots,
        )
    rolling = all(task.OUTPUT_TYPE == "loglikelihood_rolling" for task in tasks.values())
    entry: dict[str, Any] = {"shots": shots, "chat_template": form.chat and not rolling}
    if form.max_gen_toks is not None:
        entry["max_gen_toks"] = form.max_gen_toks
    if fewer:
        entry["fewer_shots"] = fewer
    if any(code_execution.runs_programs(task) for task in tasks.values()):
        entry["isolation"] = find_isolation(code).name
    return entry


def _check_documents(tasks: Mapping[str, Task]) -> None:
    for name, task in tasks.items():
        if code_execution.needs_programs(task.config.to_dict()):
            code_execution.check_documents(task)
        check_references(name, task)
        cluster = cluster_key(task)
        if cluster is not None and not is_template(cluster) and cluster not in task.features:
            raise UserError(
                f"task {name}: metadata.cluster names {cluster!r}, which its documents lack; "
                f"they have {', '.join(task.features)}"
            )


def _graded(
    task: Task, samples: Sequence[Mapping[str, Any]], *, code: RunCode, label: str | None
) -> Sequence[Mapping[str, Any]]:
    """Return the samples, graded here for programs and IFEval, which lm-eval does not grade."""
    if code_execution.runs_programs(task):
        return code_execution.score_samples(
            task, samples, isolation=find_isolation(code), label=label
        )
    if ifeval.checks_instructions(task.config.to_dict()):
        return ifeval.score_samples(task, samples)
    return samples


@contextmanager
def quiet() -> Iterator[None]:
    """Disable the logs and progress bars of lm-eval and datasets."""
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
    """Seed the global generators of Python and NumPy, which some tasks use; restore them after."""
    states = rng_states()
    random.seed(seed)
    np.random.seed(seed)
    try:
        yield
    finally:
        restore_rng(states)
