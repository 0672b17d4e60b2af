"""Near-duplicate removal with MinHash LSH, within and across sources, verified by exact overlap."""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sft.cleaning.ngrams import ConcatenatedTexts, chunks, ngram_hashes, normal_form
from sft.data.json_values import decode_json

# N-grams of 8 characters: two words, or a phrase of Chinese.
NGRAM_SIZE = 8
SIGNATURE_SIZE = 128
# A pair whose overlap is the threshold agrees on a whole band with at least this probability.
BAND_RECALL = 0.999
# The signature's own estimate of an overlap is off by 4 of its standard deviations (at most
# 1 / (2 * sqrt(128)) each) once in 30,000 pairs: what it puts below needs no comparison.
ESTIMATE_ERROR = 4 / (2 * SIGNATURE_SIZE**0.5)
# Answers that overlap less than this say something else, however long the text that they share.
SAME_ANSWER = 0.5
_NUMBER = re.compile(r"\d+")
_PAIRS_AT_ONCE = 1 << 16


@dataclass(frozen=True)
class NearDuplicate:
    """`row` says what the earlier row `of` says; overlap is the Jaccard index of their n-grams."""

    row: int
    of: int
    overlap: float


@dataclass(frozen=True)
class _Sketches:
    """What stands for the texts while pairs are sought: some 330 bytes each at 0.8."""

    bands: np.ndarray  # [bands, texts] uint64, a hash of each band of the signature
    low: np.ndarray  # [texts, SIGNATURE] uint8, the signature's low bits


def row_text(row: dict[str, Any]) -> str:
    """What a row says, for comparing rows: the text and the tool calls of all its messages."""
    if "text" in row:
        return str(row["text"])
    return "\n".join(
        part
        for key in ("messages", "prompt", "chosen", "rejected")
        for message in row.get(key, ())
        for part in _said(message)
    )


def answer_text(row: dict[str, Any]) -> str:
    """What a row teaches: the text and the tool calls of its assistant turns, or a plain text."""
    if "text" in row:
        return str(row["text"])
    answers = (m for m in row["messages"] if m["role"] == "assistant")
    return "\n".join(part for message in answers for part in _said(message))


def _said(message: dict[str, Any]) -> list[str]:
    said = [message["content"]] if isinstance(message.get("content"), str) else []
    calls = [call.get("function", call) for call in message.get("tool_calls") or ()]
    return said + [f"{c['name']} {_arguments(c)}" for c in calls]


def _arguments(function: dict[str, Any]) -> str:
    """The arguments of a call as JSON, the same whether they are given as text or as an object."""
    given = function.get("arguments")
    return json.dumps(decode_json(given) if isinstance(given, str) else given)


def near_duplicates(
    texts: Sequence[str], *, threshold: float, answers: Sequence[str] | None = None
) -> list[NearDuplicate]:
    """Return texts whose n-grams overlap an earlier kept text's by `threshold` or more, in order.

    Texts shorter than an n-gram are padded to one. Memory beyond the texts: about 330 bytes each.

    Args:
        threshold: Jaccard index of the sets of n-grams, in (0, 1].
        answers: the part of each text that is learnt. Texts whose answers hardly overlap or hold
            other numbers are then no duplicates: two questions on one passage, two exercises of
            one pattern.
    """
    assert 0 < threshold <= 1, threshold
    removed: dict[int, NearDuplicate] = {}
    if not texts:
        return []
    for row, earlier in _candidates(
        _sketch(texts, band=_band_size(threshold)), least=threshold - ESTIMATE_ERROR
    ):
        if row in removed:
            continue
        kept = removed[earlier].of if earlier in removed else earlier
        overlap = _overlap(texts[row], texts[kept])
        if overlap >= threshold and (answers is None or _same_answer(answers[row], answers[kept])):
            removed[row] = NearDuplicate(row, kept, overlap)
    return [removed[row] for row in sorted(removed)]


