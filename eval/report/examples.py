"""Which answers and questions the report shows, chosen by rule, and where an answer loops.

For display only: every verdict and number comes from the stored samples and results.json.
Sample files are read twice, line by line (to choose, then to fetch), so memory stays bounded by
what is shown plus one small record a row.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Literal

from eval.metrics.loop_detection import prefix_matches
from eval.report.sample_files import read_lines
from eval.schema import ChatMessage, GenerationRow, SampleRow, ScoredRow, StoredLoop

# However much is measured, the page holds no more than this, so that it opens at once.
PROMPTS = 24
# Of the prompts shown: ones where a loop was cured, and ones where the last model still loops.
CURED, STILL = 12, 4
QUESTIONS_PER_TASK = 5
TASKS = 24
# Characters shown before the rest folds away, and again before a loop; a fold hides FOLD_MIN at
# least, and holds FOLD_MOST at most.
FOLD_AT, FOLD_MIN, FOLD_TAIL, FOLD_MOST = 600, 200, 120, 4000
MESSAGES_MOST = 20  # of a longer conversation, beginning and end are shown
# A loop shorter than this many characters is shown several copies at a time.
COPY_MIN = 12


@dataclass(frozen=True)
class Prompt:
    """One prompt with the answer rows of the models that have one (model -> row)."""

    id: str
    messages: list[ChatMessage]
    category: str
    language: str
    answers: dict[str, GenerationRow]


@dataclass(frozen=True)
class BenchmarkQuestion:
    """One benchmark question with every model's sample row (model -> row)."""

    task: str
    prompt: str
    target: str
    answers: dict[str, ScoredRow]


@dataclass(frozen=True)
class Part:
    """A piece of an answer as it is displayed: text, folded, or a copy of its loop.

    Of `size` characters, `text` holds those that are on the page.
    """

    kind: Literal["text", "fold", "copy", "copies"]  # copies: the further ones, folded
    text: str
    size: int

    @classmethod
    def of(cls, kind: Literal["text", "fold", "copy", "copies"], text: str) -> "Part":
        """A part of this text; a fold is cut where it would make the page heavy."""
        most = FOLD_MOST if kind in ("fold", "copies") else len(text)
        return cls(kind, text[:most], len(text))


def choose_prompts(files: dict[str, Path]) -> list[Prompt]:
    """About two dozen prompts, from model -> generations.jsonl, in model order.

    Up to CURED where an earlier model repeats and the last does not, up to STILL where the last one
    repeats, the rest where none does; the last model to loop, languages and kinds take turns.
    """
    repeats: dict[str, dict[str, bool]] = defaultdict(dict)
    group: dict[str, tuple[str, ...]] = {}
    for model, path in files.items():
        for row in read_lines(path, schema=GenerationRow):
            repeats[row["id"]][model] = bool(row.get("repeats"))
            # The last model to loop comes first: a loop cured late is rarer than one cured early.
            looper = model if row.get("repeats") else group.get(row["id"], ("",))[0]
            group[row["id"]] = (looper, row.get("language", ""), row.get("category", ""))
    last = list(files)[-1] if files else ""
    still = [i for i, seen in repeats.items() if seen.get(last)]
    cured = [i for i, seen in repeats.items() if not seen.get(last) and any(seen.values())]
    calm = [i for i, seen in repeats.items() if not any(seen.values())]
    chosen = _turns(cured, group)[:CURED] + _turns(still, group)[:STILL]
    # With few loops the room goes to ordinary prompts, with few of those back to loops.
    rest = _turns(calm, group) + _turns(cured, group)[CURED:] + _turns(still, group)[STILL:]
    chosen += rest[: PROMPTS - len(chosen)]
    return _fetch_prompts(files, chosen)


def choose_questions(files: dict[str, dict[str, Path]]) -> list[BenchmarkQuestion]:
    """Up to 5 questions of a task, from task -> model -> samples file, verdicts that differ first.

    Questions that the last model gained on the first, that it lost, and where the two agree, in
    turn. They are joined on document id and hash.
    """
    questions: list[BenchmarkQuestion] = []
    for task, paths in list(files.items())[:TASKS]:
        scores: dict[tuple[str, str], dict[str, float]] = defaultdict(dict)
        for model, path in paths.items():
            for row in read_lines(path, schema=ScoredRow):
                scores[_document(row)][model] = row["score"]
        shared = {key: list(s.values()) for key, s in scores.items() if len(s) == len(paths)}
        gained = [key for key, s in shared.items() if s[-1] > s[0]]
        lost = [key for key, s in shared.items() if s[-1] < s[0]]
        same = [key for key, s in shared.items() if s[-1] == s[0]]
        turns = [key for turn in zip_longest(gained, lost, same) for key in turn if key]
        chosen = turns[:QUESTIONS_PER_TASK]
        questions += _fetch_questions(task, paths, chosen)
    return questions


