"""Training rows that hold a benchmark's question, found by overlap of character n-grams.

Case, spacing, punctuation and full-width forms do not hide a copy (see `sft.cleaning.ngrams`). A
row holds a question when it holds at least half of the question's n-grams. Questions of a few
words are too common to be evidence and are skipped.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sft.cleaning.ngrams import ConcatenatedTexts, NGrams, chunks, normal_form

# Characters of an n-gram: the largest size that fits into the question. Latin letters carry less
# information than ideographs; 50 and 18 are ten words or so. Questions below the smallest are
# common phrases.
NGRAM_SIZES, NGRAM_SIZES_CJK = (50, 42, 36, 30, 25), (18, 14, 12, 10)
MIN_SHARE = 0.5
# An n-gram of more questions than this is the benchmark's boilerplate and no evidence.
MAX_OWNERS = 5
# Fields that hold a question in the files of known benchmarks, in the order of trial.
FIELDS = (
    *("question", "query", "problem", "prompt", "instruction", "ctx", "input"),
    *("sentence", "premise", "goal", "turns", "messages", "text"),
)


@dataclass(frozen=True)
class BenchmarkQuestion:
    """A benchmark's question: what it is called and its text, without choices and answer."""

    source: str  # task or file
    id: str
    text: str


@dataclass(frozen=True)
class Benchmarks:
    """What a run will be measured with.

    Attributes:
        key: another where any question is; known without loading them.
        load: the questions by benchmark, none where its data cannot be had now.
    """

    key: str
    load: Callable[[], Mapping[str, Sequence[BenchmarkQuestion]]]


@dataclass(frozen=True)
class Contamination:
    """Row `row` holds `share` of the n-grams of a question; `evidence` is a passage of both."""

    row: int
    source: str
    id: str
    share: float
    evidence: str  # in normal form


@dataclass(frozen=True)
class _IndexedQuestion:
    question: BenchmarkQuestion
    normal: str
    size: int  # of its n-grams


class QuestionIndex:
    """An index of questions by the hashes of their n-grams.

    Attributes:
        not_sought: questions too short or too common to look for.
    """

    def __init__(self, questions: Iterable[BenchmarkQuestion]) -> None:
        asked = {normal_form(question.text): question for question in questions}
        known = [
            _IndexedQuestion(question, normal, _size(normal)) for normal, question in asked.items()
        ]
        self._known = [k for k in known if k.size]
        joined = ConcatenatedTexts([k.normal for k in self._known])
        sizes = sorted({k.size for k in self._known})
        self._sizes = [_SizeIndex(joined, self._known, size) for size in sizes]
        self._counts = np.zeros(len(self._known), dtype=np.int64)
        for index in self._sizes:
            self._counts += np.bincount(index.owners, minlength=len(self._known))
        self.skipped = len(known) - int((self._counts > 0).sum())

    def find(self, texts: Iterable[str]) -> list[Contamination]:
        """For each text that holds a question, the one it holds most of; in order of texts."""
        found: list[Contamination] = []
        done = 0
        for chunk in chunks(texts):
            found += self._find(chunk, done)
            done += len(chunk)
        return found

    def _find(self, normals: list[str], first: int) -> Iterator[Contamination]:
        joined = ConcatenatedTexts(normals)
        hits = [index.held(joined) for index in self._sizes]
        if not hits:
            return
        held, counts = np.unique(np.concatenate(hits), return_counts=True)
        texts, owners = held >> 32, held & 0xFFFFFFFF
        shares = counts / self._counts[owners]
        done = -1
        for at in np.lexsort((owners, -shares, texts)):
            text, known = int(texts[at]), self._known[owners[at]]
            if text == done or shares[at] < MIN_SHARE:
                continue
            evidence = _common_passage(normals[text], known)
            if evidence:
                done = text
                asked = known.question
                yield Contamination(
                    first + text, asked.source, asked.id, float(shares[at]), evidence
                )


