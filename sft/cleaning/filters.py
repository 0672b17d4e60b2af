"""Filters of training rows: benchmark questions and near-duplicates, each with stored evidence."""

import logging
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
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


def known_questions(
    section: DataSection, benchmarks: Benchmarks
) -> dict[str, Sequence[BenchmarkQuestion]]:
    """Return the questions that training rows must not contain, by benchmark or file.

    A benchmark has none if its data cannot be loaded now; a file without any is an error.
    """
    known = dict(benchmarks.load()) if section.decontaminate_tasks else {}
    return known | {path: _read_file(path) for path in section.decontaminate}


def questions_fingerprint(section: DataSection, benchmarks: Benchmarks) -> str:
    """Return a hash of the questions that `known_questions` returns, without loading them."""
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
    """Return the indices of rows (chats, pairs or prompts) that contain a known question.

    Args:
        evidence: file that receives a line for each such row.
        files: those of `known` that are files of `data.decontaminate`, not benchmarks.

    Raises:
        UserError: there is such a row and `on_error` is stop.
    """
    index = QuestionIndex(question for questions in known.values() for question in questions)
    found = index.find(row_text(row) for row in rows)
    lines = [
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
        first = found[0]
        raise UserError(
            f"{lines[0]['origin']}: holds {first.share:.0%} of question {first.id} of "
            f"{first.source} ({first.evidence[:60]!r}); {len(found)} of {len(rows)} rows hold "
            "such questions, and training on them spoils the benchmark: remove them, set "
            f"data.on_error=drop to leave them out, or to keep them {_how_to_keep(found, files)}"
        )
    return {f.row for f in found}


def _how_to_keep(found: Sequence[Contamination], files: Collection[str]) -> str:
    """Return the settings with which none of these questions is searched for."""
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
    """Drop the rows that `find_contaminated` returns."""
    found = find_contaminated(read.rows, known, on_error=on_error, evidence=evidence, files=files)
    return drop_rows(read, found, rule=CONTAMINATED)


def check_contamination(
    rows: Sequence[dict[str, Any]], section: DataSection, *, benchmarks: Benchmarks, folder: Path
) -> set[int]:
    """Run `find_contaminated` once for the same rows and questions; results are kept in `folder`.

    Only one process may call it.
    """
    inputs = {
        "rows": fingerprint([row_text(row) for row in rows]),
        "questions": questions_fingerprint(section, benchmarks),
        "on_error": section.on_error,
    }
    stage = Stage(folder, inputs)
    done = stage.finished()
    if done is None or done["unchecked"]:
        stage.begin()
        known = known_questions(section, benchmarks)
        evidence, files = folder / "contamination.jsonl", section.decontaminate
        found = find_contaminated(
            rows, known, on_error=section.on_error, evidence=evidence, files=files
        )
        facts = {"found": sorted(found), "unchecked": unchecked(known)}
        done = stage.finish(outputs=[evidence.name], facts=facts)
    return set(done["found"])


def unchecked(known: Mapping[str, Sequence[BenchmarkQuestion]]) -> list[str]:
    """Return the benchmarks whose questions could not be loaded."""
    return [name for name, questions in known.items() if not questions]


def drop_near_duplicates(read: SourceRows, *, threshold: float, evidence: Path) -> SourceRows:
    """Drop the rows that repeat an earlier one.

    Args:
        threshold: see `near_duplicates`; 0 searches for none.
        evidence: file that receives a line for each exact repeat, then for each row dropped here.
    """
    rows = read.rows
    found = (
        near_duplicates(rows, threshold=threshold, text=row_text, answer=answer_text)
        if threshold
        else []
    )
    lines = [{"origin": r.origin, "of": r.of, "overlap": 1.0, "rule": r.rule} for r in read.repeats]
    lines += [
        {
            "origin": rows[d.row]["origin"],
            "of": rows[d.of]["origin"],
            "overlap": round(d.overlap, 4),
            "rule": NEAR_DUPLICATE,
        }
        for d in found
    ]
    write_jsonl(evidence, lines)
    return drop_rows(read, {d.row for d in found}, rule=NEAR_DUPLICATE)


def drop_rows(read: SourceRows, removed: set[int], *, rule: str) -> SourceRows:
    """Drop the `removed` rows, which their sources count under `rule`; one must be left."""
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
