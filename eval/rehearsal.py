"""Questions asked without a model, so that what would stop a measure is found before training."""

from collections.abc import Callable, Sequence
from typing import Any

from eval.backend import Backend, Question, Scored
from eval.benchmarks import check_benchmark
from eval.generate import Generation
from eval.measure import ask_of
from eval.tasks import Tasks
from sft.config import EvalSection


class SilentBackend(Backend):
    """A backend with a window that computes nothing: every choice is equally likely and every
    answer ends at once."""

    eos_ids = ()

    def __init__(self, window: int | None) -> None:
        self.window = window

    def score(
        self, questions: Sequence[Question], *, progress: Callable[[int], object] | None = None
    ) -> list[Scored]:
        return [Scored(0.0, 0) for _ in questions]

    def generate(self, prompts: Sequence[Sequence[int]], **_: Any) -> list[Generation]:
        return [Generation(list(prompt), [], "", "stop_id") for prompt in prompts]


def check_questions(
    section: EvalSection, tokenizer: Any, *, window: int | None, seed: int, max_unknown: float
) -> None:
    """Ask every task as a run does, as plain text and in the chat template, of a backend that
    computes nothing.

    Raises:
        UserError: a question would stop the run, see `eval.benchmarks.check_benchmark`.
    """
    for task in section.tasks:
        for chat in (False, True):
            check_benchmark(
                SilentBackend(window),
                tokenizer,
                task=task,
                source=Tasks.of(section),
                ask=ask_of(task, section, chat=chat),
                limit=section.limit,
                seed=seed,
                max_unknown=max_unknown,
            )
