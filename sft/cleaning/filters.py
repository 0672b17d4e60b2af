"""Rows that should not be trained on, taken out of what was read: benchmark questions, repetitions.

Every row taken out leaves its evidence, a line of the run's data folder.
"""

import logging
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sft.cleaning.decontamination import (
    BenchmarkQuestion,
    Benchmarks,
    Contamination,
    QuestionIndex,
    read_questions,
)
from sft.cleaning.near_duplicates import answer_text, near_duplicates, row_text
from sft.config.preset import find_path
from sft.config.sections import DataSection, Source
from sft.data.readers import read_records
from sft.data.records import RowError
from sft.data.sources import SourceRows
from sft.errors import UserError
from sft.run.fingerprint import fingerprint
from sft.run.stage_cache import Stage
from sft.system.atomic_files import write_jsonl

log = logging.getLogger(__name__)

CONTAMINATED = "contaminated"
NEAR_DUPLICATE = "near duplicate"

Evidence = list[dict[str, Any]]


def known_questions(
    section: DataSection, benchmarks: Benchmarks
) -> dict[str, Sequence[BenchmarkQuestion]]:
    """The questions that training must not hold, by benchmark or file; none where its data cannot
    be had now.

    Raises:
        UserError: a file of `data.decontaminate` is missing, broken or holds no question.
    """
    known = dict(benchmarks.load()) if section.decontaminate_tasks else {}
    return known | {path: _read_file(path) for path in section.decontaminate}


def questions_fingerprint(section: DataSection, benchmarks: Benchmarks) -> str:
    """Another where a question, or which of them are looked for, changed."""
    files = [fingerprint(find_path(path) or path) for path in section.decontaminate]
    return fingerprint([benchmarks.key if section.decontaminate_tasks else "", files])


def _read_file(path: str) -> list[BenchmarkQuestion]:
    fields = []
    for record in read_records(Source(path)):
        if isinstance(record, RowError):
            raise record
        fields.append(record.fields)
    questions = read_questions(fields, source=path)
    if not questions:
        raise UserError(
            f"{path}: no row of this file of data.decontaminate has a question; it has the fields "
            f"{', '.join(fields[0]) if fields else '(none)'}, rename one to question"
        )
    return questions


def find_contaminated(
    rows: Sequence[dict[str, Any]],
    known: Mapping[str, Sequence[BenchmarkQuestion]],
    *,
    on_error: str,
    evidence: Path,
    files: Collection[str] = (),
) -> set[int]:
    """The places of rows (chats, pairs or prompts) that hold a known question; `evidence` gets a
    line for each.

    Args:
        files: those of `known` that are files of `data.decontaminate`, not benchmarks.

    Raises:
        UserError: there is such a row and `on_error` is stop.
    """
    index = QuestionIndex(question for questions in known.values() for question in questions)
    found = index.find(row_text(row) for row in rows)
    lines: Evidence = [
        {
            "origin": rows[f.row].get("origin") or f"prompt {rows[f.row]['id']}",
            "task": f.source,
            "question": f.id,
            "share": round(f.share, 4),
            "passage": f.evidence,
        }
        for f in found
    ]
    write_jsonl(evidence, lines)
    if found and on_error == "stop":
        first = lines[0]
        raise UserError(
            f"{first['origin']}: holds {first['share']:.0%} of question {first['question']} of "
            f"{first['task']} ({first['passage'][:60]!r}); {len(found)} of {len(rows)} rows hold "
            "such questions, and training on them spoils the benchmark: remove them, set "
            f"data.on_error=drop to leave them out, or to keep them {_how_to_keep(found, files)}"
        )
    return {f.row for f in found}


def _how_to_keep(found: Sequence[Contamination], files: Collection[str]) -> str:
    """What to set so that none of these questions is looked for."""
    sources = sorted({f.source for f in found})
    named = [source for source in sources if source in files]
    ways = [f"take {', '.join(named)} out of data.decontaminate"] if named else []
    if len(named) < len(sources):
        ways.append("set data.decontaminate_tasks=false")
    return " and ".join(ways)


