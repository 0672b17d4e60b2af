"""Training rows that hold a benchmark's question, found by overlap of character windows.

Case, spacing, punctuation and full-width forms do not hide a copy (see `sft.windows`). A row holds
a question when it holds at least half of the question's windows; a question shorter than a window
must stand in the row whole, and one of a few words is too common to say anything.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sft.windows import normal_form, window_hashes

# Characters of a window: the largest that fits into the question. Latin letters say less each than
# ideographs; 50 and 18 are ten words or so. Questions below the smallest are common phrases.
SIZES, SIZES_CJK = (50, 42, 36, 30, 25), (18, 14, 12, 10)
MIN_SHARE = 0.5
# A window of more questions than this is the benchmark's own boilerplate and proves nothing.
MOST_OWNERS = 5


@dataclass(frozen=True)
class Question:
    """A benchmark's question: what it is called and its text, without choices and answer."""

    source: str  # task or file
    id: str
    text: str


@dataclass(frozen=True)
class Contamination:
    """Row `row` holds `share` of the windows of a question; `evidence` is a passage of both."""

    row: int
    source: str
    id: str
    share: float
    evidence: str  # in normal form


@dataclass(frozen=True)
class _Known:
    question: Question
    normal: str
    size: int  # of its windows


class QuestionIndex:
    """Questions by the hashes of their windows.

    Attributes:
        not_sought: questions too short or too common to look for.
    """

    def __init__(self, questions: Iterable[Question]) -> None:
        asked = {normal_form(question.text): question for question in questions}
        known = [_Known(question, normal, _size(normal)) for normal, question in asked.items()]
        self._known = [k for k in known if k.size]
        # size -> (hashes in order, the question that each belongs to)
        self._index: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self._counts = np.zeros(len(self._known), dtype=np.int64)
        for size in sorted({k.size for k in self._known}):
            hashes, owners = _telling(self._known, size)
            self._index[size] = hashes, owners
            self._counts += np.bincount(owners, minlength=len(self._known))
        self.not_sought = len(known) - int((self._counts > 0).sum())

    def find(self, texts: Sequence[str]) -> list[Contamination]:
        """For each text that holds a question, the one it holds most of; in order of texts."""
        return [found for row, text in enumerate(texts) if (found := self._find(row, text))]

    def _find(self, row: int, text: str) -> Contamination | None:
        normal = normal_form(text)
        best: Contamination | None = None
        for size, (hashes, owners) in self._index.items():
            own = np.unique(window_hashes(normal, size=size))
            left = np.searchsorted(hashes, own, side="left")
            right = np.searchsorted(hashes, own, side="right")
            met = np.flatnonzero(right > left)
            if not len(met):
                continue
            held = np.concatenate([owners[left[i] : right[i]] for i in met])
            for owner, count in zip(*np.unique(held, return_counts=True), strict=True):
                known = self._known[owner]
                share = count / self._counts[owner]
                if share >= MIN_SHARE and (best is None or share > best.share):
                    evidence = _common_passage(normal, known)
                    if evidence:
                        question = known.question
                        best = Contamination(row, question.source, question.id, share, evidence)
        return best


def _size(normal: str) -> int:
    """The size of a question's windows; 0 for one that is too short."""
    sizes = SIZES_CJK if _mostly_cjk(normal) else SIZES
    return next((size for size in sizes if size <= len(normal)), 0)


def _telling(known: Sequence[_Known], size: int) -> tuple[np.ndarray, np.ndarray]:
    """Windows of the questions of this size that few questions of any size hold: hashes in order,
    and whose they are."""
    windows = [np.unique(window_hashes(k.normal, size=size)) for k in known]
    hashes = np.concatenate(windows)
    owners = np.repeat(np.arange(len(known)), [len(w) for w in windows])
    _, place, holders = np.unique(hashes, return_inverse=True, return_counts=True)
    own_size = np.array([k.size == size for k in known])
    keep = (holders[place] <= MOST_OWNERS) & own_size[owners]
    order = np.argsort(hashes[keep], kind="stable")
    return hashes[keep][order], owners[keep][order]


def _common_passage(normal: str, known: _Known) -> str:
    """The first passage of the question that stands in the text, a window at least; or nothing."""
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


def read_questions(rows: Iterable[Mapping[str, object]], *, source: str) -> list[Question]:
    """Questions of a benchmark's rows as files hold them, by the usual names of the field.

    Rows without one of these fields are passed over.
    """
    questions = []
    for place, row in enumerate(rows):
        for name in ("question", "query", "problem", "prompt", "instruction", "ctx", "input"):
            text = row.get(name)
            if isinstance(text, str) and text.strip():
                questions.append(Question(source, str(row.get("id", place)), text))
                break
    return questions
