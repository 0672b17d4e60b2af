"""One benchmark of one model through lm-eval: a score with its interval, every sample on disk."""

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
from eval.graders.isolation import RunCode
from eval.graders.sandbox_probe import find_isolation
from eval.metrics.paired_comparison import clusters_of
from eval.metrics.stats import BITS_PER_BYTE, bits_per_byte, score_interval
from eval.tasks.answer_length import cap_answers, end_at_turn
from eval.tasks.fewshot import FittedShots
from eval.tasks.sample_rows import Judged, cluster_key, is_template, other_metrics, stored_row
from eval.tasks.system_prompt import TurnedEngine
from eval.tasks.task_files import Tasks, check_tasks, load_tasks
from sft.distributed.collectives import main_first, run_on_main
from sft.errors import UserError
from sft.system.atomic_files import write_jsonl

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Ask:
    """How a model is asked one benchmark.

    Attributes:
        chat: in the chat template, examples as turns; otherwise as plain text.
        shots: few-shot examples, fewer for a question that would not fit the model's window.
        pinned: a task file's own `num_fewshot: 0` stands.
        metric: the task's first one when None; `eval.tasks.sample_rows.CHOICE_METRICS` for multiple
            choice.
        filter: the task's first one when None.
        max_gen_toks: tokens of a written answer; the task's own number when None.
    """

    chat: bool
    shots: int
    pinned: bool = True
    metric: str | None = None
    filter: str | None = None
    max_gen_toks: int | None = None


def run_benchmark(
    engine: TurnedEngine,
    *,
    task: str,
    source: Tasks,
    ask: Ask,
    limit: int | None,
    file: Path,
    code: RunCode = RunCode.NEVER,
) -> dict[str, Any]:
    """Run one task, or all tasks of a group as one, write its samples to `file`; returns its entry.

    Args:
        engine: a new one, in the format that `ask` names; its seed is the task's, too.
        limit: the first so many documents (of each task of a group).
        code: whether the programs that the model writes are run (`eval.graders.sandbox`).

    Processes share the model's answers; the first one judges them and writes.

    Raises:
        UserError: a task cannot be loaded, has no documents, runs programs that are not allowed, or
            has no score in [0, 1].
    """
    check_tasks([task], source=source, code=code)
    with quiet(), _seeded(engine.seed):
        loaded = _load(task, source=source, ask=ask, seed=engine.seed)
        asked = _asked(loaded, engine, ask=ask, limit=limit, configs=source.configs([task]))
        bare = [name for name, how in asked.judged.items() if how.bare]
        engine.score_bare(a[1] for n in bare for s in asked.samples[n] for a in s["arguments"])

        def finish() -> dict[str, Any]:
            rows = []
            for name, own in asked.samples.items():
                for sample in _judged_here(asked.tasks[name], own, code=code, label=engine.label):
                    row = stored_row(asked.tasks[name], sample, engine, judged=asked.judged[name])
                    if len(asked.samples) > 1:
                        row["doc_id"] = f"{name}/{row['doc_id']}"
                    rows.append(row)
            file.parent.mkdir(parents=True, exist_ok=True)
            write_jsonl(file, rows)
            form = _format(task, asked.tasks, asked.fitted, ask=ask, code=code)
            return summarise(rows) | form | engine.changes

        return run_on_main(finish)


def check_benchmark(
    engine: TurnedEngine,
    *,
    task: str,
    source: Tasks,
    ask: Ask,
    limit: int | None,
    needs_data: bool,
) -> None:
    """Ask a task of an engine whose backend computes nothing, so that what would stop
    `run_benchmark` before or after a model's answers is known without the model.

    Args:
        needs_data: refuse a task whose data cannot be loaded; otherwise it is not checked.

    Raises:
        UserError: as `run_benchmark`.
    """
    with quiet(), _seeded(engine.seed):
        try:
            loaded = _load(task, source=source, ask=ask, seed=engine.seed)
        except UserError:
            if needs_data:
                raise
            return  # `eval.tasks.questions` has logged it
        _asked(loaded, engine, ask=ask, limit=limit, configs=source.configs([task]))


@dataclass(frozen=True)
class _Asked:
    """A task, or the tasks of a group by name, with the samples of a model's answers."""

    tasks: Mapping[str, Task]
    judged: Mapping[str, Judged]
    fitted: Mapping[str, FittedShots]
    samples: Mapping[str, list[Mapping[str, Any]]]


def _load(task: str, *, source: Tasks, ask: Ask, seed: int) -> dict[str, Task]:
    with main_first():  # whose cache the others find
        return load_tasks([task], source=source, shots=ask.shots, seed=seed, pinned=ask.pinned)


