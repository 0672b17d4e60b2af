"""The form of a word problem's template, and how its small numbers are drawn.

Sums have one operand below ten, products two: about a thousand facts, which five million parameters
can learn; problems differ in the chains of one to three of them.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from recipes.quickstart.gazetteer import Text

Numbers = dict[str, int]
Draw = Callable[[random.Random], Numbers]


@dataclass(frozen=True)
class Template:
    """`{a}`, `{b}`, ... are numbers, `{n}`, `{m}` names, `{t}` a thing, `{x}` a container."""

    name: str
    draw: Draw
    question: Text
    steps: tuple[Text, ...]
    final: str  # which number is the answer


def small(r: random.Random) -> int:
    """From 2 to 9."""
    return r.randint(2, 9)


def few(r: random.Random) -> int:
    """From 2 to 6."""
    return r.randint(2, 6)
