"""Near-duplicate removal with MinHash LSH, within and across sources, verified by exact overlap."""

import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from sft.cleaning.ngrams import ConcatenatedTexts, chunks, ngram_hashes, normal_form
from sft.data.json_values import decode_json

RowT = TypeVar("RowT")

NGRAM_SIZE = 8  # characters: two words, or a phrase of Chinese
SIGNATURE_SIZE = 128
# Least probability that a pair whose overlap is the threshold agrees on a band.
BAND_RECALL = 0.999
# Four standard deviations (each at most 1 / (2 * sqrt(128))) of the overlap that two signatures
# estimate: one pair in 30,000 is further off, so pairs estimated below this need no comparison.
ESTIMATE_ERROR = 4 / (2 * SIGNATURE_SIZE**0.5)
SAME_ANSWER = 0.5  # least overlap of the answers of duplicates, however long their common text
_NUMBER = re.compile(r"\d+")
_PAIRS_AT_ONCE = 1 << 16  # bounds the memory of the comparison of signatures


@dataclass(frozen=True)
class NearDuplicate:
    """`row` repeats the earlier row `of`; overlap is the Jaccard index of their n-grams."""

    row: int
    of: int
    overlap: float


@dataclass(frozen=True)
class _Sketches:
    """MinHash sketches of the texts: about 330 bytes each at a threshold of 0.8."""

    bands: np.ndarray  # [bands, texts] uint64, a hash of each band of the signature
    low: np.ndarray  # [texts, SIGNATURE_SIZE] uint8, the signature's low bits


def row_text(row: dict[str, Any]) -> str:
    """Return the text and the tool calls of all messages of a row."""
    if "text" in row:
        return str(row["text"])
    keys = ("messages", "prompt", "chosen", "rejected")
    return _joined_texts(message for key in keys for message in row.get(key, ()))


def answer_text(row: dict[str, Any]) -> str:
    """Return the part of a row that is trained: its assistant turns, or a plain text."""
    if "text" in row:
        return str(row["text"])
    return _joined_texts(m for m in row["messages"] if m["role"] == "assistant")


def _joined_texts(messages: Iterable[dict[str, Any]]) -> str:
    parts: list[str] = []
    for message in messages:
        if isinstance(message.get("content"), str):
            parts.append(message["content"])
        for call in message.get("tool_calls") or ():
            function = call.get("function", call)
            # The same text for arguments that are an object and for their JSON text.
            arguments = json.dumps(decode_json(function.get("arguments")))
            parts.append(f"{function['name']} {arguments}")
    return "\n".join(parts)


def near_duplicates(
    rows: Sequence[RowT],
    *,
    threshold: float,
    text: Callable[[RowT], str] = str,
    answer: Callable[[RowT], str] | None = None,
) -> list[NearDuplicate]:
    """Return the rows whose n-grams overlap an earlier kept row's by `threshold` or more, in order.

    Texts shorter than an n-gram are padded to one.

    Args:
        threshold: Jaccard index of the sets of n-grams, in (0, 1].
        text: returns the text of a row. It is called again for each comparison, because a copy of
            all texts would be large.
        answer: returns the part of a row that is trained. Rows whose answers hardly overlap or
            contain other numbers are then no duplicates: two questions on one passage, two
            exercises of one pattern.
    """
    assert 0 < threshold <= 1, threshold
    removed: dict[int, NearDuplicate] = {}
    if not rows:
        return []
    sketches = _sketch(map(text, rows), count=len(rows), band=_band_size(threshold))
    for row, earlier in _candidates(sketches, least=threshold - ESTIMATE_ERROR):
        if row in removed:
            continue
        kept = removed[earlier].of if earlier in removed else earlier
        overlap = _overlap(text(rows[row]), text(rows[kept]))
        if overlap >= threshold and (not answer or _same(answer(rows[row]), answer(rows[kept]))):
            removed[row] = NearDuplicate(row, kept, overlap)
    return [removed[row] for row in sorted(removed)]


