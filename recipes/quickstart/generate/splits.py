"""Assign problems, functions and plots to training or benchmark by a hash of their key."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def held_out(key: str) -> bool:
    """Return True for one key in eight; such keys appear only in benchmarks, for every seed."""
    return hashlib.sha256(key.encode()).digest()[0] % 8 == 0


def until_trainable(draw: Callable[[], T], *, key: Callable[[T], str]) -> T:
    """Draw until the result belongs to training."""
    while held_out(key(item := draw())):
        pass
    return item


def until_held_out(draw: Callable[[], T], *, key: Callable[[T], str]) -> T:
    """Draw until the result belongs to the benchmarks."""
    while not held_out(key(item := draw())):
        pass
    return item
