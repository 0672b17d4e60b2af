"""Values for trackers: one number for each measure, named by its place in scores.json."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from eval.metrics.stats import BITS_PER_BYTE
from sft.run.stage_folders import STAGE_FOLDERS
from sft.run.trackers import Trackers
from sft.training.eval_callbacks import EPOCHS_FILE, read_rows

NUMBERS = ("score", "rate", BITS_PER_BYTE)


def tracker_values(entry: Mapping[str, Any], name: str) -> dict[str, float]:
    """Return `{"NAME/repetition": 0.1}` for `{"repetition": {"rate": 0.1, "n": 9}}`."""
    for number in NUMBERS:
        if number in entry:
            return {name: entry[number]}
    values: dict[str, float] = {}
    for key, inner in entry.items():
        if isinstance(inner, dict):
            values |= tracker_values(inner, f"{name}/{key}")
    return values


def log_measures(
    trackers: Trackers, model: str, scores: Mapping[str, Any], *, folder: Path
) -> None:
    """Log a model's scores.json, and the rows of its epochs.jsonl if there is one."""
    if model in STAGE_FOLDERS:
        for row in read_rows(folder / STAGE_FOLDERS[model] / EPOCHS_FILE):
            trackers.log_values(model, tracker_values(row, "epoch"), step=row["step"])
    trackers.log_values(model, tracker_values(scores, "eval"))


def log_deltas(trackers: Trackers, results: Mapping[str, Any]) -> None:
    """Log the `deltas` of results.json, each as a value of its `to` model."""
    deltas = [*results["deltas"], *results.get("language", {}).get("deltas", [])]
    for model in results["models"]:
        own = {
            f"delta/{d['task']}/from {d['from']}": d["delta"] for d in deltas if d["to"] == model
        }
        if own:
            trackers.log_values(model, own)
