"""The same-format comparison: what of a change is the model's, and what the question's form.

The protocol asks the base model with examples as plain text and the chat models in their template,
so that a delta holds the change of format too. Here every model is asked in one format.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eval.metrics.paired_comparison import StoredRows, adjust, compare, delta_table
from sft.system.atomic_files import read_jsonl

Table = Mapping[str, Mapping[str, Any]]


def same_format(
    form: str,
    protocol: Table,
    others: Mapping[str, Mapping[str, Any]],
    samples: Mapping[str, Mapping[str, StoredRows]],
    *,
    folder: Path,
    models: Sequence[str],
) -> dict[str, Any]:
    """One section of results.json `same_format`.

    Args:
        form: plain or chat, the format that all were asked in.
        protocol: entries of the protocol by task and model; stands for a model that the protocol
            asks in this format.
        others: entries by model and task of those that were asked in it beside the protocol.
        samples: stored rows of the protocol by task and model.

    Returns:
        benchmarks: entries in this format by task and model, as the contract's.
        deltas: changes between models in this format, as the contract's; Holm over these.
        formats: a row for each task and model of `others`, its score in the protocol minus that
            in this format: what the format alone changes; Holm over these.
    """
    asked = {
        task: {
            name: read_jsonl(_file(folder, name, form, task))
            for name in models
            if task in others[name]
        }
        for task in protocol
    }
    tasks = {task: dict(samples[task]) | own for task, own in asked.items()}
    alone = [(name, task) for task, own in asked.items() for name in own]
    entries = {
        task: {name: others[name].get(task, own[name]) for name in models}
        for task, own in protocol.items()
    }
    shares = [
        compare(
            *(task, asked[task][name], samples[task][name]),
            names=(f"{name} ({form})", name),
            left_out=tuple(e[task][name].get("left_out", 0) for e in (entries, protocol)),
        )
        for name, task in alone
    ]
    return {
        "benchmarks": entries,
        "deltas": delta_table(tasks, models=models, entries=entries),
        "formats": [
            {"task": row.pop("task"), "model": name, "from": form, "to": "protocol", **row}
            for (name, _), row in zip(alone, adjust(shares), strict=True)
        ],
    }


def _file(folder: Path, model: str, form: str, task: str) -> Path:
    return folder / "eval" / model / f"samples-{form}" / f"{task}.jsonl"
