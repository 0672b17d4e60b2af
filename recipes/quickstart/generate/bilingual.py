"""Load bilingual texts from `sentences/*.json`; a text is an (English, Chinese) pair.

The last `new_how_to`, `new_lists` and `new_worries` entries and the `new_cast` appear in
pre-training pages but in no SFT row; repetition prompts use them. Slots of stories: {A} and {B} are
the two characters, {ra} and {rb} their trades, {P} the town, {o} the object of the story.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

LANGUAGES = ("en", "zh")
Text = tuple[str, str]
FOLDER = Path(__file__).parent / "sentences"


def side(text: Text, language: str) -> str:
    """Return the English or the Chinese text of a pair."""
    return text[LANGUAGES.index(language)]


def _freeze(value: Any) -> Any:
    """Return lists as tuples and objects as namespaces."""
    if isinstance(value, list):
        return tuple(_freeze(item) for item in value)
    if isinstance(value, dict):
        return SimpleNamespace(**{key: _freeze(item) for key, item in value.items()})
    return value


def load_sentences(name: str) -> Any:
    """Return the content of `sentences/<name>.json`, its keys as attributes."""
    return _freeze(json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8")))
