"""Import of measures of another run or of lm-eval's logs, as a model to compare.

With `--log_samples` lm-eval writes samples_<task>_<date>.jsonl, one line for each document and
filter, and results_<date>.json with the versions, templates, shots and groups of the tasks
(lm_eval/loggers/evaluation_tracker.py).
"""

import json
import logging
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.backends.base import BACKEND, TRANSFORMERS, check_one_backend
from eval.graders.math_answers import grade
from eval.metrics.stats import BITS_PER_BYTE
from eval.report.sample_files import MORE_SAMPLES, read_lines
from eval.results.external_checks import plain_name, read_results, refuse_link, wrong_field
from eval.schema import GenerationRow, ScoredRow, ScoredTasks, Scores, TextRow
from eval.schema_checks import first_mismatch
from eval.tasks.benchmark import scores_key, summarize
from eval.tasks.sample_rows import (
    CHOICE_METRICS,
    MATH_EQUAL,
    MUTUAL,
    choice_values,
    cluster_of,
    template_id,
)
from sft.chat_template.render import PATIENCE, TEMPLATE_ERRORS
from sft.config.sections import EvalSection, TaskOptions
from sft.data.json_values import find_lone_surrogate
from sft.errors import UserError
from sft.run.stage_cache import Stage, verified_record, verified_results
from sft.system.atomic_files import (
    iter_jsonl,
    read_file,
    read_json,
    read_record,
    remove,
    write_json,
    write_jsonl,
    writing,
)
from sft.system.time_limit import cpu_seconds

log = logging.getLogger(__name__)

_NAME = re.compile(r"samples_(?P<task>.+)_(?P<date>\d{4}-\d\d-\d\dT[\d.-]+)\.jsonl")
_NEEDED = ("doc_id", "doc_hash", "filter", "metrics", "arguments", "filtered_resps")
# lm-eval's names of backends that are also ours (lm_eval/models/__init__.py).
_BACKENDS = {**dict.fromkeys(("hf", "hf-auto", "huggingface"), TRANSFORMERS), "vllm": "vllm"}


def import_measures(path: Path, folder: Path, *, section: EvalSection) -> str | None:
    """Write the measures in `path` to `folder`; return the backend that measured, if known.

    Args:
        path: a run (its last model), eval/<model> of a run, a file samples_*.jsonl, or a folder
            with such files, of which the newest of each task is read.
        section: `per_task` sets the metric and the filter of a task; by default its first.

    Raises:
        UserError: there are no measures, a line is not lm-eval's, a file is a link that leads out
            of `path`, or the logs are of two models or backends.
    """
    own = _own_folder(path)
    samples = {} if own else _newest(path)
    if not own and not samples:
        raise UserError(
            f"{path} holds nothing measured; give a run, eval/<model> of a run, or the folder "
            "where lm-eval wrote samples_*.jsonl (it does so with --log_samples)"
        )
    done = read_record(folder / "done.json", "facts")
    if done is not None and not done["facts"].get("imported"):
        raise UserError(
            f"{folder} holds a model measured here; give {path} another name, NAME=PATH"
        )
    folder.mkdir(parents=True, exist_ok=True)
    remove(folder / "done.json")
    backend, files = _copy(own, folder) if own else _convert(samples, folder, section)
    Stage(folder, {}).finish(outputs=["scores.json", *files], facts={"imported": True})
    return backend


def _convert(
    samples: Mapping[str, "_Samples"], folder: Path, section: EvalSection
) -> tuple[str | None, list[str]]:
    """Write the measures of lm-eval's logs; return their backend and the sample files."""
    backend = _backend_of(samples)
    scores: dict[str, Any] = {"benchmarks": {}}
    if backend != TRANSFORMERS:
        scores[BACKEND] = backend
    files = []
    (folder / "samples").mkdir(exist_ok=True)
    for name, logs in _grouped(samples).items():
        plain_name(name, logs[0].path)
        rows = [row for log in logs for row in _rows(log, section, pooled=len(logs) > 1)]
        entry = summarize(rows) | logs[0].format
        scores.setdefault(scores_key(entry), {})[name] = entry
        files.append(f"samples/{name}.jsonl")
        write_jsonl(folder / files[-1], rows)
    write_json(folder / "scores.json", scores)
    return backend, files


@dataclass(frozen=True)
class _Samples:
    """One samples file of lm-eval, with the results file of its run."""

    path: Path
    task: str
    date: str
    results: Mapping[str, Any]

    @property
    def format(self) -> dict[str, Any]:
        return {
            "shots": self.results.get("n-shot", {}).get(self.task),
            "chat_template": bool(self.results.get("chat_template")),
        }

    @property
    def source(self) -> str:
        return self.results.get("model_source") or ""

    @property
    def model(self) -> str | None:
        """The model's name and, if recorded, its commit; None without results."""
        name = self.results.get("model_name") or self.results.get("model_name_sanitized")
        commit = (self.results.get("config") or {}).get("model_sha")
        return f"{name} at {commit}" if name and commit else name


