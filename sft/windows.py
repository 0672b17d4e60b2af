"""Text reduced to what a copy keeps, and hashes of its windows: for duplicates and contamination.

Case, spacing, punctuation and full-width forms are no difference; letters and digits of any script
are. Windows are of characters, so that languages written without spaces need no word list.
"""

import re
import unicodedata

import numpy as np

_NO_LETTER_OR_DIGIT = re.compile(r"[\W_]+")
_MULTIPLIER = 0x9E3779B97F4A7C15  # odd, so that it has an inverse
_INVERSE = pow(_MULTIPLIER, -1, 2**64)
_MIXER = np.uint64(0xBF58476D1CE4E5B9)


def normal_form(text: str) -> str:
    """Unicode NFKC, case folded, letters and digits only."""
    return _NO_LETTER_OR_DIGIT.sub("", unicodedata.normalize("NFKC", text).casefold())


def window_hashes(normal: str, *, size: int) -> np.ndarray:
    """Hashes [len - size + 1] uint64 of all windows of `size` characters; none of a shorter text.

    A polynomial hash modulo 2^64, from prefix sums; who acts on a match compares the characters.
    """
    if len(normal) < size:
        return np.empty(0, dtype=np.uint64)
    codes = np.frombuffer(normal.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    # One-off mixing of each character, so that neighbours in the code table share no low bits.
    values = codes.astype(np.uint64) * _MIXER
    values ^= values >> np.uint64(31)
    powers = _powers(_MULTIPLIER, len(values))
    # prefix[i] = sum of values[j] * m^j for j < i; a window's sum is divided by its first power.
    prefix = np.concatenate([np.zeros(1, np.uint64), np.cumsum(values * powers)])
    sums = prefix[size:] - prefix[:-size]
    hashes = sums * _powers(_INVERSE, len(sums))
    hashes ^= hashes >> np.uint64(32)
    return hashes * _MIXER


def _powers(base: int, count: int) -> np.ndarray:
    """base^0 .. base^(count-1) modulo 2^64."""
    powers = np.full(count, base, dtype=np.uint64)
    powers[:1] = 1
    return np.cumprod(powers)
