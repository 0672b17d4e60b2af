"""Small Python functions: what a call returns, worked out step by step, and how to write one.

The answer is computed by running the function's own source, so no answer can be wrong.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from recipes.quickstart.gazetteer import Text, side
from recipes.quickstart.word_problems import Problem

# fmt: off
NAMES = [
    "f", "g", "h", "step", "score", "shift", "grow", "count",
    "mix", "turn", "pick", "blend", "fold", "scale", "trim", "rank",
]
VARIABLES = ["x", "n", "a", "k", "v", "m"]
WORDS = [
    "river", "lamp", "stone", "bread", "cloud", "tiger", "salt", "moon", "apple", "drum",
    "boat", "silk", "honey", "snow", "fox", "bell", "gold", "rain", "leaf", "harp",
]
# fmt: on


@dataclass(frozen=True)
class Draft:
    """A function body, the call, and the reasoning (English and Chinese) up to the result."""

    key: str
    source: str
    call: str
    steps: tuple[Text, ...]
    task: Text  # what the function does, as a request to write it


Family = Callable[[random.Random, str, str], Draft]


def _linear(r: random.Random, f: str, x: str) -> Draft:
    a, b, v = r.randint(2, 6), r.randint(1, 9), r.randint(2, 9)
    return Draft(
        f"linear:{a},{b},{v}",
        f"def {f}({x}):\n    y = {x} * {a}\n    return y + {b}",
        f"{f}({v})",
        (
            (f"y = {v} * {a} = {v * a}.", f"y = {v} * {a} = {v * a}。"),
            (
                f"It returns {v * a} + {b} = {v * a + b}.",
                f"返回 {v * a} + {b} = {v * a + b}。",
            ),
        ),
        (f"multiplies a number by {a} and adds {b}", f"把一个数乘以 {a} 再加 {b}"),
    )


def _minus(r: random.Random, f: str, x: str) -> Draft:
    a, b = r.randint(2, 9), r.randint(2, 6)
    v = a + r.randint(2, 9)
    return Draft(
        f"minus:{a},{b},{v}",
        f"def {f}({x}):\n    y = {x} - {a}\n    return y * {b}",
        f"{f}({v})",
        (
            (f"y = {v} - {a} = {v - a}.", f"y = {v} - {a} = {v - a}。"),
            (
                f"It returns {v - a} * {b} = {(v - a) * b}.",
                f"返回 {v - a} * {b} = {(v - a) * b}。",
            ),
        ),
        (f"subtracts {a} from a number and multiplies by {b}", f"把一个数减去 {a} 再乘以 {b}"),
    )


def _branch(r: random.Random, f: str, x: str) -> Draft:
    a, b, c, v = r.randint(5, 20), r.randint(2, 9), r.randint(1, 9), r.randint(10, 30)
    big = v > a
    result = v + b if big else v - c
    word = ("is", "") if big else ("is not", "不")
    sign, d = ("+", b) if big else ("-", c)
    return Draft(
        f"branch:{a},{b},{c},{v}",
        f"def {f}({x}):\n    if {x} > {a}:\n        return {x} + {b}\n    return {x} - {c}",
        f"{f}({v})",
        (
            (f"{v} {word[0]} greater than {a}.", f"{v} {word[1]}大于 {a}。"),
            (
                f"It returns {v} {sign} {d} = {result}.",
                f"返回 {v} {sign} {d} = {result}。",
            ),
        ),
        (
            f"adds {b} to a number above {a} and subtracts {c} from any other",
            f"在数大于 {a} 时加 {b}，否则减 {c}",
        ),
    )


def _loop(r: random.Random, f: str, x: str) -> Draft:
    a, n, s = r.randint(2, 6), r.randint(2, 4), r.randint(0, 9)
    values = [s + a * (i + 1) for i in range(n)]
    chain = ", ".join(str(v) for v in values)
    return Draft(
        f"loop:{a},{n},{s}",
        f"def {f}({x}):\n    t = {s}\n    for i in range({x}):\n        t = t + {a}\n    return t",
        f"{f}({n})",
        (
            (f"t starts at {s}.", f"t 从 {s} 开始。"),
            (
                f"The loop runs {n} times and t becomes {chain}.",
                f"循环 {n} 次，t 依次变成 {chain}。",
            ),
        ),
        (f"starts at {s} and adds {a} as often as it is told", f"从 {s} 开始，按给定次数加 {a}"),
    )


def _reverse(r: random.Random, f: str, x: str) -> Draft:
    w, tail = r.choice(WORDS), r.choice("abcdez")
    spelled = ", ".join(reversed(w))
    return Draft(
        f"reverse:{w},{tail}",
        f'def {f}({x}):\n    return {x}[::-1] + "{tail}"',
        f'{f}("{w}")',
        (
            (f"Backwards the letters are {spelled}.", f"倒过来的字母是 {spelled}。"),
            (
                f'It returns "{w[::-1]}" + "{tail}".',
                f'返回 "{w[::-1]}" + "{tail}"。',
            ),
        ),
        (f'reverses a word and adds "{tail}"', f'把单词倒过来再加上 "{tail}"'),
    )


def _repeat(r: random.Random, f: str, x: str) -> Draft:
    w, n = r.choice(WORDS), r.randint(2, 4)
    start = r.randint(1, 3)
    return Draft(
        f"repeat:{w},{n},{start}",
        f"def {f}({x}):\n    y = {x}[:{start}]\n    return y * {n}",
        f'{f}("{w}")',
        (
            (f'y = "{w[:start]}".', f'y = "{w[:start]}"。'),
            (f'It returns "{w[:start]}" * {n}.', f'返回 "{w[:start]}" * {n}。'),
        ),
        (
            f"takes the first {start} letters of a word and repeats them {n} times",
            f"取单词的前 {start} 个字母并重复 {n} 次",
        ),
    )


def _evens(r: random.Random, f: str, x: str) -> Draft:
    items = [r.randint(1, 9) for _ in range(r.randint(3, 5))]
    odd = r.random() < 0.5
    kept = [v for v in items if v % 2 == odd]
    en, zh = ("odd", "奇数") if odd else ("even", "偶数")
    return Draft(
        f"evens:{items},{odd}",
        f"def {f}({x}):\n    return [i for i in {x} if i % 2 == {int(odd)}]",
        f"{f}({items})",
        (
            (f"It keeps the {en} numbers.", f"它保留{zh}。"),
            (f"There are {len(kept)} of them.", f"共有 {len(kept)} 个。"),
        ),
        (f"keeps the {en} numbers of a list", f"保留列表中的{zh}"),
    )


def _extreme(r: random.Random, f: str, x: str) -> Draft:
    items = r.sample(range(2, 40), r.randint(3, 4))
    b, top = r.randint(1, 9), r.random() < 0.5
    word, best = ("max", max(items)) if top else ("min", min(items))
    en, zh = ("largest", "最大") if top else ("smallest", "最小")
    return Draft(
        f"extreme:{items},{b},{top}",
        f"def {f}({x}):\n    y = {word}({x})\n    return y + {b}",
        f"{f}({items})",
        (
            (f"The {en} item is {best}.", f"{zh}的是 {best}。"),
            (f"It returns {best} + {b} = {best + b}.", f"返回 {best} + {b} = {best + b}。"),
        ),
        (f"adds {b} to the {en} item of a list", f"把列表中{zh}的数加 {b}"),
    )


def _total(r: random.Random, f: str, x: str) -> Draft:
    items = [r.randint(1, 9) for _ in range(3)]
    first, total = items[0] + items[1], sum(items)
    added = f"{items[0]} + {items[1]} + {items[2]} = {first} + {items[2]} = {total}"
    b = r.randint(2, 3)
    return Draft(
        f"total:{items},{b}",
        f"def {f}({x}):\n    return sum({x}) * {b}",
        f"{f}({items})",
        (
            (
                f"The sum is {added}.",
                f"和是 {added}。",
            ),
            (f"It returns {total} * {b} = {total * b}.", f"返回 {total} * {b} = {total * b}。"),
        ),
        (f"multiplies the sum of a list by {b}", f"把列表的和乘以 {b}"),
    )


FAMILIES: tuple[Family, ...] = (
    _linear,
    _minus,
    _branch,
    _loop,
    _reverse,
    _repeat,
    _evens,
    _extreme,
    _total,
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
