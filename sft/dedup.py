"""Near-duplicate rows, inside and across sources: found by MinHash, confirmed by exact overlap."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasketch import MinHash

from sft.windows import normal_form, window_hashes

# Windows of 8 characters: two words, or a phrase of Chinese.
WINDOW = 8
# 21 bands of 6: a pair of overlap 0.8 meets in one with probability 0.998, of 0.5 with 0.28.
BANDS, ROWS_A_BAND = 21, 6


@dataclass(frozen=True)
class Duplicate:
    """`row` says what the earlier row `of` says; overlap is the Jaccard index of their windows."""

    row: int
    of: int
    overlap: float


def row_text(row: dict[str, Any]) -> str:
    """What a row says, for comparing rows: the text of all its messages."""
    parts = [
        m.get("content")
        for key in ("messages", "prompt", "chosen", "rejected")
        for m in row.get(key, ())
    ]
    return "\n".join(part for part in parts if isinstance(part, str))


def near_duplicates(texts: Sequence[str], *, threshold: float) -> list[Duplicate]:
    """Texts whose windows overlap an earlier kept text's by `threshold` or more, in order.

    Texts shorter than a window are compared whole. Time and memory grow with the number of texts:
    about half a kilobyte each beyond the texts themselves.

    Args:
        threshold: Jaccard index of the sets of windows, in (0, 1].
    """
    assert 0 < threshold <= 1, threshold
    signatures = _signatures(texts)
    removed: dict[int, Duplicate] = {}
    for row, earlier in _candidates(signatures):
        if row in removed:
            continue
        kept = removed[earlier].of if earlier in removed else earlier
        overlap = _overlap(texts[row], texts[kept])
        if overlap >= threshold:
            removed[row] = Duplicate(row, kept, overlap)
    return [removed[row] for row in sorted(removed)]


def _signatures(texts: Sequence[str]) -> np.ndarray:
    """MinHash signatures [texts, BANDS * ROWS_A_BAND] uint32."""
    size = BANDS * ROWS_A_BAND
    empty = MinHash(num_perm=size, scheme="affine32", hashfunc=int)
    signatures = np.empty((len(texts), size), dtype=np.uint32)
    for i, text in enumerate(texts):
        sketch = empty.copy()
        sketch.update_batch((_shingles(text) & np.uint64(0xFFFFFFFF)).tolist())
        signatures[i] = sketch.hashvalues
    return signatures


def _shingles(text: str) -> np.ndarray:
    """The set of a text's window hashes; a short text is one window."""
    normal = normal_form(text)
    return np.unique(window_hashes(normal, size=min(WINDOW, max(1, len(normal)))))


def _candidates(signatures: np.ndarray) -> list[tuple[int, int]]:
    """Pairs (row, earlier row) that agree on a band, by row and then by earlier row.

    Of a group that agrees, each row is paired with the first and with the one before it: enough,
    since a removed row stands for the one that it repeats.
    """
    pairs: set[tuple[int, int]] = set()
    for band in range(BANDS):
        part = np.ascontiguousarray(signatures[:, band * ROWS_A_BAND : (band + 1) * ROWS_A_BAND])
        keys = part.view(np.dtype((np.void, part.itemsize * ROWS_A_BAND))).ravel()
        order = np.argsort(keys, kind="stable")
        same = keys[order][1:] == keys[order][:-1]
        first = -1
        for at in np.flatnonzero(same):
            earlier, row = int(order[at]), int(order[at + 1])
            if at == 0 or not same[at - 1]:
                first = earlier
            pairs.add((row, earlier))
            pairs.add((row, first))
    return sorted(pairs)


def _overlap(a: str, b: str) -> float:
    """The Jaccard index of two texts' windows; 1 for two texts without a letter or digit."""
    left, right = _shingles(a), _shingles(b)
    union = len(np.union1d(left, right))
    return len(np.intersect1d(left, right)) / union if union else 1.0
