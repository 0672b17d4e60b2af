"""From a sample of lm-eval to a stored row: one verdict a document, and what it rests on.

Metrics of multiple choice are normalisations of log-probabilities: `acc` none, `acc_norm` by
characters, `acc_bytes` by bytes, `acc_mutual_info` by the choice without its context, as in lm-eval
(api/task.py); `acc_per_token` by tokens, the paper's length normalisation (perplexity of each
option, arXiv 2401.02954, section 5.1), which lm-eval lacks. `math_equal` is for written answers to
questions of mathematics, see `eval.graders.math_answers`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from inspect import getsource
from typing import Any

import numpy as np
from lm_eval.api.registry import register_metric
from lm_eval.api.task import Task
from lm_eval.utils import apply_template

from eval.graders import math_answers
from eval.metrics.loop_detection import find_loop
from eval.metrics.stats import BITS_PER_BYTE
from eval.tasks.lm_eval_model import Engine
from sft.errors import UserError
from sft.run.fingerprint import fingerprint

PER_TOKEN = "acc_per_token"
MUTUAL = "acc_mutual_info"
CHOICE_METRICS = ("acc", "acc_norm", "acc_bytes", MUTUAL, PER_TOKEN)
MATH_EQUAL = "math_equal"

# What decides what a model is asked and how its answer is judged; a change makes another task.
_TEMPLATE = (
    *("output_type", "description", "doc_to_text", "doc_to_choice", "doc_to_target"),
    *("target_delimiter", "gen_prefix", "process_results", "generation_kwargs", "filter_list"),
)


@register_metric(  # type: ignore[untyped-decorator]
    metric=PER_TOKEN, higher_is_better=True, output_type="multiple_choice", aggregation="mean"
)
def _passed_through(items: Any) -> Any:
    """A metric by name, so that task files can list it; `_choice_row` computes it."""
    return items


@register_metric(  # type: ignore[untyped-decorator]
    metric=MATH_EQUAL, higher_is_better=True, output_type="generate_until", aggregation="mean"
)
def _math_equal(references: Sequence[str], predictions: Sequence[str]) -> float:
    """For task files that list it; lm-eval gives one answer with one target."""
    return math_answers.grade(predictions[0], references[0])


@dataclass(frozen=True)
class Judged:
    """How one task's samples are judged: its metric, its filter, and the task's own identity.

    `bare` where the metric needs log-probabilities that lm-eval does not ask for this task.
    """

    name: str
    bare: bool
    metric: str | None
    filter: str | None
    version: str
    template: str

    @classmethod
    def of(cls, task: Task, *, metric: str | None, filter: str | None) -> "Judged":  # noqa: A002
        """The metric and filter asked for, or the task's first.

        Raises:
            UserError: the task has no such metric or filter.
        """
        name = task.get_config("task")  # task_name draws from Python's generator
        listed = [m["metric"] for m in task.get_config("metric_list") or []]
        offered = [given for given in listed if isinstance(given, str)]
        if task.OUTPUT_TYPE == "multiple_choice":
            offered += CHOICE_METRICS
        if task.OUTPUT_TYPE == "generate_until":
            offered.append(MATH_EQUAL)
        filters = [f["name"] for f in task.get_config("filter_list") or [{"name": "none"}]]
        for key, wanted, known in (("metric", metric, offered), ("filter", filter, filters)):
            if wanted is not None and wanted not in known:
                raise UserError(
                    f"eval.per_task.{name}.{key}={wanted} is not one that the task has; "
                    f"it has {', '.join(dict.fromkeys(known))}"
                )
        if metric is None and offered and offered[0] in CHOICE_METRICS:
            metric = offered[0] if task.OUTPUT_TYPE == "multiple_choice" else None
        config = {key: task.get_config(key) for key in _TEMPLATE}
        bare = metric == MUTUAL and MUTUAL not in listed
        return cls(name, bare, metric, filter or filters[0], str(task.VERSION), template_id(config))


def template_id(config: Mapping[str, Any]) -> str:
    """A short hash of what a task asks and how it judges; of a Task's config or lm-eval's record.

    lm-eval records functions as their source, so that they are hashed as that here.
    """
    parts = {key: config.get(key) for key in _TEMPLATE}
    source = {k: getsource(v) if callable(v) else v for k, v in parts.items() if v is not None}
    return fingerprint(source)[:12]


def stored_row(
    task: Task, sample: Mapping[str, Any], engine: Engine, *, judged: Judged
) -> dict[str, Any]:
    """A row of samples/<task>.jsonl: the contract's keys, and what the verdict rests on.

    Raises:
        UserError: the task has no metric in [0, 1] for each document.
    """
    doc = sample["doc"]
    row = {
        "doc_id": str(sample["doc_id"]),
        "doc_hash": sample["doc_hash"],
        "prompt": sample["arguments"][0][0],
        "cluster": cluster_of(cluster_key(task), doc),
        "filter": sample["filter"],
        "version": judged.version,
        "template": judged.template,
    }
    if task.OUTPUT_TYPE == "loglikelihood_rolling":
        return row | _text_row(sample)
    if task.OUTPUT_TYPE == "multiple_choice":
        return row | _choice_row(task, sample, engine, judged=judged)
    metric, score = _own_score(task, sample, judged=judged)
    where = (judged.name, sample["doc_id"])
    thinking = engine.thinking.get(where, "")
    if task.OUTPUT_TYPE == "generate_until":
        reason = engine.finish_reasons[where]
        filtered = str(sample["filtered_resps"][0])
        if metric == MATH_EQUAL:
            filtered = math_answers.final_answer(filtered)
        row |= {"finish_reason": reason, "filtered": filtered}
    # `outcome` is of a program, or of IFEval; `together` of a program alone.
    row |= {key: sample[key] for key in ("outcome", "together") if key in sample}
    answer = str(sample["resps"][0][0])
    if thinking:
        row["thinking"] = thinking
    written = (thinking + answer).rstrip("\ufffd")
    if row.get("finish_reason") == "cap" and (loop := find_loop(written)):
        row["loop"] = asdict(loop)  # in characters, of the thinking too
    return row | {"metric": metric, "score": score, "answer": answer} | _target(sample)


def cluster_key(task: Task) -> str | None:
    """What questions of one passage share: a field of the documents, or a template over them, where
    the task's file names it."""
    return (task.get_config("metadata") or {}).get("cluster")


