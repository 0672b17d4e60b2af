"""Load the questions of all tasks, for decontamination of the training rows."""

import functools
import logging
from collections.abc import Sequence
from typing import Any

from lm_eval.api.task import Task

from eval.tasks.benchmark import quiet
from eval.tasks.task_files import TaskSource, load_tasks, tasks_fingerprint
from sft.cleaning.decontamination import BenchmarkQuestion, Benchmarks, read_questions
from sft.cleaning.ngrams import normal_form
from sft.config.sections import EvalSection
from sft.errors import UserError

log = logging.getLogger(__name__)


def benchmark_questions(section: EvalSection) -> Benchmarks:
    """Return the questions of all documents of `eval.tasks`, regardless of `eval.limit`."""
    names, source = list(section.tasks), TaskSource.of(section)

    @functools.cache
    def load() -> dict[str, list[BenchmarkQuestion]]:
        return {name: _load(name, source=source) for name in names}

    return Benchmarks(key=tasks_fingerprint(names, source=source), load=load)


def _load(name: str, *, source: TaskSource) -> list[BenchmarkQuestion]:
    """Return the questions; none, with a warning, if the data of the task cannot be loaded."""
    try:
        with quiet():
            tasks = load_tasks([name], source=source, shots=0, seed=0)
    except UserError as error:
        log.warning(
            "the rows are not checked against the questions of %s, and a run would stop: %s",
            *(name, error),
        )
        return []
    questions: list[BenchmarkQuestion] = []
    for task in tasks.values():
        docs = list(task.eval_docs)
        found = read_questions(docs, source=name)
        questions += found if len(found) == len(docs) else _as_prompted(task, docs, source=name)
    return questions


def _as_prompted(task: Task, docs: Sequence[Any], *, source: str) -> list[BenchmarkQuestion]:
    """Return the prompts without their common prefix and suffix."""
    texts = []
    for doc in docs:
        text = task.doc_to_text(doc)
        # Winogrande has the question in its choices; doc_to_text is the index of the correct one.
        texts.append(
            normal_form(text if isinstance(text, str) else str(task.doc_to_choice(doc)[0]))
        )
    begin, end = 0, 0
    if len(texts) > 1:
        begin = _common_prefix(texts)
        end = _common_prefix([text[begin:][::-1] for text in texts])
    return [
        BenchmarkQuestion(source, str(i), text[begin : len(text) - end])
        for i, text in enumerate(texts)
    ]


def _common_prefix(texts: Sequence[str]) -> int:
    """Return the length of the common prefix: that of the first and last text in order."""
    first, last = min(texts), max(texts)
    return next(
        (i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first)
    )
