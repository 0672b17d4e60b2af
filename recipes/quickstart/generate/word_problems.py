"""Build word problems: a question, a chain of reasoning, and a final answer.

A problem is drawn from a template and numbers; (template, numbers) is its key. Keys are divided
between training and benchmark by a hash (`splits.held_out`), so the two never share a problem,
in any language and with any names.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from recipes.quickstart.generate.bilingual import Text, load_sentences, side
from recipes.quickstart.generate.problem_numbers import SCHEMES

# Slots of a template: {a}, {b}, ... are numbers, {n} and {m} names, {t} an object, {x} a container;
# `numbers` names the scheme that draws the numbers, `final` the number that is the answer.
_SENTENCES = load_sentences("word_problems")
THINGS, BOXES, TEMPLATES = _SENTENCES.things, _SENTENCES.boxes, _SENTENCES.templates


@dataclass(frozen=True)
class Problem:
    """A question, its worked steps, and its final value.

    `answer` is the steps, then the fixed final form unless `closed` is false (written functions).
    """

    key: str
    question: str
    steps: tuple[str, ...]
    final: str
    language: str
    closed: bool = True

    @property
    def answer(self) -> str:
        gap = " " if self.language == "en" else ""
        end = (final_form(self.final, self.language),) if self.closed else ()
        return gap.join((*self.steps, *end))


def final_form(value: str, language: str) -> str:
    """Return the sentence that ends every worked answer; benchmarks read the value from it."""
    return f"The answer is {value}." if language == "en" else f"答案是 {value}。"


def make_problem(rng: random.Random, names: tuple[Text, ...], *, language: str) -> Problem:
    """Return a random problem with two of `names`."""
    template = rng.choice(TEMPLATES)
    numbers = SCHEMES[template.numbers](rng)
    first, second = rng.sample(names, 2)
    fill = {k: str(v) for k, v in numbers.items() if k != "t"} | {
        "n": side(first, language),
        "m": side(second, language),
        "t": side(rng.choice(THINGS), language),
        "x": side(rng.choice(BOXES), language),
        "t_": str(numbers.get("t", "")),
    }
    return Problem(
        key=f"{template.name}:" + ",".join(str(v) for v in numbers.values()),
        question=side(template.question, language).format(**fill),
        steps=tuple(side(step, language).format(**fill) for step in template.steps),
        final=fill[template.final],
        language=language,
    )