def _own_folder(path: Path) -> Path | None:
    """Return `path` if it is eval/<model> of a run, eval/<last model> if it is a run, or None."""
    refuse_link(path / "results.json", path)
    results = verified_results(path) if (path / "results.json").is_file() else None
    if isinstance(results, dict) and isinstance(results.get("models"), list):
        run, last = path, plain_name(str(results["models"][-1]), path / "results.json")
        path = run / "eval" / last
        refuse_link(path, run)
    return path if (path / "scores.json").is_file() else None


def _refuse_two_models(path: Path, samples: Sequence[_Samples]) -> None:
    """Check that all logs are of one model."""
    # A file without results counts as of the model of its folder, or of one of the folder's name.
    known = {file.path.parent: file.model for file in samples if file.model}
    places: dict[str, Path] = {}
    for file in samples:
        folder = file.path.parent
        places.setdefault(file.model or known.get(folder) or folder.name, folder)
    if len(places) > 1:
        (first, one), (second, other) = list(places.items())[:2]
        remedy = (
            f"name one of their folders, {one} or {other}"
            if one != other
            else "move the files of one to another folder"
        )
        raise UserError(
            f"{path} holds lm-eval's logs of two models, {first} and {second}; {remedy}"
        )


def _backend_of(samples: Mapping[str, _Samples]) -> str | None:
    """Return the backend of all samples; None where it is unknown or not one of ours."""
    backends = {task: _BACKENDS.get(file.source) for task, file in samples.items()}
    check_one_backend(backends)
    for task, file in samples.items():
        if file.source and backends[task] is None:
            log.warning(
                "%s: measured by lm-eval's %s, whose rounding may cause differences",
                *(file.path, file.source),
            )
    return next((known for known in backends.values() if known), None)


def _copy(source: Path, folder: Path) -> tuple[str | None, list[str]]:
    """Copy the measures of another run; return their backend and the sample files."""
    refuse_link(source / "scores.json", source)
    if os.path.lexists(source / "done.json"):
        verified_record(source)
    else:
        log.warning(
            "%s has no done.json, the record of its hashes: its measuring was interrupted, or it "
            "was imported by an earlier version; it is read unverified",
            source,
        )
    scores = read_json(source / "scores.json")
    _refuse_misfit(scores, ScoredTasks, source)
    files: dict[str, Any] = {}  # with the schemas of their rows
    for place, schema in (("benchmarks", ScoredRow), ("language", TextRow)):
        for task in scores.get(place, {}):
            files[f"samples/{plain_name(task, source / 'scores.json')}.jsonl"] = schema
    more = [f"{name}.jsonl" for name in MORE_SAMPLES]
    files |= {name: dict for name in more if (source / name).is_file()}
    if "repetition" in scores:
        files["generations.jsonl"] = GenerationRow
    for name in files:
        refuse_link(source / name, source)
        if not (source / name).is_file():
            raise UserError(f"{source / name} is missing; measure that model again")
    _refuse_misfit(scores, Scores, source)
    for name, schema in files.items():
        for _ in read_lines(source / name, schema=schema):
            pass  # reading checks the rows
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        with writing(folder / name):
            (folder / name).write_bytes(read_file(source / name))
    write_json(folder / "scores.json", {k: v for k, v in scores.items() if k != "same_format"})
    return scores.get(BACKEND, TRANSFORMERS), list(files)


def _refuse_misfit(scores: Any, schema: Any, source: Path) -> None:
    """Check a scores.json against a schema of this version."""
    if found := first_mismatch(scores, schema) or find_lone_surrogate(scores):
        raise UserError(
            f"{source / 'scores.json'}: {found} is not as this version writes it; measure that "
            "model again"
        )


def _newest(path: Path) -> dict[str, _Samples]:
    """Return the newest samples of each task, which are all of one model."""
    found = []
    folder = path.parent if path.is_file() else path
    for file in [path] if path.is_file() else sorted(path.rglob("samples_*.jsonl")):
        if (match := _NAME.fullmatch(file.name)) is not None:
            logs = sorted(file.parent.glob(f"*_{match['date']}.json"))
            for each in [*logs[:1], *([file] if file != path else [])]:
                refuse_link(each, folder)
            results = read_results(logs[0], match["task"]) if logs else {}
            found.append(_Samples(file, match["task"], match["date"], results))
    _refuse_two_models(path, found)
    newest = {one.task: one for one in sorted(found, key=lambda one: (one.date, one.path))}
    for one in newest.values():
        if not one.results:
            log.warning(
                "%s: no results_%s.json next to it, so its version is unknown", one.path, one.date
            )
    return dict(sorted(newest.items()))


def _grouped(samples: Mapping[str, _Samples]) -> dict[str, list[_Samples]]:
    """Group the files by the outermost group of their task, or by the task."""
    table: dict[str, list[_Samples]] = {}
    for task, file in samples.items():
        name = task
        groups = {
            child: group
            for group, children in file.results.get("group_subtasks", {}).items()
            for child in children
        }
        while name in groups:
            name = groups.pop(name)  # popped, since a group may contain itself
        table.setdefault(name, []).append(file)
    return table


