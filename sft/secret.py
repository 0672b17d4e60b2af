"""Passwords and keys: refused where they would be written down, blotted out where they are said."""

import os
import re
from collections.abc import Iterator
from typing import Any

BLOT = "***"
# user:password@ or token@ of an address; keys by the prefixes that their makers gave them.
_IN_ADDRESS = re.compile(r"(?<=://)[^\s/@:]*(?::[^\s/@]*)?@(?=[^\s/])")
_KEY = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{20,}|sk-[A-Za-z0-9_-]{20,}|gh[pousr]_[A-Za-z0-9]{20,}"
    r"|github_pat_[A-Za-z0-9_]{20,}|xox[abprs]-[A-Za-z0-9-]{10,}|AKIA[A-Z0-9]{16})"
)
# Variables whose values are never said; short values are words.
_NAMED = re.compile(r"(TOKEN|API_KEY|SECRET|PASSWORD|ACCESS_KEY)$")
_SHORTEST = 12


def hidden(text: str) -> str:
    """`text` without the passwords in its addresses, without keys of known kinds, and without the
    values of this process's own variables that hold one ($HF_TOKEN, $OPENAI_API_KEY)."""
    for value in _of_environment():
        text = text.replace(value, BLOT)
    return _KEY.sub(BLOT, _IN_ADDRESS.sub(f"{BLOT}@", text))


def secret_places(value: Any, *, where: str = "") -> Iterator[str]:
    """The keys of nested data whose text, or name, holds a password or a key."""
    if isinstance(value, dict):
        for key, inner in value.items():
            at = f"{where}.{key}" if where else str(key)
            yield from [hidden(at)] if hidden(str(key)) != str(key) else []
            yield from secret_places(inner, where=at)
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            yield from secret_places(inner, where=f"{where}[{i}]")
    elif isinstance(value, str) and hidden(value) != value:
        yield where


def _of_environment() -> list[str]:
    return [
        value
        for name, value in os.environ.items()
        if _NAMED.search(name) and len(value) >= _SHORTEST
    ]
