"""Draw the numbers of word problems, a function for each scheme of `word_problems.json`.

Sums have one operand below ten, products two: about a thousand facts, which five million parameters
can learn; problems differ in the chains of one to three of them.
"""

from __future__ import annotations

import random
from collections.abc import Callable

Numbers = dict[str, int]


def small(r: random.Random) -> int:
    """Return a number from 2 to 9."""
    return r.randint(2, 9)


def few(r: random.Random) -> int:
    """Return a number from 2 to 6."""
    return r.randint(2, 6)


def _add(r: random.Random) -> Numbers:
    a, b = r.randint(4, 40), small(r)
    return {"a": a, "b": b, "z": a + b}


def _take(r: random.Random) -> Numbers:
    a, b = r.randint(11, 40), small(r)
    return {"a": a, "b": b, "z": a - b}


def _add_take(r: random.Random) -> Numbers:
    a, b, c = r.randint(4, 30), small(r), small(r)
    return {"a": a, "b": b, "c": c, "s": a + b, "z": a + b - c} if c < a + b else _add_take(r)


def _take_add(r: random.Random) -> Numbers:
    a, b, c = r.randint(11, 30), small(r), small(r)
    return {"a": a, "b": b, "c": c, "s": a - b, "z": a - b + c}


def _take_take(r: random.Random) -> Numbers:
    a, b, c = r.randint(20, 40), small(r), small(r)
    return {"a": a, "b": b, "c": c, "s": a - b, "z": a - b - c}


def _three(r: random.Random) -> Numbers:
    a, b, c = r.randint(3, 30), small(r), small(r)
    return {"a": a, "b": b, "c": c, "s": a + b, "z": a + b + c}


def _compare(r: random.Random) -> Numbers:
    a, d = r.randint(3, 15), small(r)
    return {"a": a, "d": d, "b": a + d, "z": a + a + d}


def _fewer(r: random.Random) -> Numbers:
    a, d = r.randint(11, 20), small(r)
    return {"a": a, "d": d, "b": a - d, "z": a + a - d}


def _times(r: random.Random) -> Numbers:
    a, b = r.randint(2, 9), r.randint(2, 9)
    return {"a": a, "b": b, "z": a * b}


def _times_plus(r: random.Random) -> Numbers:
    a, b, c = few(r), small(r), small(r)
    return {"a": a, "b": b, "c": c, "p": a * b, "z": a * b + c}


def _times_minus(r: random.Random) -> Numbers:
    a, b, c = few(r), small(r), small(r)
    return {"a": a, "b": b, "c": c, "p": a * b, "z": a * b - c} if c < a * b else _times_minus(r)


def _twice(r: random.Random) -> Numbers:
    a, k = r.randint(2, 12), r.randint(2, 5)
    return {"a": a, "k": k, "b": a * k, "z": a + a * k}


def _change(r: random.Random) -> Numbers:
    a, b = few(r), small(r)
    paid = r.choice([v for v in (20, 30, 40, 50, 60) if v > a * b])
    return {"a": a, "b": b, "c": paid, "p": a * b, "z": paid - a * b}


def _two_products(r: random.Random) -> Numbers:
    a, b, c, d = few(r), r.randint(2, 5), few(r), r.randint(2, 5)
    return {"a": a, "b": b, "c": c, "d": d, "p": a * b, "q": c * d, "z": a * b + c * d}


def _days(r: random.Random) -> Numbers:
    a, b, c = few(r), small(r), small(r)
    return {"a": a, "b": b, "c": c, "p": a * b, "z": c + a * b}


def _trip(r: random.Random) -> Numbers:
    v, h, c = few(r), small(r), small(r)
    return {"a": v, "b": h, "c": c, "p": v * h, "t": v * h + c, "z": c}


def _add_times(r: random.Random) -> Numbers:
    a, b, c = few(r), r.randint(1, 3), small(r)
    return {"a": a, "b": b, "c": c, "s": a + b, "z": (a + b) * c}


def _take_times(r: random.Random) -> Numbers:
    b, s, c = r.randint(2, 4), few(r), small(r)
    return {"a": s + b, "b": b, "c": c, "s": s, "z": s * c}


def _divide(r: random.Random) -> Numbers:
    k, z = r.randint(2, 9), r.randint(2, 9)
    return {"a": k * z, "k": k, "z": z}


def _share(r: random.Random) -> Numbers:
    k, z, b = few(r), small(r), small(r)
    return {"a": k * z - b, "b": b, "k": k, "s": k * z, "z": z} if b < k * z else _share(r)


def _left_share(r: random.Random) -> Numbers:
    k, z, c = few(r), small(r), small(r)
    return {"a": k * z + c, "c": c, "k": k, "d": k * z, "z": z}


def _times_share(r: random.Random) -> Numbers:
    a, b, k = few(r), small(r), few(r)
    if a * b % k or k in (a, b):
        return _times_share(r)
    return {"a": a, "b": b, "k": k, "p": a * b, "z": a * b // k}


# Scheme name in the JSON file -> the function that draws its numbers.
SCHEMES: dict[str, Callable[[random.Random], Numbers]] = {
    "add": _add,
    "take": _take,
    "add_take": _add_take,
    "take_add": _take_add,
    "take_take": _take_take,
    "three": _three,
    "compare": _compare,
    "fewer": _fewer,
    "times": _times,
    "times_plus": _times_plus,
    "times_minus": _times_minus,
    "twice": _twice,
    "change": _change,
    "two_products": _two_products,
    "days": _days,
    "trip": _trip,
    "add_times": _add_times,
    "take_times": _take_times,
    "divide": _divide,
    "share": _share,
    "left_share": _left_share,
    "times_share": _times_share,
}
