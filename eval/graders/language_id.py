"""The language of a text, by langdetect with a fixed seed (github.com/Mimino666/langdetect).

For IFEval's checks of an answer's language, whose reference uses langdetect as well. It draws at
random, so that unseeded it may take one text for two languages; here a text has one.
"""

from functools import cache
from typing import Any

SEED = 0
# langdetect tells the two ways to write Chinese apart, which is no other language.
CHINESE = ("zh-cn", "zh-tw")


def language_of(text: str) -> str | None:
    """Its two-letter code, or None where nothing tells, as in a text without letters.

    A text in capitals alone is read in small letters, since langdetect passes over words in
    capitals.
    """
    module = _langdetect()
    try:
        found = module.detect(text.lower() if text.isupper() else text)
    except module.LangDetectException:
        return None
    return "zh" if found in CHINESE else str(found)


@cache
def _langdetect() -> Any:
    """The module, seeded; it reads its statistics of 55 languages at its first use."""
    import langdetect

    langdetect.DetectorFactory.seed = SEED
    return langdetect