def drop_contaminated(
    read: SourceRows,
    known: Mapping[str, Sequence[BenchmarkQuestion]],
    *,
    on_error: str,
    evidence: Path,
    files: Collection[str] = (),
) -> SourceRows:
    """The rows that `find_contaminated` does not find."""
    found = find_contaminated(read.rows, known, on_error=on_error, evidence=evidence, files=files)
    return drop_rows(read, found, rule=CONTAMINATED)


def check_contamination(
    rows: Sequence[dict[str, Any]], section: DataSection, *, benchmarks: Benchmarks, folder: Path
) -> set[int]:
    """`find_contaminated`, once for the same rows and questions: what it found is kept in `folder`,
    with the evidence in contamination.jsonl. One process calls it."""
    stage = Stage(
        folder,
        {
            "rows": fingerprint([row_text(row) for row in rows]),
            "questions": questions_fingerprint(section, benchmarks),
            "on_error": section.on_error,
        },
    )
    done = stage.finished()
    if done is None or done["unchecked"]:
        stage.begin()
        known = known_questions(section, benchmarks)
        evidence = folder / "contamination.jsonl"
        found = find_contaminated(
            rows,
            known,
            on_error=section.on_error,
            evidence=evidence,
            files=section.decontaminate,
        )
        done = stage.finish(
            outputs=[evidence.name],
            facts={"found": sorted(found), "unchecked": unchecked(known)},
        )
    return set(done["found"])


def unchecked(known: Mapping[str, Sequence[BenchmarkQuestion]]) -> list[str]:
    """The benchmarks whose questions could not be had."""
    return [name for name, questions in known.items() if not questions]


class _LazyTexts(Sequence[str]):
    """What rows say, put together when it is read: a second copy of all rows would be large."""

    def __init__(
        self, rows: Sequence[dict[str, Any]], text: Callable[[dict[str, Any]], str]
    ) -> None:
        self._rows, self._text = rows, text

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, place: Any) -> Any:
        return self._text(self._rows[place])


def drop_near_duplicates(read: SourceRows, *, threshold: float, evidence: Path) -> SourceRows:
    """The rows that no earlier row says already; of the others `evidence` gets a line each, behind
    those of exact repetitions.

    Args:
        threshold: see `near_duplicates`; 0 looks for none.
    """
    found = (
        near_duplicates(
            _LazyTexts(read.rows, row_text),
            threshold=threshold,
            answers=_LazyTexts(read.rows, answer_text),
        )
        if threshold
        else []
    )
    near = [
        {
            "origin": read.rows[d.row]["origin"],
            "of": read.rows[d.of]["origin"],
            "overlap": round(d.overlap, 4),
            "rule": NEAR_DUPLICATE,
        }
        for d in found
    ]
    exact = [{"origin": r.origin, "of": r.of, "overlap": 1.0, "rule": r.rule} for r in read.repeats]
    write_jsonl(evidence, exact + near)
    return drop_rows(read, {d.row for d in found}, rule=NEAR_DUPLICATE)


def drop_rows(read: SourceRows, removed: set[int], *, rule: str) -> SourceRows:
    """The rows but for the `removed` ones, which their sources count under `rule`."""
    if not removed:
        return read
    counts, start = [], 0
    for count in read.counts:
        lost = sum(start <= row < start + count.kept for row in removed)
        start += count.kept
        if lost:
            dropped = Counter(count.dropped) + Counter({rule: lost})
            count = replace(count, kept=count.kept - lost, dropped=dict(dropped.most_common()))
            log.info("%s: %d left out (%s)", count.source, lost, rule)
        counts.append(count)
    if len(removed) == len(read.rows):
        raise UserError(
            f"{', '.join(c.source for c in counts)}: every row is left out ({rule}); name a source "
            "with other rows"
        )
    rows = [row for i, row in enumerate(read.rows) if i not in removed]
    return replace(read, rows=rows, counts=counts)
