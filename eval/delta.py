"""What a stage changed: two models' stored samples joined on the document, compared in pairs."""

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from eval.stats import compare_paired, holm
from sft.config import UserError

REPETITION = "repetition"
_SHOWN = 5

Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Delta:
    """One row of results.json `deltas`, but for the names of its two models."""

    task: str
    delta: float
    ci: tuple[float, float]
    p: float
    p_holm: float
    n: int
    test: str


def stage_pairs(models: Sequence[str]) -> list[tuple[str, str]]:
    """Consecutive models, then first -> last unless that is the only step."""
    pairs = list(itertools.pairwise(models))
    return pairs if len(models) <= 2 else [*pairs, (models[0], models[-1])]


def delta_table(
    samples: Mapping[str, Mapping[str, Rows]], *, models: Sequence[str]
) -> list[dict[str, Any]]:
    """The `deltas` of results.json: every task, consecutive models and first -> last.

    `samples[task][model]` are the stored rows: of eval/<model>/samples/<task>.jsonl, and of
    eval/<model>/generations.jsonl for the task "repetition". Holm runs across the whole table.
    Raises UserError where a model lacks a task or the documents of two models differ.
    """
    named: list[tuple[str, str, Delta]] = []
    for task, by_model in samples.items():
        for first, second in stage_pairs(models):
            for model in (first, second):
                if model not in by_model:
                    raise UserError(
                        f"{task}: no samples of model {model}, so {first} -> {second} cannot be "
                        f"paired; measure {model} on {task} or leave the task out"
                    )
            delta = compare(task, by_model[first], by_model[second], names=(first, second))
            named.append((first, second, delta))
    adjusted = holm([delta.p for _, _, delta in named])
    table = []
    for (first, second, delta), p_holm in zip(named, adjusted, strict=True):
        entry = asdict(replace(delta, p_holm=p_holm)) | {"ci": list(delta.ci)}
        table.append({"task": entry.pop("task"), "from": first, "to": second, **entry})
    return table


def compare(task: str, first: Rows, second: Rows, *, names: tuple[str, str]) -> Delta:
    """Paired difference second - first of one task's stored rows; p_holm is p until adjusted.

    Raises UserError when the two do not hold the same documents, metric or cap.
    """
    _same_measure(task, first, second, names=names)
    left, right = _by_document(task, first), _by_document(task, second)
    if left.keys() != right.keys():
        raise UserError(_unpaired(task, left, right, names=names))
    keys = list(left)
    clusters = [_cluster(left[key]) for key in keys]
    result = compare_paired(
        [_score(task, left[key]) for key in keys],
        [_score(task, right[key]) for key in keys],
        clusters=clusters if any(cluster[0] for cluster in clusters) else None,
    )
    return Delta(task, result.delta, result.ci, result.p, result.p, result.n, result.test)


def _by_document(task: str, rows: Rows) -> dict[tuple[str, int], Mapping[str, Any]]:
    """Rows by document and occurrence: a benchmark may hold the same document twice."""
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
    """The row's passage; a row without one is a cluster of its own."""
    name = row.get("cluster")
    return (False, str(row.get("doc_id"))) if name is None else (True, str(name))


def _same_measure(task: str, first: Rows, second: Rows, *, names: tuple[str, str]) -> None:
    """Refuse to compare numbers that were not measured alike."""
    key = "cap" if task == REPETITION else "metric"
    left, right = ({str(row[key]) for row in rows} for rows in (first, second))
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
        f"({'; '.join(parts)}); measure both on the same ones to compare them"
    )