def is_template(cluster: str) -> bool:
    """Whether `metadata.cluster` is a template over a document's fields, not one of them."""
    return "{{" in cluster


def cluster_of(cluster: str | None, doc: Mapping[str, Any]) -> str | None:
    """The value that a document shares with others; None where it has none."""
    if cluster is None:
        return None
    value = apply_template(cluster, doc) if is_template(cluster) else doc.get(cluster)
    return str(value) if value not in (None, "") else None


def _target(sample: Mapping[str, Any]) -> dict[str, str]:
    return {"target": str(sample["target"])}


def _text_row(sample: Mapping[str, Any]) -> dict[str, Any]:
    """A text whose log-probability was taken; `score` is its bits per byte."""
    text = sample["arguments"][0][0]
    log_prob, size = float(sample["resps"][0][0]), len(text.encode())
    bits = -log_prob / np.log(2) / max(size, 1)
    return {"metric": BITS_PER_BYTE, "score": bits, "log_prob": log_prob, "bytes": size}


def _own_score(task: Task, sample: Mapping[str, Any], *, judged: Judged) -> tuple[str, float]:
    """The metric asked for, else the task's first, with one value in [0, 1] for each document."""
    if judged.metric == MATH_EQUAL and MATH_EQUAL not in sample:
        answer = str(sample["filtered_resps"][0])
        return MATH_EQUAL, math_answers.grade(answer, sample["target"])
    listed = [entry["metric"] for entry in task.get_config("metric_list") or []]
    for name in [judged.metric] if judged.metric else [*listed, *sample["metrics"]]:
        value = sample.get(name) if isinstance(name, str) else None
        if isinstance(value, int | float | np.number) and 0 <= value <= 1:
            return name, float(value)
    raise UserError(
        f"task {judged.name} has no metric in [0, 1] for each document "
        f"({', '.join(sample['metrics'])}); leave it out"
    )


def _choice_row(
    task: Task, sample: Mapping[str, Any], engine: Engine, *, judged: Judged
) -> dict[str, Any]:
    """The choice that the metric takes, the right one, and what the metric weighs."""
    choices = [str(choice) for choice in task.doc_to_choice(sample["doc"])]
    count, metric = len(choices), judged.metric
    logs = [float(resp[0]) for resp in sample["filtered_resps"]]
    tokens = [engine.lengths[(judged.name, sample["doc_id"], i)] for i in range(count)]
    weighed: dict[str, Any] = {"choices": choices, "log_probs": logs[:count], "tokens": tokens}
    if metric == MUTUAL:
        continuations = [arguments[1] for arguments in sample["arguments"][:count]]
        weighed["bare_log_probs"] = logs[count:] or [engine.bare[text] for text in continuations]
    gold = task.doc_to_text(sample["doc"]) if task.multiple_input else sample["target"]
    listed = gold if isinstance(gold, list) else [gold]
    golds = [choices.index(g) if g in choices else g for g in listed]
    if metric is None or (metric in sample["metrics"] and metric != PER_TOKEN):
        metric, score = _own_score(task, sample, judged=judged)
        taken = int(np.argmax(choice_values(metric, weighed)))
    else:
        taken = int(np.argmax(choice_values(metric, weighed)))
        score = float(taken in golds)
    return weighed | {
        "metric": metric,
        "score": score,
        "answer": choices[taken],
        "target": " | ".join(choices[g] if isinstance(g, int) else str(g) for g in golds),
    }


def other_metrics(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Scores of stored rows of multiple choice by the other metrics of CHOICE_METRICS, as far as
    all rows hold what those weigh; empty for rows of another kind.

    An answer is right by the rows' own `target`, the right choices joined by " | ".
    """
    if not all("choices" in row and row.get("log_probs") for row in rows):
        return {}
    needs = {MUTUAL: "bare_log_probs", PER_TOKEN: "tokens"}
    found = {}
    for metric in CHOICE_METRICS:
        kept = all(needs.get(metric, "choices") in row for row in rows)
        if kept and any(row["metric"] != metric for row in rows):
            found[metric] = sum(_right_by(metric, row) for row in rows) / len(rows)
    return found


def _right_by(metric: str, row: Mapping[str, Any]) -> bool:
    taken = row["choices"][int(np.argmax(choice_values(metric, row)))]
    return taken == row["target"] or taken in row["target"].split(" | ")


def choice_values(metric: str, row: Mapping[str, Any]) -> list[float]:
    """What the metric compares, from a stored row's `choices`, `log_probs` and `tokens`."""
    logs: Sequence[float] = row["log_probs"]
    if metric == MUTUAL:
        return [log - bare for log, bare in zip(logs, row["bare_log_probs"], strict=True)]
    if metric == PER_TOKEN:
        return [log / size for log, size in zip(logs, row["tokens"], strict=True)]
    lengths: dict[str, Callable[[str], int]] = {
        "acc_norm": len,
        "acc_bytes": lambda choice: len(choice.encode()),
    }
    measure = lengths.get(metric)
    if measure is None:
        return list(logs)
    return [log / measure(choice) for log, choice in zip(logs, row["choices"], strict=True)]
