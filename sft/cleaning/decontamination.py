"""Training rows that contain a benchmark's question, found by overlap of character n-grams.

A row contains a question if it has at least half of the question's n-grams, in normal form (see
`sft.cleaning.ngrams`). Questions of a few words are too common to be evidence and are skipped.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sft.cleaning.ngrams import ConcatenatedTexts, NGrams, chunks, normal_form

# Characters of an n-gram: the largest size that fits into the question. Latin letters carry less
# information than ideographs; 50 and 18 are about ten words. Shorter questions than the smallest
# are common phrases.
NGRAM_SIZES, NGRAM_SIZES_CJK = (50, 42, 36, 30, 25), (18, 14, 12, 10)
MIN_SHARE = 0.5
MAX_OWNERS = 5  # an n-gram of more questions is boilerplate of the benchmark and no evidence
# Fields that hold a question in the files of known benchmarks, in the order of trial.
FIELDS = (
    *("question", "query", "problem", "prompt", "instruction", "ctx", "input"),
    *("sentence", "premise", "goal", "turns", "messages", "text"),
)


@dataclass(frozen=True)
class BenchmarkQuestion:
    """A question of a benchmark without choices and answer; `source` is the task or the file."""

    source: str
    id: str
    text: str


@dataclass(frozen=True)
class Benchmarks:
    """The benchmarks of a run."""

    key: str  # identifies the questions; known without loading them
    # Returns the questions by benchmark, none for one whose data cannot be loaded now.
    load: Callable[[], Mapping[str, Sequence[BenchmarkQuestion]]]


@dataclass(frozen=True)
class Contamination:
    """Row `row` has `share` of the n-grams of a question; `evidence` is a passage of both."""

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
    """An index of questions by the hashes of their n-grams."""

    def __init__(self, questions: Iterable[BenchmarkQuestion]) -> None:
        distinct = {normal_form(question.text): question for question in questions}
        indexed = [_IndexedQuestion(q, normal, _size(normal)) for normal, q in distinct.items()]
        self._known = [k for k in indexed if k.size]
        joined = ConcatenatedTexts([k.normal for k in self._known])
        sizes = sorted({k.size for k in self._known})
        self._sizes = [_SizeIndex(joined, self._known, size) for size in sizes]
        self._counts = np.zeros(len(self._known), dtype=np.int64)
        for index in self._sizes:
            self._counts += np.bincount(index.owners, minlength=len(self._known))
        # Questions that are too short or too common to be found.
        self.skipped = len(distinct) - int((self._counts > 0).sum())

    def find(self, texts: Iterable[str]) -> list[Contamination]:
        """Return, for each text that contains questions, the one with the largest share."""
        found: list[Contamination] = []
        done = 0
        for chunk in chunks(texts):
            found += self._find(chunk, done)
            done += len(chunk)
        return found

    def _find(self, normals: list[str], first: int) -> Iterator[Contamination]:
        joined = ConcatenatedTexts(normals)
        matches = [index.matches(joined) for index in self._sizes]
        if not matches:
            return
        pairs, counts = np.unique(np.concatenate(matches), return_counts=True)
        texts, owners = pairs >> 32, pairs & 0xFFFFFFFF
        shares = counts / self._counts[owners]
        done = -1
        for at in np.lexsort((owners, -shares, texts)):
            text, known = int(texts[at]), self._known[owners[at]]
            if text == done or shares[at] < MIN_SHARE:
                continue
            # Hashes can collide; a common passage proves the match.
            if evidence := _common_passage(normals[text], known):
                done = text
                question, share = known.question, float(shares[at])
                yield Contamination(first + text, question.source, question.id, share, evidence)


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
        owner_counts = np.diff(begins, append=len(hashes))
        keep = np.repeat(owner_counts <= MAX_OWNERS, owner_counts) & own[owners]
        self.hashes, self.owners = hashes[keep], owners[keep]

    def matches(self, joined: ConcatenatedTexts) -> np.ndarray:
        """Return text << 32 | question for each different n-gram of the question in the text."""
        hashes, texts = self._marked(joined.ngrams(self.size))
        left = np.searchsorted(self.hashes, hashes, side="left")
        right = np.searchsorted(self.hashes, hashes, side="right")
        times = right - left
        ends = np.cumsum(times)
        places = np.repeat(left - ends + times, times) + np.arange(ends[-1] if len(ends) else 0)
        # Each place is one n-gram of one question; a text that repeats it counts once.
        pairs = np.unique(np.repeat(texts, times) << 32 | places)
        owners: np.ndarray = pairs >> 32 << 32 | self.owners[pairs & 0xFFFFFFFF]
        return owners

    def _mark(self, hashes: np.ndarray) -> None:
        # A table of the hashes' first bits: most n-grams of a text are in no question, and the
        # table excludes them without a search.
        bits = min(26, max(12, len(hashes).bit_length() + 3))
        self._shift = np.uint64(64 - bits)
        self._table = np.zeros(1 << bits, dtype=bool)
        self._table[hashes >> self._shift] = True

    def _marked(self, ngrams: NGrams) -> tuple[np.ndarray, np.ndarray]:
        maybe = self._table[ngrams.hashes >> self._shift]
        return ngrams.hashes[maybe], ngrams.texts[maybe].astype(np.int64)


def _size(normal: str) -> int:
    """Return the size of a question's n-grams; 0 for one that is too short."""
    cjk = sum("\u3040" <= c <= "\u9fff" or c >= "\U00020000" for c in normal)
    sizes = NGRAM_SIZES_CJK if 2 * cjk > len(normal) else NGRAM_SIZES
    return next((size for size in sizes if size <= len(normal)), 0)


def _common_passage(normal: str, known: _IndexedQuestion) -> str:
    """Return the first passage of both, at least one n-gram long; "" if there is none."""
    for start in range(len(known.normal) - known.size + 1):
        end = start + known.size
        if known.normal[start:end] in normal:
            while end < len(known.normal) and known.normal[start : end + 1] in normal:
                end += 1
            return known.normal[start:end]
    return ""


def read_questions(rows: Iterable[Mapping[str, object]], *, source: str) -> list[BenchmarkQuestion]:
    """Return the questions in a benchmark's rows; rows without one of `FIELDS` are skipped."""
    questions = []
    for place, row in enumerate(rows):
        text = next((text for name in FIELDS if (text := _text(row.get(name)))), None)
        if text is not None:
            questions.append(BenchmarkQuestion(source, str(row.get("id", place)), text))
    return questions


def _text(value: object) -> str:
    """Return a text, or the joined texts of a list of turns without the assistant's."""
    if isinstance(value, list):
        value = "\n".join(
            _text(part.get("content") if isinstance(part, dict) else part)
            for part in value
            if not (isinstance(part, dict) and part.get("role") == "assistant")
        )
    return value.strip() if isinstance(value, str) else ""
