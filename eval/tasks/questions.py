"""What the tasks ask, so that no training row holds it."""

import functools
import logging
from collections.abc import Sequence
from typing import Any

from lm_eval.api.task import Task

from eval.tasks.benchmark import quiet
from eval.tasks.task_files import Tasks, load_tasks, tasks_fingerprint
from sft.cleaning.decontamination import BenchmarkQuestion, Benchmarks, read_questions
from sft.cleaning.ngrams import normal_form
from sft.config.sections import EvalSection
from sft.errors import UserError

log = logging.getLogger(__name__)


def benchmark_questions(section: EvalSection) -> Benchmarks:
    """The questions of every document that `eval.tasks` measures on, whatever `eval.limit` says."""
    names, source = list(section.tasks), Tasks.of(section)

    @functools.cache
    def load() -> dict[str, list[BenchmarkQuestion]]:
        return {name: _load(name, source=source) for name in names}

    return Benchmarks(key=tasks_fingerprint(names, source=source), load=load)


def _load(name: str, *, source: Tasks) -> list[BenchmarkQuestion]:
    """Nothing where the data cannot be had, which measuring refuses but a dry run need not."""
    try:
        with quiet():
            tasks = load_tasks([name], source=source, shots=0, seed=0)
    except UserError as error:
        log.warning(
            "no check of the rows against the questions of %s, with which a run would stop: %s",
            *(name, error),
        )
        return []
    questions: list[BenchmarkQuestion] = []
    for task in tasks.values():
        docs = list(task.eval_docs)
        found = read_questions(docs, source=name)
        questions += found if len(found) == len(docs) else _as_asked(task, docs, source=name)
    return questions


def _as_asked(task: Task, docs: Sequence[Any], *, source: str) -> list[BenchmarkQuestion]:
    """The texts that the model is given, without what they all begin and end with."""
    texts = []
    for doc in docs:
        text = task.doc_to_text(doc)
        # A task with the question in its choices (Winogrande) gives the place of the right one.
        texts.append(
            normal_form(text if isinstance(text, str) else str(task.doc_to_choice(doc)[0]))
        )
    begin, end = 0, 0
    if len(texts) > 1:
        begin = _shared(texts)
        end = _shared([text[begin:][::-1] for text in texts])
    return [
        BenchmarkQuestion(source, str(i), text[begin : len(text) - end])
        for i, text in enumerate(texts)
    ]


def _shared(texts: Sequence[str]) -> int:
    """How many characters all texts begin with: those of the first and the last in order."""
    first, last = min(texts), max(texts)
    return next(
        (i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first)
    )
