"""What trackers are told of a measure: one number a measure, by its place in scores.json."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from eval.metrics.stats import BITS_PER_BYTE
from sft.run.stage_folders import STAGE_FOLDERS
from sft.run.trackers import Trackers
from sft.training.eval_callbacks import FILE, read_rows

NUMBERS = ("score", "rate", BITS_PER_BYTE)


def figures(entry: Mapping[str, Any], name: str) -> dict[str, float]:
    """`{"repetition": {"rate": 0.1, "n": 9}}` is `{"NAME/repetition": 0.1}`."""
    return dict(_figures(entry, name))


def _figures(entry: Mapping[str, Any], name: str) -> Iterator[tuple[str, float]]:
    for number in NUMBERS:
        if number in entry:
            yield name, entry[number]
            return
    for key, inner in entry.items():
        if isinstance(inner, dict):
            yield from _figures(inner, f"{name}/{key}")


def tell_measures(
    trackers: Trackers, model: str, scores: Mapping[str, Any], *, folder: Path
) -> None:
    """A model's scores.json, and the rows of its epochs.jsonl if there is one."""
    if model in STAGE_FOLDERS:
        for row in read_rows(folder / STAGE_FOLDERS[model] / FILE):
            trackers.tell(model, figures(row, "epoch"), step=row["step"])
    trackers.tell(model, figures(scores, "eval"))


def tell_deltas(trackers: Trackers, results: Mapping[str, Any]) -> None:
    """The `deltas` of results.json, each as a figure of the model that it leads to."""
    deltas = [*results["deltas"], *results.get("language", {}).get("deltas", [])]
    for model in results["models"]:
        own = {
            f"delta/{d['task']}/from {d['from']}": d["delta"] for d in deltas if d["to"] == model
        }
        if own:
            trackers.tell(model, own)
