"""Results of a run: the measures of all models, compared in pairs and written with a report."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eval.measures.in_training import rows_in_training
from eval.metrics.paired_comparison import REPETITION, delta_table
from eval.report.report import write_report
from eval.results.same_format_comparison import same_format
from sft.errors import UserError
from sft.run.stage_cache import Stage
from sft.run.stage_folders import DECISIONS, stage_facts
from sft.system.atomic_files import read_json, read_jsonl, read_record, write_json
from sft.training.eval_callbacks import EPOCHS_FILE, LOOPS_FILE

log = logging.getLogger(__name__)


def write_results(folder: Path, models: list[str], *, only: Sequence[str] = ()) -> dict[str, Any]:
    """Write results.json, report.html and report.md from the measures; return the results.

    Args:
        models: names under eval/, in the order of the chain.
        only: tasks to include; all if empty.

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
    if missing := [task for task in only if task not in results["benchmarks"] | language]:
        known = [*_by_task(scores, "benchmarks"), *_by_task(scores, "language")]
        raise UserError(
            f"task {missing[0]} was not measured for any of {', '.join(models)}; they have "
            f"{', '.join(known) or 'none'}"
        )
    for key in ("repetition_detail", "safety"):
        if found := {n: s[key] for n, s in scores.items() if key in s}:
            results[key] = found
    answers = {
        name: read_jsonl(folder / "eval" / name / "generations.jsonl")
        for name in results["repetition"]
    }
    samples = {REPETITION: answers} if answers else {}
    samples = _complete(samples | _samples(folder, results["benchmarks"]), models)
    texts = _complete(_samples(folder, language), models)
    entries = results["benchmarks"] | language
    # One table, so that Holm's correction covers scores and bits.
    deltas = delta_table(samples | texts, models=models, entries=entries)
    results["deltas"] = [row for row in deltas if row["task"] not in texts]
    if language:
        in_bits = [row for row in deltas if row["task"] in texts]
        results["language"] = {"benchmarks": language, "deltas": in_bits}
    for form in scores[models[0]].get("same_format", {}):
        if any(form not in own.get("same_format", {}) for own in scores.values()):
            continue  # an imported model was not measured in this format
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
    """Return groups of models with equal weights."""
    found: dict[str, list[str]] = {}
    for name in models:
        done = read_record(folder / "eval" / name / "done.json", "inputs")
        if done is not None and (weights := done["inputs"].get("weights")):
            found.setdefault(weights, []).append(name)
    return [names for names in found.values() if len(names) > 1]


def _by_task(
    scores: dict[str, Any], place: str, only: Sequence[str] = ()
) -> dict[str, dict[str, Any]]:
    """Return the entries of one key of every scores.json by task and model."""
    table: dict[str, dict[str, Any]] = {}
    for name, own in scores.items():
        for task, entry in own.get(place, {}).items():
            if not only or task in only:
                table.setdefault(task, {})[name] = entry
    return table


def _complete(samples: dict[str, dict[str, Any]], models: list[str]) -> dict[str, dict[str, Any]]:
    """Return the tasks that every model was measured on; warn of the others."""
    for task, own in samples.items():
        if len(own) < len(models):
            log.warning("%s: measured for %s only, so not compared", task, ", ".join(own))
    return {task: own for task, own in samples.items() if len(own) == len(models)}


def _samples(folder: Path, table: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Read the stored rows of a table by task and model."""
    return {
        task: {
            name: read_jsonl(folder / "eval" / name / "samples" / f"{task}.jsonl")
            for name in entries
        }
        for task, entries in table.items()
    }