def _band_size(threshold: float) -> int:
    """Places of a band, as many as let a pair at the threshold meet: 5 at 0.8 (25 bands), 3 at 0.6.

    Fewer would let more of the pairs below it meet, which costs time.
    """

    def meets(size: int) -> float:
        return 1 - (1 - threshold**size) ** (SIGNATURE_SIZE // size)

    return max((size for size in range(2, 17) if meets(size) >= BAND_RECALL), default=1)


def _sketch(texts: Sequence[str], *, band: int) -> _Sketches:
    count = SIGNATURE_SIZE // band
    bands = np.empty((count, len(texts)), dtype=np.uint64)
    low = np.empty((len(texts), SIGNATURE_SIZE), dtype=np.uint8)
    done = 0
    for chunk in chunks(texts):
        place = slice(done, done + len(chunk))
        signatures = _signatures(chunk)
        low[place] = signatures.T
        for i in range(count):
            bands[i, place] = _band_keys(signatures[i * band : (i + 1) * band])
        done += len(chunk)
    return _Sketches(bands, low)


def _signatures(normals: Sequence[str]) -> np.ndarray:
    """MinHash signatures [SIGNATURE, texts] uint32: the least of each permuted hash in a text."""
    ngrams = ConcatenatedTexts([_padded(normal) for normal in normals]).ngrams(NGRAM_SIZE)
    hashes = (ngrams.hashes >> np.uint64(32)).astype(np.uint32)
    starts = np.flatnonzero(np.diff(ngrams.texts, prepend=-1))
    permuted = np.empty_like(hashes)
    signatures = np.empty((SIGNATURE_SIZE, len(normals)), dtype=np.uint32)
    for i, (factor, term) in enumerate(zip(*_permutations(), strict=True)):
        np.multiply(hashes, factor, out=permuted)
        np.add(permuted, term, out=permuted)
        np.minimum.reduceat(permuted, starts, out=signatures[i])
    return signatures


def _permutations() -> tuple[np.ndarray, np.ndarray]:
    """Factors and terms of x -> x * factor + term modulo 2^32; the same in every run."""
    rng = np.random.default_rng(0)
    factors = rng.integers(0, 2**31, SIGNATURE_SIZE, dtype=np.uint32) * np.uint32(2) + np.uint32(1)
    return factors, rng.integers(0, 2**32, SIGNATURE_SIZE, dtype=np.uint32)


def _band_keys(signatures: np.ndarray) -> np.ndarray:
    keys = np.zeros(signatures.shape[1], dtype=np.uint64)
    for values in signatures:
        keys = (keys ^ values) * np.uint64(0x9E3779B97F4A7C15)
        keys ^= keys >> np.uint64(29)
    return keys


def _candidates(sketches: _Sketches, *, least: float) -> Iterable[tuple[int, int]]:
    """Pairs (row, earlier row) that agree on a band, by row and then by earlier row; without those
    whose signatures put their overlap below `least`.

    Of a group that agrees, each row is paired with the first and with the one before it: enough,
    since a removed row stands for the one that it repeats.
    """
    found = [np.empty(0, dtype=np.int64)]
    for keys in sketches.bands:
        order = np.argsort(keys, kind="stable")
        same = keys[order][1:] == keys[order][:-1]
        begins = np.flatnonzero(np.concatenate([[True], ~same]))
        first = np.repeat(order[begins], np.diff(begins, append=len(order)))
        for earlier in (first[1:][same], order[:-1][same]):
            found.append(
                _filter_by_estimate(sketches.low, order[1:][same] << 32 | earlier, least=least)
            )
    for pair in np.unique(np.concatenate(found)):
        yield int(pair) >> 32, int(pair) & 0xFFFFFFFF


def _filter_by_estimate(low: np.ndarray, pairs: np.ndarray, *, least: float) -> np.ndarray:
    """The pairs whose signatures agree in `least` of their places or more."""
    kept = []
    for start in range(0, len(pairs), _PAIRS_AT_ONCE):
        some = pairs[start : start + _PAIRS_AT_ONCE]
        agreeing = (low[some >> 32] == low[some & 0xFFFFFFFF]).mean(axis=1)
        kept.append(some[agreeing >= least])
    return np.concatenate(kept) if kept else pairs


def _padded(normal: str) -> str:
    """Pad a text to one n-gram; NUL occurs in no normal form."""
    return normal.ljust(NGRAM_SIZE, "\0")


def _overlap(a: str, b: str) -> float:
    """Return the Jaccard index of two texts' n-grams; shorter texts are padded to one."""
    left, right = (
        np.unique(ngram_hashes(_padded(normal_form(text)), size=NGRAM_SIZE)) for text in (a, b)
    )
    shared = len(np.intersect1d(left, right, assume_unique=True))
    return shared / (len(left) + len(right) - shared)


def _same_answer(a: str, b: str) -> bool:
    return _NUMBER.findall(a) == _NUMBER.findall(b) and _overlap(a, b) >= SAME_ANSWER
