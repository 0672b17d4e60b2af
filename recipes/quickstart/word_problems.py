"""Word problems: a question, a written-out chain of reasoning, and a final answer.

A problem is drawn from a template and numbers; (template, numbers) is its key. Keys are divided
between training and benchmark by a hash (`splits.held_out`), so the two never share a problem,
whatever names and languages dress it.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from recipes.quickstart import problem_products, problem_shares, problem_sums
from recipes.quickstart.gazetteer import Text, pairs, side
from recipes.quickstart.problem_template import Template

THINGS = pairs(
    "shells|贝壳;apples|苹果;candles|蜡烛;letters|信;buttons|纽扣;eggs|鸡蛋;nails|钉子;beads|珠子;"
    "pears|梨;stamps|邮票;coins|硬币;walnuts|核桃;cups|杯子;fish|鱼;bricks|砖头;lanterns|灯笼"
)
BOXES = pairs("baskets|篮子;boxes|盒子;bags|袋子;crates|箱子;jars|罐子;trays|托盘")


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
    """The sentence that ends every worked answer; benchmarks read the value from it."""
    return f"The answer is {value}." if language == "en" else f"答案是 {value}。"


TEMPLATES: tuple[Template, ...] = (
    *problem_sums.TEMPLATES,
    *problem_products.TEMPLATES,
    *problem_shares.TEMPLATES,
)


def make_problem(rng: random.Random, names: tuple[Text, ...], *, language: str) -> Problem:
    """A random problem told with two of `names`."""
    template = rng.choice(TEMPLATES)
    numbers = template.draw(rng)
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