def _asked(
    loaded: dict[str, Task],
    engine: TurnedEngine,
    *,
    ask: Ask,
    limit: int | None,
    configs: Mapping[str, dict[str, Any] | None],
) -> _Asked:
    """Have the engine answer a task; questions that do not fit have no sample."""
    assert engine.chat == ask.chat
    _check_offered(loaded)
    if ask.max_gen_toks is not None:
        cap_answers(loaded, ask.max_gen_toks)
    judged = {n: Judged.of(t, metric=ask.metric, filter=ask.filter) for n, t in loaded.items()}
    # After `Judged`: the same task in both formats, so that its rows are paired.
    end_at_turn(loaded, configs, chat=ask.chat)
    fitted = {name: FittedShots(one, engine) for name, one in loaded.items()}
    evaluated = evaluate(
        lm=engine,
        task_dict={"tasks": loaded},
        limit=limit,
        bootstrap_iters=0,
        apply_chat_template=ask.chat,
        fewshot_as_multiturn=ask.chat,
    )
    assert evaluated is not None, "one process evaluates"
    samples = {
        name: [
            sample
            for sample in _filtered(found, judged[name])
            if (judged[name].name, sample["doc_id"]) not in engine.unfit
        ]
        for name, found in evaluated["samples"].items()
    }
    return _Asked(loaded, judged, fitted, samples)


def place_of(entry: Mapping[str, Any]) -> str:
    """Under which name an entry of `run_benchmark` stands in scores.json."""
    return "language" if BITS_PER_BYTE in entry else "benchmarks"


def summarise(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Score, interval, n and metric of one task, from its stored rows alone.

    Texts that a language model reads have bits per byte in the place of a score. Multiple choice
    has `metrics`: the score by each other metric that the rows allow; written answers have
    `cut_answers`, how many were cut at the task's cap, and `unanswered`, how many ended within
    their thinking (at the cap), where there are any. Programs have `together`, how many ran in one
    process with their tests (`eval.graders.sandbox`).
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
    if cut := sum(row.get("finish_reason") == "cap" for row in rows):
        entry["cut_answers"] = cut
    if together := sum(row.get("together", False) for row in rows):
        entry["together"] = together
    if unanswered := sum(bool(r.get("thinking")) and not r["answer"].strip() for r in rows):
        entry["unanswered"] = unanswered
    return entry


def _format(
    name: str,
    tasks: Mapping[str, Task],
    fitted: Mapping[str, FittedShots],
    *,
    ask: Ask,
    code: RunCode,
) -> dict[str, Any]:
    """How the entry's score was asked for; how many questions had fewer examples, if any."""
    shots = max(
        int(task.get_config("num_fewshot") or 0)
        + int((task.get_config("metadata") or {}).get("shots", 0))
        for task in tasks.values()
    )
    fewer = sum(len(one.fewer) for one in fitted.values())
    if fewer:
        log.warning("%s: %d questions with fewer than %d examples, to fit", name, fewer, shots)
    rolling = all(task.OUTPUT_TYPE == "loglikelihood_rolling" for task in tasks.values())
    entry: dict[str, Any] = {"shots": shots, "chat_template": ask.chat and not rolling}
    if ask.max_gen_toks is not None:
        entry["max_gen_toks"] = ask.max_gen_toks
    if fewer:
        entry["fewer_shots"] = fewer
    if any(code_execution.runs_programs(task) for task in tasks.values()):
        entry["isolation"] = find_isolation(code).name
    return entry


def _check_offered(tasks: Mapping[str, Task]) -> None:
    for name, task in tasks.items():
        if code_execution.needs_programs(task.config.to_dict()):  # of a group's tasks, too
            code_execution.check_documents(task)
        cluster = cluster_key(task)
        named = cluster is None or is_template(cluster) or cluster in task.features
        if not named:
            raise UserError(
                f"task {name}: metadata.cluster names {cluster!r}, which its documents lack; "
                f"they have {', '.join(task.features)}"
            )


def _filtered(samples: Sequence[Mapping[str, Any]], judged: Judged) -> list[Mapping[str, Any]]:
    """lm-eval has a sample for each document and filter; one filter counts."""
    return [sample for sample in samples if sample["filter"] == judged.filter]


def _judged_here(
    task: Task, samples: Sequence[Mapping[str, Any]], *, code: RunCode, label: str | None
) -> Sequence[Mapping[str, Any]]:
    """The samples of tasks whose answers lm-eval does not judge, with their verdicts."""
    if code_execution.runs_programs(task):
        return code_execution.scored(task, samples, isolation=find_isolation(code), label=label)
    if ifeval.checks_instructions(task.config.to_dict()):
        return ifeval.scored(task, samples)
    return samples


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
