"""Define families of small functions of a number."""

from __future__ import annotations

import random

from recipes.quickstart.generate.function_draft import Draft, Family, returns


def _plus(r: random.Random, f: str, x: str) -> Draft:
    a, v = r.randint(2, 9), r.randint(2, 30)
    return Draft(
        f"plus:{a},{v}",
        f"def {f}({x}):\n    return {x} + {a}",
        f"{f}({v})",
        (returns(f"{v} + {a} = {v + a}"),),
        (f"adds {a} to a number", f"把一个数加 {a}"),
    )


def _less(r: random.Random, f: str, x: str) -> Draft:
    a, v = r.randint(2, 9), r.randint(10, 30)
    return Draft(
        f"less:{a},{v}",
        f"def {f}({x}):\n    return {x} - {a}",
        f"{f}({v})",
        (returns(f"{v} - {a} = {v - a}"),),
        (f"subtracts {a} from a number", f"把一个数减去 {a}"),
    )


def _times(r: random.Random, f: str, x: str) -> Draft:
    a, v = r.randint(2, 9), r.randint(2, 9)
    return Draft(
        f"times:{a},{v}",
        f"def {f}({x}):\n    return {x} * {a}",
        f"{f}({v})",
        (returns(f"{v} * {a} = {v * a}"),),
        (f"multiplies a number by {a}", f"把一个数乘以 {a}"),
    )


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


def _sum_times(r: random.Random, f: str, x: str) -> Draft:
    a, b, v = r.randint(1, 4), r.randint(2, 6), r.randint(2, 5)
    return Draft(
        f"sum_times:{a},{b},{v}",
        f"def {f}({x}):\n    y = {x} + {a}\n    return y * {b}",
        f"{f}({v})",
        (
            (f"y = {v} + {a} = {v + a}.", f"y = {v} + {a} = {v + a}。"),
            returns(f"{v + a} * {b} = {(v + a) * b}"),
        ),
        (f"adds {a} to a number and multiplies by {b}", f"把一个数加 {a} 再乘以 {b}"),
    )


def _times_less(r: random.Random, f: str, x: str) -> Draft:
    a, v = r.randint(2, 6), r.randint(2, 9)
    b = r.randint(1, min(9, v * a - 1))
    return Draft(
        f"times_less:{a},{b},{v}",
        f"def {f}({x}):\n    y = {x} * {a}\n    return y - {b}",
        f"{f}({v})",
        (
            (f"y = {v} * {a} = {v * a}.", f"y = {v} * {a} = {v * a}。"),
            returns(f"{v * a} - {b} = {v * a - b}"),
        ),
        (f"multiplies a number by {a} and subtracts {b}", f"把一个数乘以 {a} 再减 {b}"),
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


def _down(r: random.Random, f: str, x: str) -> Draft:
    a, n, s = r.randint(2, 6), r.randint(2, 4), r.randint(24, 40)
    chain = ", ".join(str(s - a * (i + 1)) for i in range(n))
    return Draft(
        f"down:{a},{n},{s}",
        f"def {f}({x}):\n    t = {s}\n    for i in range({x}):\n        t = t - {a}\n    return t",
        f"{f}({n})",
        (
            (f"t starts at {s}.", f"t 从 {s} 开始。"),
            (
                f"The loop runs {n} times and t becomes {chain}.",
                f"循环 {n} 次，t 依次变成 {chain}。",
            ),
        ),
        (
            f"starts at {s} and subtracts {a} as often as it is told",
            f"从 {s} 开始，按给定次数减 {a}",
        ),
    )


def _bound(r: random.Random, f: str, x: str) -> Draft:
    a, v = r.sample(range(2, 40), 2)
    top = r.random() < 0.5
    word, best = ("max", max(a, v)) if top else ("min", min(a, v))
    en, zh = ("larger", "较大") if top else ("smaller", "较小")
    return Draft(
        f"bound:{a},{v},{top}",
        f"def {f}({x}):\n    return {word}({x}, {a})",
        f"{f}({v})",
        (
            (
                f"The {en} of {v} and {a} is {best}.",
                f"{v} 和 {a} 中{zh}的是 {best}。",
            ),
        ),
        (f"returns the {en} of a number and {a}", f"返回一个数和 {a} 中{zh}的那个"),
    )


FAMILIES: tuple[Family, ...] = (
    _plus,
    _less,
    _times,
    _linear,
    _minus,
    _sum_times,
    _times_less,
    _branch,
    _loop,
    _down,
    _bound,
)
