"""The table of all models of a run: measures joined, compared in pairs, written and reported."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eval.measures.in_training import rows_in_training
from eval.metrics.paired_comparison import REPETITION, delta_table
from eval.report.report import write_report
from eval.results.same_format import same_format
from sft.errors import UserError
from sft.run.stage_cache import Stage
from sft.run.stage_folders import DECISIONS, stage_facts
from sft.system.atomic_files import read_json, read_jsonl, read_record, write_json
from sft.training.eval_callbacks import EPOCHS_FILE, LOOPS_FILE

log = logging.getLogger(__name__)


def write_results(folder: Path, models: list[str], *, only: Sequence[str] = ()) -> dict[str, Any]:
    """Join what was measured into results.json, report.html and report.md; returns the results.

    Args:
        models: names under eval/, in the order of the chain.
        only: the tasks that count; all where it names none.

    Raises:
        UserError: one of `only` was not measured, or two models cannot be compared.
    """
    scores = {name: read_json(folder / "eval" / name / "scores.json") for name in models}
    results: dict[str, Any] = {
        "models": models,
        "repetition": {n: s["repetition"] for n, s in scores.items() if "repetition" in s},
        "benchmarks": _by_task(scores, "benchmarks", only),
    }
    language = _by_task(scores, "language", only)
    for task in only:
        if task not in results["benchmarks"] and task not in language:
            known = [*_by_task(scores, "benchmarks"), *_by_task(scores, "language")]
            raise UserError(
                f"task {task} was not measured for any of {', '.join(models)}; they have "
                f"{', '.join(known) or 'none'}"
            )
    for key in ("repetition_detail", "safety"):
        if found := {n: s[key] for n, s in scores.items() if key in s}:
            results[key] = found
    samples: dict[str, dict[str, Any]] = {}
    if results["repetition"]:
        files = {
            name: folder / "eval" / name / "generations.jsonl" for name in results["repetition"]
        }
        samples[REPETITION] = {name: read_jsonl(file) for name, file in files.items()}
    samples = _of_all(samples | _samples(folder, results["benchmarks"]), models)
    texts = _of_all(_samples(folder, language), models)
    entries = results["benchmarks"] | language
    deltas = delta_table(samples | texts, models=models, entries=entries)  # Holm runs over both
    results["deltas"] = [row for row in deltas if row["task"] not in texts]
    if language:
        in_bits = [row for row in deltas if row["task"] in texts]
        results["language"] = {"benchmarks": language, "deltas": in_bits}
    for form in scores[models[0]].get("same_format", {}):
        if any(form not in own.get("same_format", {}) for own in scores.values()):
            continue  # measured before, elsewhere, and not in this format
        others = {name: s["same_format"][form] for name, s in scores.items()}
        section = same_format(
            form, results["benchmarks"], others, samples, folder=folder, models=models
        )
        results.setdefault("same_format", {})[form] = section
    if alike := _same_weights(folder, models):
        results["same_weights"] = alike
    results["stages"] = stage_facts(folder)
    for key, file in (("epochs", EPOCHS_FILE), ("loops", LOOPS_FILE)):
        if rows := rows_in_training(folder, file):
            results[key] = rows
    if decisions := read_json(folder / "decisions.json"):
        results["decisions"] = decisions
    write_json(folder / "results.json", results)
    decided = [DECISIONS] * (folder / DECISIONS).is_file()
    Stage(folder, {}).finish(outputs=["results.json", *decided], facts={})
    write_report(folder)
    return results


def _same_weights(folder: Path, models: Sequence[str]) -> list[list[str]]:
    """The models that were measured on equal weights, where there are such."""
    found: dict[str, list[str]] = {}
    for name in models:
        done = read_record(folder / "eval" / name / "done.json", "inputs")
        if done is not None and (weights := done["inputs"].get("weights")):
            found.setdefault(weights, []).append(name)
    return [names for names in found.values() if len(names) > 1]


def _by_task(
    scores: dict[str, Any], place: str, only: Sequence[str] = ()
) -> dict[str, dict[str, Any]]:
    """Entries of one part of every model's scores.json: task, then model."""
    table: dict[str, dict[str, Any]] = {}
    for name, own in scores.items():
        for task, entry in own.get(place, {}).items():
            if only and task not in only:
                continue
            table.setdefault(task, {})[name] = entry
    return table


def _of_all(samples: dict[str, dict[str, Any]], models: list[str]) -> dict[str, dict[str, Any]]:
    """The tasks that every model was measured on; what is left out is said."""
    for task, own in samples.items():
        if len(own) < len(models):
            log.warning("%s: measured for %s alone, so not compared", task, ", ".join(own))
    return {task: own for task, own in samples.items() if len(own) == len(models)}


def _samples(folder: Path, table: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The stored rows behind a table: task, then model."""
    return {
        task: {
            name: read_jsonl(folder / "eval" / name / "samples" / f"{task}.jsonl")
            for name in entries
        }
        for task, entries in table.items()
    }
