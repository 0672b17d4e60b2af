"""Build questions on small Python functions: evaluate a call step by step, or write one.

The answer is computed by running the function's own source, so no answer can be wrong.
"""

from __future__ import annotations

import random

from recipes.quickstart.generate import function_lists, function_numbers, function_words
from recipes.quickstart.generate.bilingual import side
from recipes.quickstart.generate.function_draft import Draft, Family
from recipes.quickstart.generate.word_problems import Problem

# fmt: off
NAMES = [
    "f", "g", "h", "step", "score", "shift", "grow", "count",
    "mix", "turn", "pick", "blend", "fold", "scale", "trim", "rank",
]
VARIABLES = ["x", "n", "a", "k", "v", "m"]
# fmt: on


FAMILIES: tuple[Family, ...] = (
    *function_numbers.FAMILIES,
    *function_lists.FAMILIES,
    *function_words.FAMILIES,
)


def run_call(source: str, call: str) -> str:
    """Return the value of the call as Python prints it; the source is always generated here."""
    scope: dict[str, object] = {}
    exec(source, scope)
    return str(eval(call, scope))


def _draft(rng: random.Random) -> tuple[Draft, str]:
    name, variable = rng.choice(NAMES), rng.choice(VARIABLES)
    return rng.choice(FAMILIES)(rng, name, variable), name


def make_evaluation(rng: random.Random, *, language: str) -> Problem:
    """Ask what a call returns, with the function in the question and a worked answer."""
    draft, _ = _draft(rng)
    ask = (f"What does {draft.call} return?", f"{draft.call} 返回什么？")
    return Problem(
        key=draft.key,
        question=f"{draft.source}\n{side(ask, language)}",
        steps=tuple(side(step, language) for step in draft.steps),
        final=run_call(draft.source, draft.call),
        language=language,
    )


def make_writing(rng: random.Random, *, language: str) -> Problem:
    """Ask for a function, answered by its source and one checked example call."""
    draft, name = _draft(rng)
    result = run_call(draft.source, draft.call)
    task = side(draft.task, language)
    if language == "en":
        question = f"Write a Python function {name} that {task}."
        steps = (f"Here it is:\n{draft.source}\nFor example, {draft.call} returns {result}.",)
    else:
        question = f"写一个 Python 函数 {name}，{task}。"
        steps = (f"代码如下：\n{draft.source}\n例如，{draft.call} 返回 {result}。",)
    return Problem(draft.key + ":write", question, steps, draft.source, language, closed=False)
