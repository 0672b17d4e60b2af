"""Checks of lm-eval's files: types of values, names and links."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from eval.metrics.stats import BITS_PER_BYTE
from sft.data.json_values import find_lone_surrogate, is_too_deep
from sft.errors import UserError
from sft.system.atomic_files import is_inside, is_plain_name, read_json


def read_results(path: Path, task: str) -> dict[str, Any]:
    """Read a results file of lm-eval; the keys that are used here have checked types.

    Raises:
        UserError: a type differs, or the file is damaged.
    """
    found = read_json(path)
    if not isinstance(found, dict):
        raise UserError(f"{path}: not results of lm-eval; fetch the file again or remove it")
    results = {key: value for key, value in found.items() if value is not None}
    tables = ("n-shot", "config", "configs", "group_subtasks", "versions")
    texts = ("model_source", "model_name", "model_name_sanitized")
    wrong = [key for key in tables if not isinstance(results.get(key, {}), dict)]
    wrong += [key for key in texts if not isinstance(results.get(key, ""), str)]
    if not wrong:
        config = results.get("configs", {}).get(task, {})
        metrics = config.get("metric_list", []) if isinstance(config, dict) else None
        if not isinstance(metrics, list) or not all(
            isinstance(one, dict) and isinstance(one.get("metric"), str) for one in metrics
        ):
            wrong.append(f"configs.{task}")
        shots = results.get("n-shot", {}).get(task)
        if shots is not None and type(shots) is not int:
            wrong.append(f"n-shot.{task}")
        groups = results.get("group_subtasks", {}).values()
        if not all(isinstance(group, list) and all(map(_is_text, group)) for group in groups):
            wrong.append("group_subtasks")
        if not _is_text(results.get("config", {}).get("model_sha") or ""):
            wrong.append("config.model_sha")
    if not wrong and is_too_deep(results):
        wrong.append("its depth")
    if wrong or (place := find_lone_surrogate(results)):
        raise UserError(
            f"{path}: {wrong[0] if wrong else place} is not as lm-eval writes it; fetch the file "
            "again or remove it"
        )
    return results


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def wrong_field(line: Mapping[str, Any]) -> str | None:
    """Return the first field of a sample whose type differs from lm-eval's."""
    if is_too_deep(line):
        return "its depth"
    arguments, answers, metrics = (line[k] for k in ("arguments", "filtered_resps", "metrics"))
    pair = line.get(BITS_PER_BYTE)
    right = {
        "doc_id": isinstance(line["doc_id"], int | str),
        "doc_hash": isinstance(line["doc_hash"], str),
        "filter": isinstance(line["filter"], str),
        "metrics": isinstance(metrics, list) and all(map(_is_text, metrics)),
        "arguments": isinstance(arguments, dict)
        and len(arguments) > 0
        and all(isinstance(given, dict) and given for given in arguments.values()),
        "filtered_resps": isinstance(answers, list) and len(answers) > 0,
        BITS_PER_BYTE: not isinstance(pair, list) or _are_bits(pair),
    }
    return next((name for name, fits in right.items() if not fits), None)


def _are_bits(pair: list[Any]) -> bool:
    """Return whether this is a log-probability and a number of bytes."""
    numbers = len(pair) == 2 and all(type(one) in (int, float) for one in pair)
    return numbers and all(abs(one) < 1e15 for one in pair) and pair[1] > 0


def plain_name(name: str, file: Path) -> str:
    """Check that the name of a model or task can be a file's name, and return it."""
    if not is_plain_name(name):
        raise UserError(f"{file}: {name!r} is no name for a file; measure it again")
    return name


def refuse_link(file: Path, folder: Path) -> None:
    """Check that a file from outside does not link to a place outside of its folder."""
    if not is_inside(file, folder):
        raise UserError(f"{file} is a link that leads out of {folder}; put what it leads to there")