def _band_size(threshold: float) -> int:
    """Return the largest band on which a pair at the threshold still agrees: 5 at 0.8, 3 at 0.6."""

    # Smaller bands let more pairs below the threshold agree, which costs time.
    def recall(size: int) -> float:
        return 1 - (1 - threshold**size) ** (SIGNATURE_SIZE // size)

    return max((size for size in range(2, 17) if recall(size) >= BAND_RECALL), default=1)


def _sketch(texts: Iterable[str], *, count: int, band: int) -> _Sketches:
    bands = np.empty((SIGNATURE_SIZE // band, count), dtype=np.uint64)
    low = np.empty((count, SIGNATURE_SIZE), dtype=np.uint8)
    done = 0
    for chunk in chunks(texts):
        place = slice(done, done + len(chunk))
        signatures = _signatures(chunk)
        low[place] = signatures.T
        for i, keys in enumerate(bands):
            keys[place] = _band_keys(signatures[i * band : (i + 1) * band])
        done += len(chunk)
    return _Sketches(bands, low)


def _signatures(normals: Sequence[str]) -> np.ndarray:
    """Return MinHash signatures [SIGNATURE_SIZE, texts] uint32: minima of permuted hashes."""
    ngrams = ConcatenatedTexts([_padded(normal) for normal in normals]).ngrams(NGRAM_SIZE)
    hashes = (ngrams.hashes >> np.uint64(32)).astype(np.uint32)
    starts = np.flatnonzero(np.diff(ngrams.texts, prepend=-1))
    permuted = np.empty_like(hashes)
    signatures = np.empty((SIGNATURE_SIZE, len(normals)), dtype=np.uint32)
    # Permutations x -> x * factor + term modulo 2^32 with odd factors; the same in every run.
    rng = np.random.default_rng(0)
    factors = rng.integers(0, 2**31, SIGNATURE_SIZE, dtype=np.uint32) * np.uint32(2) + np.uint32(1)
    terms = rng.integers(0, 2**32, SIGNATURE_SIZE, dtype=np.uint32)
    for factor, term, minima in zip(factors, terms, signatures, strict=True):
        np.multiply(hashes, factor, out=permuted)
        np.add(permuted, term, out=permuted)
        np.minimum.reduceat(permuted, starts, out=minima)
    return signatures


def _band_keys(signatures: np.ndarray) -> np.ndarray:
    keys = np.zeros(signatures.shape[1], dtype=np.uint64)
    for values in signatures:
        keys = (keys ^ values) * np.uint64(0x9E3779B97F4A7C15)
        keys ^= keys >> np.uint64(29)
    return keys


def _candidates(sketches: _Sketches, *, least: float) -> Iterable[tuple[int, int]]:
    """Yield pairs (row, earlier row) that agree on a band, in order.

    Pairs whose signatures estimate an overlap below `least` are left out.
    """
    found = [np.empty(0, dtype=np.int64)]
    for keys in sketches.bands:
        order = np.argsort(keys, kind="stable")
        same = keys[order][1:] == keys[order][:-1]
        begins = np.flatnonzero(np.concatenate([[True], ~same]))
        first = np.repeat(order[begins], np.diff(begins, append=len(order)))
        # Of a group that agrees, each row is paired with the first and with the one before it:
        # enough, since a removed row is replaced by the one that it repeats.
        for earlier in (first[1:][same], order[:-1][same]):
            pairs = order[1:][same] << 32 | earlier
            found.append(_filter_by_estimate(sketches.low, pairs, least=least))
    for pair in np.unique(np.concatenate(found)):
        yield int(pair) >> 32, int(pair) & 0xFFFFFFFF


def _filter_by_estimate(low: np.ndarray, pairs: np.ndarray, *, least: float) -> np.ndarray:
    """Return the pairs whose signatures agree in a share `least` of their places or more."""
    kept = [pairs[:0]]
    for start in range(0, len(pairs), _PAIRS_AT_ONCE):
        some = pairs[start : start + _PAIRS_AT_ONCE]
        agreeing = (low[some >> 32] == low[some & 0xFFFFFFFF]).mean(axis=1)
        kept.append(some[agreeing >= least])
    return np.concatenate(kept)


def _padded(normal: str) -> str:
    """Pad a text to one n-gram; NUL occurs in no normal form."""
    return normal.ljust(NGRAM_SIZE, "\0")


def _overlap(a: str, b: str) -> float:
    """Return the Jaccard index of two texts' n-grams."""
    left, right = (
        np.unique(ngram_hashes(_padded(normal_form(text)), size=NGRAM_SIZE)) for text in (a, b)
    )
    shared = len(np.intersect1d(left, right, assume_unique=True))
    return shared / (len(left) + len(right) - shared)


def _same(a: str, b: str) -> bool:
    return _NUMBER.findall(a) == _NUMBER.findall(b) and _overlap(a, b) >= SAME_ANSWER
