"""Reduce few-shot examples if a question with all of them does not fit the context window.

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
from eval.tasks.lm_eval_model import DEFAULT_WINDOW, LmEvalModel


class FittedShots:
    """Wrap `fewshot_context` of a task to use as many examples as fit.

    Each question draws all examples once, so they equal those of lm-eval and do not depend on
    earlier questions; a question that does not fit keeps the first ones. The global generators
    advance as if every question had fitted.

    Attributes:
        fewer: prompt -> number of examples, for questions that got fewer.
    """

    def __init__(self, task: Task, model: LmEvalModel) -> None:
        self.fewer: dict[str, int] = {}
        self._task, self._model = task, model
        self._prompt = task.fewshot_context
        task.fewshot_context = self.prompt

    def prompt(self, doc: Any, num_fewshot: int, *args: Any, **kwargs: Any) -> Any:
        """Return lm-eval's prompt with the most examples that leave space for the answer."""
        if num_fewshot == 0:
            return self._prompt(doc, *args, num_fewshot=0, **kwargs)
        space = (self._model.window or DEFAULT_WINDOW) - self._answer_length(doc)
        before = rng_states()
        with _drawn_once(self._task.sampler):
            prompt = self._prompt(doc, *args, num_fewshot=num_fewshot, **kwargs)
            shots, after = num_fewshot, rng_states()
            while shots > 0 and not all(self._fits(text, space) for text in _texts(prompt)):
                shots -= 1
                restore_rng(before)
                prompt = self._prompt(doc, *args, num_fewshot=shots, **kwargs)
        if shots < num_fewshot:
            restore_rng(after)
            self.fewer[_texts(prompt)[0]] = shots
        return prompt

    def _fits(self, text: str, space: int) -> bool:
        # A token has at least one byte, so a short text need not be tokenized.
        return len(text.encode()) < space or len(self._model.encode([text])[0]) <= space

    def _answer_length(self, doc: Any) -> int:
        """Return an upper bound on the tokens of the longest answer."""
        if self._task.OUTPUT_TYPE == "generate_until":
            return answer_cap(self._task.get_config("generation_kwargs") or {})
        answers: Sequence[Any] = [self._task.doc_to_target(doc)]
        if self._task.OUTPUT_TYPE == "multiple_choice":
            answers = self._task.doc_to_choice(doc)
        return max(len(f" {answer}".encode()) for answer in answers)


def _texts(prompt: Any) -> Sequence[str]:
    return [prompt] if isinstance(prompt, str) else prompt


def rng_states() -> tuple[Any, Any]:
    """Return the states of the global generators of Python and NumPy."""
    return random.getstate(), np.random.get_state()


def restore_rng(states: tuple[Any, Any]) -> None:
    """Restore what `rng_states` returned."""
    random.setstate(states[0])
    np.random.set_state(states[1])


@contextmanager
def _drawn_once(sampler: Any) -> Iterator[None]:
    """Make `sampler.sample` draw only once; later calls return the first of these examples."""
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
        del sampler.sample  # the attribute of the instance, which hides the method