def shown(row: GenerationRow | ScoredRow) -> list[Part]:
    """Split a stored answer into parts; a loop is shown twice and its other copies are folded."""
    loop, found = row.get("loop"), None
    if "answer" in row:  # a sample stores the loop's place in characters
        text = row["answer"]
        if loop:
            found = loop["start"], loop["period"]
            if text[found[0] :][: found[1]] != text[sum(found) :][: found[1]]:
                found = None  # an edited text no longer holds the loop
    else:
        text = row["text"]
        if loop:
            found = _find_copies(text, loop, num_tokens=len(row.get("token_ids", ())))
    if found is None:
        return folded(text)
    start, period = found
    second, rest = start + period, start + 2 * period
    copies = [Part.of("copy", text[start:second]), Part.of("copy", text[second:rest])]
    return folded(text[:start], tail=FOLD_TAIL) + copies + [Part.of("copies", text[rest:])]


def folded(text: str, *, tail: int = 0) -> list[Part]:
    """`text` with what lies beyond about FOLD_AT characters folded, but for its last `tail`."""
    if len(text) < FOLD_AT + tail + FOLD_MIN:
        return [Part.of("text", text)]
    cut = max(text.rfind(" ", 0, FOLD_AT), text.rfind("\n", 0, FOLD_AT), FOLD_AT - FOLD_MIN)
    end = len(text) - tail
    end = max(end, text.find(" ", end, end + tail // 2) + 1)
    parts: list[tuple[Literal["text", "fold"], str]] = [
        *(("text", text[:cut]), ("fold", text[cut:end]), ("text", text[end:]))
    ]
    return [Part.of(kind, piece) for kind, piece in parts]


def _find_copies(text: str, loop: StoredLoop, *, num_tokens: int) -> tuple[int, int] | None:
    """Character start and period of the loop, from its place in tokens; None if not visible.

    The loop is known in tokens and the tokenizer is not at hand, so the shortest character period
    is taken whose run at the end of the text covers at least half of where the loop should be.
    """
    # A cut in the middle of a character leaves replacement characters that repeat nothing.
    body = text.rstrip("\ufffd")
    expected = len(body) * (num_tokens - loop["start"]) / max(num_tokens, 1)
    reverse = body[::-1]
    for period, match in prefix_matches(reverse, longest=len(reverse) // 2):
        run = period + match
        if run >= 2 * period and run >= expected / 2:
            period *= max(1, min(COPY_MIN // period, run // (2 * period)))
            start = len(body) - run
            # Any turn of the loop is as true; one that starts with a word reads best.
            spare = min(period, run - 2 * period)
            words = (i for i in range(start, start + spare) if body[i].isalnum())
            return next(words, start), period
    return None


def _turns(ids: Sequence[str], group: dict[str, tuple[str, ...]], *, level: int = 0) -> list[str]:
    """`ids` reordered so that the parts of their groups take turns, the first part fastest."""
    if not ids or level == len(group[ids[0]]):
        return list(ids)
    parts: dict[str, list[str]] = defaultdict(list)
    for i in ids:
        parts[group[i][level]].append(i)
    turns = [_turns(members, group, level=level + 1) for members in parts.values()]
    return [item for turn in zip_longest(*turns) for item in turn if item is not None]


def _fetch_prompts(files: dict[str, Path], chosen: Sequence[str]) -> list[Prompt]:
    found: dict[str, dict[str, GenerationRow]] = {i: {} for i in chosen}
    for model, path in files.items():
        for row in read_lines(path, schema=GenerationRow):
            if row["id"] in found:
                found[row["id"]][model] = _bounded(row)
    prompts = []
    for i, answers in found.items():
        first = next(iter(answers.values()))
        category, language = first.get("category", ""), first.get("language", "")
        prompts.append(Prompt(i, first["messages"], category, language, answers))
    return prompts


def _fetch_questions(
    task: str, paths: dict[str, Path], chosen: Sequence[tuple[str, str]]
) -> list[BenchmarkQuestion]:
    found: dict[tuple[str, str], dict[str, ScoredRow]] = {key: {} for key in chosen}
    for model, path in paths.items():
        for row in read_lines(path, schema=ScoredRow):
            if _document(row) in found:
                found[_document(row)][model] = row
    questions = []
    for answers in found.values():
        # The shortest prompt is the question alone, without few-shot examples before it.
        # Rows of early versions have no prompt, and their questions cannot be shown.
        asked = [row for row in answers.values() if "prompt" in row]
        if not asked:
            continue
        shortest = min(asked, key=lambda row: len(row["prompt"]))
        questions.append(BenchmarkQuestion(task, shortest["prompt"], shortest["target"], answers))
    return questions


def _bounded(row: GenerationRow) -> GenerationRow:
    """A row with a long conversation cut in the middle; the page links to the complete file."""
    messages, half = row["messages"], MESSAGES_MOST // 2
    if (more := len(messages) - MESSAGES_MOST) <= 0:
        return row
    note: ChatMessage = {"role": "\u2026", "content": f"{more:,} messages that are not shown"}
    return {**row, "messages": [*messages[:half], note, *messages[-half:]]}


def _document(row: SampleRow) -> tuple[str, str]:
    return str(row["doc_id"]), str(row.get("doc_hash", ""))
