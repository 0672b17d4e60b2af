"""Hashes of the character n-grams of normalized texts, for duplicates and contamination.

N-grams are of characters, so that languages written without spaces need no word list.
"""

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

_NO_LETTER_OR_DIGIT = re.compile(r"[\W_]+")
_MULTIPLIER = 0x9E3779B97F4A7C15  # 2^64 / golden ratio; odd, so that it has an inverse
_INVERSE = pow(_MULTIPLIER, -1, 2**64)
_MIXER = np.uint64(0xBF58476D1CE4E5B9)  # of SplitMix64
_CHUNK = 1 << 17  # characters hashed at once: their arrays fit into the processor's cache


def normal_form(text: str) -> str:
    """Return a text in Unicode NFKC, case folded, letters and digits only."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
    return _NO_LETTER_OR_DIGIT.sub("", text.casefold())


@dataclass(frozen=True)
class NGrams:
    """The n-grams of several texts, in order: their hashes, and the index of each one's text."""

    hashes: np.ndarray  # uint64
    texts: np.ndarray  # int32


class ConcatenatedTexts:
    """Concatenated texts, whose n-grams are hashed in a few passes over all of them.

    The hash is polynomial, modulo 2^64, from prefix sums. Callers compare the characters of a
    match, since hashes can collide.
    """

    def __init__(self, normals: Sequence[str]) -> None:
        lengths = np.array([len(normal) for normal in normals], dtype=np.int64)
        self._texts = np.repeat(np.arange(len(normals), dtype=np.int32), lengths)
        # Characters from each position to the end of its text.
        self._remaining = np.repeat(np.cumsum(lengths), lengths) - np.arange(len(self._texts))
        joined = "".join(normals).encode("utf-32-le", "surrogatepass")
        # Neighbors in the code table share high bits; mixing removes the pattern.
        values = np.frombuffer(joined, dtype=np.uint32).astype(np.uint64) * _MIXER
        values ^= values >> np.uint64(31)
        # prefix[i] = sum of values[j] * m^j for j < i; a difference is divided by its first power.
        self._prefix = np.zeros(len(values) + 1, dtype=np.uint64)
        np.cumsum(values * _powers(_MULTIPLIER, len(values)), out=self._prefix[1:])

    def ngrams(self, size: int) -> NGrams:
        """Return all n-grams of `size` characters within one text; a shorter text has none."""
        count = max(0, len(self._texts) - size + 1)
        inside = self._remaining[:count] >= size
        hashes = self._prefix[size : size + count] - self._prefix[:count]
        hashes *= _powers(_INVERSE, count)
        hashes = hashes[inside]
        hashes ^= hashes >> np.uint64(32)
        return NGrams(hashes * _MIXER, self._texts[:count][inside])


def chunks(texts: Iterable[str]) -> Iterator[list[str]]:
    """Yield the normal forms of texts in order, in chunks for `ConcatenatedTexts`."""
    chunk: list[str] = []
    size = 0
    for text in texts:
        chunk.append(normal_form(text))
        size += len(chunk[-1])
        if size >= _CHUNK:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def ngram_hashes(normal: str, *, size: int) -> np.ndarray:
    """Return hashes [len - size + 1] uint64 of a text's n-grams; none for a shorter text."""
    return ConcatenatedTexts([normal]).ngrams(size).hashes


def _powers(base: int, count: int) -> np.ndarray:
    """Return base^0 .. base^(count-1) modulo 2^64."""
    return _power_table(base, 1 << max(10, (count - 1).bit_length()))[:count]


@lru_cache(maxsize=4)
def _power_table(base: int, count: int) -> np.ndarray:
    powers = np.full(count, base, dtype=np.uint64)
    powers[:1] = 1
    return np.cumprod(powers)