def _rows(file: _Samples, section: EvalSection, *, pooled: bool) -> list[dict[str, Any]]:
    """Convert the lines of one filter and metric to rows of `eval.tasks.sample_rows`."""
    own = section.per_task.get(file.task, TaskOptions())
    lines = _lines(file.path)
    chosen = own.filter or lines[0]["filter"]
    config = file.results.get("configs", {}).get(file.task)
    version = file.results.get("versions", {}).get(file.task)
    identity = {
        "version": None if version is None else str(version),
        "template": template_id(config) if config else None,
    }
    rows = []
    for line in lines:
        if line["filter"] == chosen:
            row = _row(file, line, metric=own.metric) | identity
            rows.append(row | ({"doc_id": f"{file.task}/{row['doc_id']}"} if pooled else {}))
    if not rows:
        filters = ", ".join(dict.fromkeys(line["filter"] for line in lines))
        raise UserError(f"{file.path} has no filter {chosen!r}; it has {filters}")
    return rows


def _lines(path: Path) -> list[dict[str, Any]]:
    lines = []
    for number, line in iter_jsonl(path, remedy="fetch it again"):
        if lacking := [key for key in _NEEDED if key not in line]:
            raise UserError(
                f"{path}:{number}: not a sample of lm-eval 0.4.3 or newer (it lacks "
                f"{', '.join(lacking)}); log the samples again"
            )
        if wrong := wrong_field(line):
            raise UserError(
                f"{path}:{number}: {wrong} is not as lm-eval writes it; log the samples again"
            )
        if find_lone_surrogate(line):  # half a surrogate pair, which a file in UTF-8 cannot hold
            line = json.loads(json.dumps(line, ensure_ascii=False).encode("utf-8", "replace"))
        lines.append(line)
    if not lines:
        raise UserError(f"{path}: is empty; log the samples again")
    return lines


def _row(file: _Samples, line: Mapping[str, Any], *, metric: str | None) -> dict[str, Any]:
    arguments = [list(given.values()) for given in line["arguments"].values()]
    config = file.results.get("configs", {}).get(file.task, {})
    row = {
        "doc_id": str(line["doc_id"]),
        "doc_hash": line["doc_hash"],
        "prompt": str(arguments[0][0]),
        "cluster": _passage(config, line.get("doc")),
        "filter": line["filter"],
        "target": str(line.get("target")),
    }
    pair = line.get(BITS_PER_BYTE)
    if isinstance(pair, list) and metric in (None, BITS_PER_BYTE):
        log_prob, size = float(pair[0]), int(pair[1])
        return row | {"metric": BITS_PER_BYTE, "log_prob": log_prob, "bytes": size}
    listed = [entry["metric"] for entry in config.get("metric_list", [])]
    for name in [metric] if metric else [*listed, *line["metrics"]]:
        value = line.get(name)
        if name == MATH_EQUAL and value is None and isinstance(line["filtered_resps"][0], str):
            value = grade(line["filtered_resps"][0], line.get("target"))
        if isinstance(value, int | float) and 0 <= value <= 1:
            answer = _answer(name, line, arguments)
            return row | {"metric": name, "score": float(value), "answer": answer}
    raise UserError(
        f"{file.path}: document {line['doc_id']} has no {metric or 'metric'} in [0, 1]; it has "
        f"{', '.join(line['metrics'])}"
    )


def _passage(config: Mapping[str, Any], doc: Any) -> str | None:
    """Return the cluster of a document, if the task's file has our `metadata.cluster`."""
    metadata = config.get("metadata")
    if not isinstance(metadata, dict) or not isinstance(doc, dict) or "cluster" not in metadata:
        return None
    try:
        with cpu_seconds(PATIENCE):
            return cluster_of(str(metadata["cluster"]), doc)
    except TEMPLATE_ERRORS as error:
        raise UserError(
            f"metadata.cluster {metadata['cluster']!r} of lm-eval's results cannot be read of a "
            f"document ({' '.join(str(error).split())[:120]}); log the samples again"
        ) from None


def _answer(metric: str, line: Mapping[str, Any], arguments: Sequence[Sequence[Any]]) -> str:
    """Return the model's choice or text; lm-eval stores log-probabilities as text."""
    answers = line["filtered_resps"]
    if metric not in CHOICE_METRICS or not isinstance(answers[0], list) or len(answers) < 2:
        return str(answers[0])
    # With acc_mutual_info the log-probabilities without the context follow.
    count = len(answers) // (2 if MUTUAL in line["metrics"] else 1)
    try:
        logs = [float(answer[0]) for answer in answers]
        row: dict[str, Any] = {
            "choices": [str(given[1]).strip() for given in arguments[:count]],
            "log_probs": logs[:count],
            "bare_log_probs": logs[count:],
        }
        values = choice_values(metric, row)
        return str(row["choices"][values.index(max(values))])
    except (TypeError, ValueError, LookupError, ArithmeticError):  # not multiple choice
        return str(answers[0])
