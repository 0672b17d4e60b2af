"""Fewer few-shot examples where a question with all of them does not fit the model's window.

The paper: "test-shots is the maximum, fewer might be applied because of limited context" (arXiv
2401.02954, Table 5).
"""

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from lm_eval.api.task import Task

from eval.tasks.answer_length import answer_cap
from eval.tasks.lm_eval_model import DEFAULT_WINDOW, Engine


class FittedShots:
    """Wraps a task's `fewshot_context` and asks it for as many examples as fit.

    Each question draws once, as many examples as the task names. So its examples are lm-eval's
    and do not depend on the questions before it; one that does not fit keeps the first of them. A
    task that draws from the global generators draws as if every question had fitted, too.

    Attributes:
        fewer: by prompt, the examples of a question that got fewer than the task names.
    """

    def __init__(self, task: Task, engine: Engine) -> None:
        self.fewer: dict[str, int] = {}
        self._task, self._engine = task, engine
        self._prompt = task.fewshot_context
        task.fewshot_context = self.prompt

    def prompt(self, doc: Any, num_fewshot: int, *args: Any, **kwargs: Any) -> Any:
        """lm-eval's prompt of the question, with the most examples that leave room to answer."""
        if num_fewshot == 0:
            return self._prompt(doc, *args, num_fewshot=0, **kwargs)
        room = (self._engine.window or DEFAULT_WINDOW) - self._answer_length(doc)
        begun = _generators()
        with _drawn_once(self._task.sampler):
            prompt = self._prompt(doc, *args, num_fewshot=num_fewshot, **kwargs)
            shots, ended = num_fewshot, _generators()
            while shots > 0 and not all(self._fits(text, room) for text in _texts(prompt)):
                shots -= 1
                _restore(begun)
                prompt = self._prompt(doc, *args, num_fewshot=shots, **kwargs)
        if shots < num_fewshot:
            _restore(ended)
            self.fewer[_texts(prompt)[0]] = shots
        return prompt

    def _fits(self, text: str, room: int) -> bool:
        # A token is a byte at least, so that a short text need not be tokenised.
        return len(text.encode()) < room or len(self._engine.encode([text])[0]) <= room

    def _answer_length(self, doc: Any) -> int:
        """Tokens of the longest answer, or more."""
        if self._task.OUTPUT_TYPE == "generate_until":
            return answer_cap(self._task.get_config("generation_kwargs") or {})
        answers: Sequence[Any] = [self._task.doc_to_target(doc)]
        if self._task.OUTPUT_TYPE == "multiple_choice":
            answers = self._task.doc_to_choice(doc)
        return max(len(f" {answer}".encode()) for answer in answers)


def _texts(prompt: Any) -> Sequence[str]:
    return [prompt] if isinstance(prompt, str) else prompt


def _generators() -> tuple[Any, Any]:
    """The states of Python's and NumPy's global generators."""
    return random.getstate(), np.random.get_state()


def _restore(states: tuple[Any, Any]) -> None:
    random.setstate(states[0])
    np.random.set_state(states[1])


@contextmanager
def _drawn_once(sampler: Any) -> Iterator[None]:
    """Let `sampler.sample` draw at its first call alone; later ones get the first of those."""
    draw = sampler.sample
    drawn: list[Any] = []

    def sample(n: int, *args: Any, **kwargs: Any) -> Sequence[Any]:
        if not drawn:
            drawn.extend(draw(n, *args, **kwargs))
        return drawn[:n]

    sampler.sample = sample
    try:
        yield
    finally:
        del sampler.sample  # the instance's, which hides the class's
