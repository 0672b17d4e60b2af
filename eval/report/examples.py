"""Choose by rule the answers and questions that the report shows, and find their loops.

Sample files are read twice, line by line (to choose, then to fetch), so memory holds the shown rows
and a small record of each other row.
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

# Limits of the page, so that it opens quickly however much was measured.
PROMPTS = 24
# Of these, prompts on which the last model stopped looping, and on which it still loops.
CURED, STILL = 12, 4
QUESTIONS_PER_TASK = 5
TASKS = 24
# Characters shown before a fold, and after it before a loop; smallest and largest fold.
FOLD_AT, FOLD_MIN, FOLD_TAIL, FOLD_MOST = 600, 200, 120, 4000
MESSAGES_MOST = 20  # a longer conversation is cut in the middle
COPY_MIN = 12  # characters; copies of a shorter loop are shown several at a time


@dataclass(frozen=True)
class Prompt:
    """A prompt with the answers by model."""

    id: str
    messages: list[ChatMessage]
    category: str
    language: str
    answers: dict[str, GenerationRow]


@dataclass(frozen=True)
class BenchmarkQuestion:
    """A benchmark question with the sample rows by model."""

    task: str
    prompt: str
    target: str
    answers: dict[str, ScoredRow]


@dataclass(frozen=True)
class Part:
    """A displayed part of an answer, of `size` characters, of which `text` is on the page."""

    kind: Literal["text", "fold", "copy", "copies"]  # copies: the further ones, folded
    text: str
    size: int

    @classmethod
    def of(cls, kind: Literal["text", "fold", "copy", "copies"], text: str) -> "Part":
        """Return a part with this text; the text of a fold is cut at FOLD_MOST characters."""
        most = FOLD_MOST if kind in ("fold", "copies") else len(text)
        return cls(kind, text[:most], len(text))


def choose_prompts(files: dict[str, Path]) -> list[Prompt]:
    """Choose prompts from generations.jsonl by model, in model order.

    Up to CURED on which only an earlier model loops, up to STILL on which the last one loops, then
    prompts without a loop; the last model to loop, languages and categories alternate.
    """
    repeats: dict[str, dict[str, bool]] = defaultdict(dict)
    group: dict[str, tuple[str, ...]] = {}
    for model, path in files.items():
        for row in read_lines(path, schema=GenerationRow):
            repeats[row["id"]][model] = bool(row.get("repeats"))
            # Grouped by the last model that loops first: few loops remain until a late stage.
            looper = model if row.get("repeats") else group.get(row["id"], ("",))[0]
            group[row["id"]] = (looper, row.get("language", ""), row.get("category", ""))
    last = list(files)[-1] if files else ""
    still = [i for i, seen in repeats.items() if seen.get(last)]
    cured = [i for i, seen in repeats.items() if not seen.get(last) and any(seen.values())]
    calm = [i for i, seen in repeats.items() if not any(seen.values())]
    chosen = _turns(cured, group)[:CURED] + _turns(still, group)[:STILL]
    # Unused places go to prompts without a loop, then to further loops.
    rest = _turns(calm, group) + _turns(cured, group)[CURED:] + _turns(still, group)[STILL:]
    chosen += rest[: PROMPTS - len(chosen)]
    return _fetch_prompts(files, chosen)


def choose_questions(files: dict[str, dict[str, Path]]) -> list[BenchmarkQuestion]:
    """Choose questions of each task from sample files by task and model.

    Questions that the last model gained over the first, lost, and scored the same alternate.
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
    """Fold a text after about FOLD_AT characters, except for its last `tail`."""
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
    """Return start and period in characters of a loop whose place is known in tokens, or None.

    Without the tokenizer, it is the shortest period whose run at the end of the text covers at
    least half of the characters that the loop should have.
    """
    # An answer that was cut within a character ends in replacement characters.
    body = text.rstrip("\ufffd")
    expected = len(body) * (num_tokens - loop["start"]) / max(num_tokens, 1)
    reverse = body[::-1]
    for period, match in prefix_matches(reverse, longest=len(reverse) // 2):
        run = period + match
        if run >= 2 * period and run >= expected / 2:
            period *= max(1, min(COPY_MIN // period, run // (2 * period)))
            start = len(body) - run
            # Any rotation of the loop is valid; one that starts with a word is easiest to read.
            spare = min(period, run - 2 * period)
            words = (i for i in range(start, start + spare) if body[i].isalnum())
            return next(words, start), period
    return None


def _turns(ids: Sequence[str], group: dict[str, tuple[str, ...]], *, level: int = 0) -> list[str]:
    """Reorder ids so that their groups alternate; neighbors differ in the first part."""
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
        # The shortest prompt has no few-shot examples. Rows of early versions have no prompt.
        with_prompt = [row for row in answers.values() if "prompt" in row]
        if not with_prompt:
            continue
        shortest = min(with_prompt, key=lambda row: len(row["prompt"]))
        questions.append(BenchmarkQuestion(task, shortest["prompt"], shortest["target"], answers))
    return questions


def _bounded(row: GenerationRow) -> GenerationRow:
    """Cut the middle of a long conversation; the page links to the complete file."""
    messages, half = row["messages"], MESSAGES_MOST // 2
    if (more := len(messages) - MESSAGES_MOST) <= 0:
        return row
    note: ChatMessage = {"role": "\u2026", "content": f"{more:,} messages that are not shown"}
    return {**row, "messages": [*messages[:half], note, *messages[-half:]]}


def _document(row: SampleRow) -> tuple[str, str]:
    return row["doc_id"], row["doc_hash"]