class _SizeIndex:
    """The distinctive n-grams of the questions of one size: sorted hashes, and their owners."""

    def __init__(
        self, joined: ConcatenatedTexts, known: Sequence[_IndexedQuestion], size: int
    ) -> None:
        self.size = size
        ngrams = joined.ngrams(size)
        own = np.array([k.size == size for k in known])
        self._mark(ngrams.hashes[own[ngrams.texts]])
        hashes, texts = self._marked(ngrams)
        order = np.lexsort((texts, hashes))
        hashes, owners = hashes[order], texts[order]
        # Each n-gram counts once a question, however often it occurs.
        once = np.ones(len(hashes), dtype=bool)
        once[1:] = (hashes[1:] != hashes[:-1]) | (owners[1:] != owners[:-1])
        hashes, owners = hashes[once], owners[once]
        begins = np.flatnonzero(np.diff(hashes, prepend=~hashes[:1]))
        holders = np.diff(begins, append=len(hashes))
        keep = np.repeat(holders <= MAX_OWNERS, holders) & own[owners]
        self.hashes, self.owners = hashes[keep], owners[keep]

    def held(self, joined: ConcatenatedTexts) -> np.ndarray:
        """text << 32 | question, as often as the text holds different n-grams of the question."""
        hashes, texts = self._marked(joined.ngrams(self.size))
        left = np.searchsorted(self.hashes, hashes, side="left")
        right = np.searchsorted(self.hashes, hashes, side="right")
        times = right - left
        ends = np.cumsum(times)
        places = np.repeat(left - ends + times, times) + np.arange(ends[-1] if len(ends) else 0)
        # `places` is one n-gram of one question: a text that repeats it holds it once.
        met = np.unique(np.repeat(texts, times) << 32 | places)
        return np.asarray(met >> 32 << 32 | self.owners[met & 0xFFFFFFFF])

    def _mark(self, hashes: np.ndarray) -> None:
        """A table by the hashes' first bits: most n-grams of a text are in no question, and the
        table shows that without a search."""
        bits = min(26, max(12, len(hashes).bit_length() + 3))
        self._shift = np.uint64(64 - bits)
        self._table = np.zeros(1 << bits, dtype=bool)
        self._table[hashes >> self._shift] = True

    def _marked(self, ngrams: NGrams) -> tuple[np.ndarray, np.ndarray]:
        maybe = self._table[ngrams.hashes >> self._shift]
        return ngrams.hashes[maybe], ngrams.texts[maybe].astype(np.int64)


def _size(normal: str) -> int:
    """Return the size of a question's n-grams; 0 for one that is too short."""
    sizes = NGRAM_SIZES_CJK if _mostly_cjk(normal) else NGRAM_SIZES
    return next((size for size in sizes if size <= len(normal)), 0)


def _common_passage(normal: str, known: _IndexedQuestion) -> str:
    """The first passage of the question that the text holds, at least one n-gram long; or ""."""
    size = known.size
    for start in range(len(known.normal) - size + 1):
        if known.normal[start : start + size] in normal:
            end = start + size
            while end < len(known.normal) and known.normal[start : end + 1] in normal:
                end += 1
            return known.normal[start:end]
    return ""


def _mostly_cjk(normal: str) -> bool:
    return sum("\u3040" <= c <= "\u9fff" or c >= "\U00020000" for c in normal) * 2 > len(normal)


def read_questions(rows: Iterable[Mapping[str, object]], *, source: str) -> list[BenchmarkQuestion]:
    """Questions of a benchmark's rows as files hold them, by the usual names of the field.

    Rows without one of these fields are passed over.
    """
    questions = []
    for place, row in enumerate(rows):
        text = next((text for name in FIELDS if (text := _text(row.get(name)))), None)
        if text is not None:
            questions.append(BenchmarkQuestion(source, str(row.get("id", place)), text))
    return questions


def _text(value: object) -> str:
    """A field's text: as it is, of turns, or of the messages that are not the assistant's."""
    if isinstance(value, list):
        value = "\n".join(
            _text(part.get("content") if isinstance(part, dict) else part)
            for part in value
            if not (isinstance(part, dict) and part.get("role") == "assistant")
        )
    return value.strip() if isinstance(value, str) else ""
