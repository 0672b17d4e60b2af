"""Small Python functions: what a call returns, worked out step by step, and how to write one.

The answer is computed by running the function's own source, so no answer can be wrong.
"""

from __future__ import annotations

import random

from recipes.quickstart import function_lists, function_numbers, function_words
from recipes.quickstart.function_draft import Draft, Family
from recipes.quickstart.gazetteer import side
from recipes.quickstart.word_problems import Problem

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
    """What the call returns, as Python prints it. The source is always one of ours."""
    scope: dict[str, object] = {}
    exec(source, scope)
    return str(eval(call, scope))


def _draft(rng: random.Random) -> tuple[Draft, str]:
    name, variable = rng.choice(NAMES), rng.choice(VARIABLES)
    return rng.choice(FAMILIES)(rng, name, variable), name


def make_evaluation(rng: random.Random, *, language: str) -> Problem:
    """ "What does f(3) return?" with the function above it and a worked answer."""
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
    """ "Write a function that ..." answered by the source and one checked example call."""
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
