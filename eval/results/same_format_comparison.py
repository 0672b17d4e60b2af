"""Same-format comparison, which separates the change of a model from that of the format.

The protocol uses plain text with examples for the base model and the chat template for the others,
so its deltas contain the change of format. Here all models have the same format.
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
    """Compute one section of `same_format` in results.json.

    Args:
        form: plain or chat.
        protocol: entries of the protocol by task and model, used for models that have this format
            there.
        others: entries by model and task of models that have another format there.
        samples: stored rows of the protocol by task and model.

    Returns:
        benchmarks: entries in this format by task and model.
        deltas: changes between models in this format, with Holm's correction.
        formats: for each task and model of `others` its score in the protocol minus that in this
            format, with Holm's correction.
    """
    asked = {
        task: {
            name: read_jsonl(folder / "eval" / name / f"samples-{form}" / f"{task}.jsonl")
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
