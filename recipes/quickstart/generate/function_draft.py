"""Define what a family of small functions draws: source, call, reasoning and task."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from recipes.quickstart.generate.bilingual import Text


@dataclass(frozen=True)
class Draft:
    """A function body, the call, and the reasoning (English and Chinese) up to the result."""

    key: str
    source: str
    call: str
    steps: tuple[Text, ...]
    task: Text  # what the function does, as a request to write it


# Draws the numbers or words of a function with the given name and variable.
Family = Callable[[random.Random, str, str], Draft]


def returns(text: str) -> Text:
    """Return the last step of the reasoning, in both languages."""
    return f"It returns {text}.", f"返回 {text}。"
