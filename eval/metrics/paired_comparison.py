"""Paired comparison of two models, whose stored samples are joined on the document."""

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

from eval.metrics.stats import BITS_PER_BYTE, Comparison, compare_bits, compare_paired, holm
from eval.schema import DeltaRow
from sft.errors import UserError

REPETITION = "repetition"
_SHOWN = 5  # documents named in an error

# Rows of generations.jsonl or of samples/<task>.jsonl.
StoredRows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class TaskDelta:
    """The comparison of two models on one task.

    `left_out` counts the documents that did not fit the context window of one of the two.
    """

    task: str
    comparison: Comparison
    left_out: int


def stage_pairs(models: Sequence[str]) -> list[tuple[str, str]]:
    """Return consecutive models, then first -> last unless that is the only step."""
    pairs = list(itertools.pairwise(models))
    return pairs if len(models) <= 2 else [*pairs, (models[0], models[-1])]


def delta_table(
    samples: Mapping[str, Mapping[str, StoredRows]],
    *,
    models: Sequence[str],
    entries: Mapping[str, Mapping[str, Mapping[str, Any]]] | None = None,
) -> list[DeltaRow]:
    """Return the `deltas` of results.json: every task, consecutive models and first -> last.

    Args:
        samples: stored rows by task and model; generations.jsonl for the task "repetition".
        entries: the entries of results.json by task and model, which count left-out documents.

    Raises:
        UserError: a model lacks a task, or the documents of two models differ.
    """
    named: list[tuple[str, str, TaskDelta]] = []
    for task, by_model in samples.items():
        for first, second in stage_pairs(models):
            for model in (first, second):
                if model not in by_model:
                    raise UserError(
                        f"{task}: no samples of model {model}, so {first} -> {second} cannot be "
                        f"paired; measure {model} on {task} or leave the task out"
                    )
            delta = compare(
                *(task, by_model[first], by_model[second]),
                names=(first, second),
                left_out=left_out((entries or {}).get(task, {}), first, second),
            )
            named.append((first, second, delta))
    adjusted = adjust([delta for _, _, delta in named])
    rows = [
        {"task": row.pop("task"), "from": first, "to": second, **row}
        for (first, second, _), row in zip(named, adjusted, strict=True)
    ]
    return cast(list[DeltaRow], rows)


def adjust(deltas: Sequence[TaskDelta]) -> list[dict[str, Any]]:
    """Return rows of plain data with Holm-adjusted p-values."""
    found = [delta.comparison for delta in deltas]
    adjusted = holm([one.p for one in found], smallest=[one.smallest_p for one in found])
    rows = []
    for delta, p_holm in zip(deltas, adjusted, strict=True):
        row: dict[str, Any] = {"task": delta.task}
        for key, value in asdict(delta.comparison).items():
            row[key] = list(value) if isinstance(value, tuple) else value
            if key == "p":
                row["p_holm"] = p_holm
        rows.append(row | {"left_out": delta.left_out})
    return rows


def left_out(entries: Mapping[str, Mapping[str, Any]], first: str, second: str) -> tuple[int, int]:
    """Return how many documents of a task each of two models left out."""
    before, after = (entries.get(name, {}).get("left_out", 0) for name in (first, second))
    return before, after


def compare(
    task: str,
    first: StoredRows,
    second: StoredRows,
    *,
    names: tuple[str, str],
    left_out: tuple[int, int] = (0, 0),
) -> TaskDelta:
    """Return the paired difference second - first of one task.

    Only documents that both models have are compared: one that does not fit a model's context
    window is left out of the other's rows, too.

    Raises:
        UserError: a model lacks more documents of the other than it has `left_out`, or the two
            were measured with different versions of the task.
    """
    _same_measure(task, first, second, names=names)
    left, right = _by_document(task, first), _by_document(task, second)
    both = [key for key in left if key in right]
    unpaired = len(right) - len(both), len(left) - len(both)
    if not both or any(lacks > out for lacks, out in zip(unpaired, left_out, strict=True)):
        raise UserError(_unpaired(task, left, right, names=names))
    comparison = _compared(task, [left[key] for key in both], [right[key] for key in both])
    return TaskDelta(task, comparison, sum(unpaired))


def _compared(task: str, first: StoredRows, second: StoredRows) -> Comparison:
    """Run the test that fits the rows, which are in the same order of documents."""
    clusters = clusters_of(first) or clusters_of(second)  # imported rows have none
    if all(row.get("metric") == BITS_PER_BYTE for row in first):
        logs = [[float(row["log_prob"]) for row in rows] for rows in (first, second)]
        return compare_bits(*logs, sizes=[row["bytes"] for row in first], clusters=clusters)
    scores = [[_score(task, row) for row in rows] for rows in (first, second)]
    return compare_paired(*scores, clusters=clusters)


def clusters_of(rows: StoredRows) -> list[tuple[bool, str]] | None:
    """Return each row's cluster, or None if no row shares a passage with another."""
    clusters = [_cluster(row) for row in rows]
    return clusters if any(shared for shared, _ in clusters) else None


def _by_document(task: str, rows: StoredRows) -> dict[tuple[str, int], Mapping[str, Any]]:
    """Index rows by document and occurrence: a benchmark may hold a document twice."""
    seen: Counter[str] = Counter()
    keyed = {}
    for row in rows:
        document = f"{row['id']} {row['messages']}" if task == REPETITION else row["doc_hash"]
        keyed[(document, seen[document])] = row
        seen[document] += 1
    return keyed


def _score(task: str, row: Mapping[str, Any]) -> float:
    return float(row["repeats"] if task == REPETITION else row["score"])


def _cluster(row: Mapping[str, Any]) -> tuple[bool, str]:
    """Return the passage of a row; a row without one forms its own cluster."""
    name = row.get("cluster")
    return (False, str(row.get("doc_id"))) if name is None else (True, str(name))


def _same_measure(
    task: str, first: StoredRows, second: StoredRows, *, names: tuple[str, str]
) -> None:
    """Check that the numbers to compare were measured in the same way.

    Rows without `version` or `template` (imported or of older runs) are not checked for it.
    """
    keys = ("cap",) if task == REPETITION else ("metric", "filter", "version", "template")
    for key in keys:
        left, right = ({str(row[key]) for row in rows if row.get(key)} for rows in (first, second))
        if left != right and left and right:
            raise UserError(
                f"{task}: {key} is {', '.join(sorted(left))} for {names[0]} but "
                f"{', '.join(sorted(right))} for {names[1]}; measure both alike to compare them"
            )


def _unpaired(
    task: str,
    left: Mapping[tuple[str, int], Mapping[str, Any]],
    right: Mapping[tuple[str, int], Mapping[str, Any]],
    *,
    names: tuple[str, str],
) -> str:
    parts = []
    for name, own, other in ((names[0], left, right), (names[1], right, left)):
        only = [
            str(row["id"] if task == REPETITION else row["doc_id"])
            for key, row in own.items()
            if key not in other
        ]
        if only:
            more = f" and {len(only) - _SHOWN} more" if len(only) > _SHOWN else ""
            parts.append(f"only {name} has {', '.join(only[:_SHOWN])}{more}")
    return (
        f"{task}: {names[0]} and {names[1]} were measured on different documents "
        f"({'; '.join(parts)}); measure both on the same ones to compare them, or "
        "name the tasks that can be compared (base_vs_chat.py --tasks)"
    )
