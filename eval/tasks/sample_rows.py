"""Convert a sample of lm-eval to a stored row: the score of a document and its evidence.

Metrics of multiple choice normalize log-probabilities: `acc` not at all, `acc_norm` by characters,
`acc_bytes` by bytes, `acc_mutual_info` by the choice without its context, as in lm-eval
(api/task.py); `acc_per_token` by tokens, the length normalization of the paper (perplexity of each
option, arXiv 2401.02954, section 5.1), which lm-eval lacks. `math_equal` grades generated answers
to mathematics, see `eval.graders.math_answers`; `rules` grades them by phrases and refusals, see
`eval.graders.rule_judge`.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from inspect import getsource
from typing import Any

import numpy as np
from lm_eval.api.registry import register_metric
from lm_eval.api.task import Task
from lm_eval.utils import apply_template

from eval.graders import math_answers
from eval.graders.rule_judge import follows, reference_error
from eval.metrics.loop_detection import find_loop
from eval.metrics.stats import BITS_PER_BYTE
from eval.tasks.lm_eval_model import LmEvalModel
from sft.errors import UserError
from sft.run.fingerprint import fingerprint

PER_TOKEN = "acc_per_token"
MUTUAL = "acc_mutual_info"
CHOICE_METRICS = ("acc", "acc_norm", "acc_bytes", MUTUAL, PER_TOKEN)
MATH_EQUAL = "math_equal"
RULES = "rules"

# Settings that determine prompts and grading; a change makes a different task.
_TEMPLATE = (
    *("output_type", "description", "doc_to_text", "doc_to_choice", "doc_to_target"),
    *("target_delimiter", "gen_prefix", "process_results", "generation_kwargs", "filter_list"),
)


@register_metric(  # type: ignore[untyped-decorator]
    metric=PER_TOKEN, higher_is_better=True, output_type="multiple_choice", aggregation="mean"
)
def _passed_through(items: Any) -> Any:
    """Register the metric name for task files; `_choice_row` computes it."""
    return items


@register_metric(  # type: ignore[untyped-decorator]
    metric=MATH_EQUAL, higher_is_better=True, output_type="generate_until", aggregation="mean"
)
def _math_equal(references: Sequence[str], predictions: Sequence[str]) -> float:
    """Compute `math_equal` for task files that list it; lm-eval passes one answer and target."""
    return math_answers.grade(predictions[0], references[0])


@register_metric(  # type: ignore[untyped-decorator]
    metric=RULES, higher_is_better=True, output_type="generate_until", aggregation="mean"
)
def _rules(references: Sequence[str], predictions: Sequence[str]) -> float:
    """Grade by `eval.graders.rule_judge.follows`; the target is its reference as JSON."""
    return follows(predictions[0], json.loads(references[0]))


def check_references(name: str, task: Task) -> None:
    """Check the targets of a task that lists `rules`.

    Raises:
        UserError: one is not a reference of `eval.graders.rule_judge.rule_judge` as JSON.
    """
    if not any(entry["metric"] == RULES for entry in task.get_config("metric_list") or []):
        return
    for number, document in enumerate(task.eval_docs, start=1):
        try:
            problem = reference_error(json.loads(task.doc_to_target(document)))
        except ValueError as error:
            problem = f"its target is not JSON ({error}); write {{{{reference | tojson}}}}"
        if problem:
            raise UserError(f"task {name}: document {number}: {problem}")


@dataclass(frozen=True)
class TaskScoring:
    """Metric and filter of a task, and the identity of the task.

    `bare`: the metric needs log-probabilities without context that lm-eval does not request.
    """

    name: str
    bare: bool
    metric: str | None
    filter: str | None
    version: str
    template: str

    @classmethod
    def of(cls, task: Task, *, metric: str | None, filter: str | None) -> "TaskScoring":  # noqa: A002
        """Return the given metric and filter, or the first ones of the task.

        Raises:
            UserError: the task has no such metric or filter.
        """
        name = task.get_config("task")  # task_name uses Python's global generator
        listed = [m["metric"] for m in task.get_config("metric_list") or []]
        metrics = [given for given in listed if isinstance(given, str)]
        if task.OUTPUT_TYPE == "multiple_choice":
            metrics += CHOICE_METRICS
        if task.OUTPUT_TYPE == "generate_until":
            metrics.append(MATH_EQUAL)
        filters = [f["name"] for f in task.get_config("filter_list") or [{"name": "none"}]]
        for key, value, known in (("metric", metric, metrics), ("filter", filter, filters)):
            if value is not None and value not in known:
                raise UserError(
                    f"eval.per_task.{name}.{key}={value} is not available for the task; "
                    f"it has {', '.join(dict.fromkeys(known))}"
                )
        if metric is None and metrics and metrics[0] in CHOICE_METRICS:
            metric = metrics[0] if task.OUTPUT_TYPE == "multiple_choice" else None
        config = {key: task.get_config(key) for key in _TEMPLATE}
        bare = metric == MUTUAL and MUTUAL not in listed
        return cls(name, bare, metric, filter or filters[0], str(task.VERSION), template_id(config))


def template_id(config: Mapping[str, Any]) -> str:
    """Return a short hash of the prompts and grading of a task.

    Args:
        config: of a Task, or recorded by lm-eval, which stores functions as their source.
    """
    parts = {key: config.get(key) for key in _TEMPLATE}
    source = {k: getsource(v) if callable(v) else v for k, v in parts.items() if v is not None}
    return fingerprint(source)[:12]


def stored_row(
    task: Task, sample: Mapping[str, Any], model: LmEvalModel, *, scoring: TaskScoring
) -> dict[str, Any]:
    """Return a row of samples/<task>.jsonl with the evidence of its score.

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
        "version": scoring.version,
        "template": scoring.template,
    }
    if task.OUTPUT_TYPE == "loglikelihood_rolling":
        return row | _text_row(sample)
    if task.OUTPUT_TYPE == "multiple_choice":
        return row | _choice_row(task, sample, model, scoring=scoring)
    metric, score = _own_score(task, sample, scoring=scoring)
    where = (scoring.name, sample["doc_id"])
    thinking = model.thinking.get(where, "")
    if task.OUTPUT_TYPE == "generate_until":
        reason = model.finish_reasons[where]
        filtered = str(sample["filtered_resps"][0])
        if metric == MATH_EQUAL:
            filtered = math_answers.final_answer(filtered)
        row |= {"finish_reason": reason, "filtered": filtered}
    # Programs and IFEval have `outcome`, only programs `together`.
    row |= {key: sample[key] for key in ("outcome", "together") if key in sample}
    answer = str(sample["resps"][0][0])
    if thinking:
        row["thinking"] = thinking
    written = (thinking + answer).rstrip("\ufffd")
    if row.get("finish_reason") == "cap" and (loop := find_loop(written)):
        row["loop"] = asdict(loop)  # in characters, including the reasoning
    target = str(sample["target"])
    return row | {"metric": metric, "score": score, "answer": answer, "target": target}


def cluster_key(task: Task) -> str | None:
    """Return `metadata.cluster` of a task: a field or template that dependent questions share."""
    return (task.get_config("metadata") or {}).get("cluster")


def is_template(cluster: str) -> bool:
    """Return whether `metadata.cluster` is a template and not a field."""
    return "{{" in cluster


def cluster_of(cluster: str | None, doc: Mapping[str, Any]) -> str | None:
    """Return the cluster of a document; None if it is independent."""
    if cluster is None:
        return None
    value = apply_template(cluster, doc) if is_template(cluster) else doc.get(cluster)
    return str(value) if value not in (None, "") else None


def _text_row(sample: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys of a language modeling row; `score` is bits per byte."""
    text = sample["arguments"][0][0]
    log_prob, size = float(sample["resps"][0][0]), len(text.encode())
    bits = -log_prob / np.log(2) / max(size, 1)
    return {"metric": BITS_PER_BYTE, "score": bits, "log_prob": log_prob, "bytes": size}


def _own_score(task: Task, sample: Mapping[str, Any], *, scoring: TaskScoring) -> tuple[str, float]:
    """Return the metric, or the first of the task with one value in [0, 1] per document."""
    if scoring.metric == MATH_EQUAL and MATH_EQUAL not in sample:
        answer = str(sample["filtered_resps"][0])
        return MATH_EQUAL, math_answers.grade(answer, sample["target"])
    listed = [entry["metric"] for entry in task.get_config("metric_list") or []]
    for name in [scoring.metric] if scoring.metric else [*listed, *sample["metrics"]]:
        value = sample.get(name) if isinstance(name, str) else None
        if isinstance(value, int | float | np.number) and 0 <= value <= 1:
            return name, float(value)
    raise UserError(
        f"task {scoring.name} has no metric in [0, 1] for each document "
        f"({', '.join(sample['metrics'])}); leave it out"
    )


def _choice_row(
    task: Task, sample: Mapping[str, Any], model: LmEvalModel, *, scoring: TaskScoring
) -> dict[str, Any]:
    """Return the selected and the correct choice, and the values that the metric compares."""
    choices = [str(choice) for choice in task.doc_to_choice(sample["doc"])]
    count, metric = len(choices), scoring.metric
    logs = [float(resp[0]) for resp in sample["filtered_resps"]]
    tokens = [model.lengths[(scoring.name, sample["doc_id"], i)] for i in range(count)]
    values: dict[str, Any] = {"choices": choices, "log_probs": logs[:count], "tokens": tokens}
    if metric == MUTUAL:
        continuations = [arguments[1] for arguments in sample["arguments"][:count]]
        values["bare_log_probs"] = logs[count:] or [model.bare[text] for text in continuations]
    gold = task.doc_to_text(sample["doc"]) if task.multiple_input else sample["target"]
    listed = gold if isinstance(gold, list) else [gold]
    golds = [choices.index(g) if g in choices else g for g in listed]
    score = None
    if metric is None or (metric in sample["metrics"] and metric != PER_TOKEN):
        metric, score = _own_score(task, sample, scoring=scoring)
    taken = int(np.argmax(choice_values(metric, values)))
    return values | {
        "metric": metric,
        "score": float(taken in golds) if score is None else score,
        "answer": choices[taken],
        "target": " | ".join(choices[g] if isinstance(g, int) else str(g) for g in golds),
    }


def other_metrics(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Score stored multiple-choice rows by the other metrics of CHOICE_METRICS whose values all
    rows have; empty for other rows.

    An answer is correct by `target` of the row, the correct choices joined by " | ".
    """
    if not all("choices" in row and row.get("log_probs") for row in rows):
        return {}
    needs = {MUTUAL: "bare_log_probs", PER_TOKEN: "tokens"}
    found = {}
    for metric in CHOICE_METRICS:
        kept = all(needs.get(metric, "choices") in row for row in rows)
        if kept and any(row["metric"] != metric for row in rows):
            found[metric] = sum(_is_correct(metric, row) for row in rows) / len(rows)
    return found


def _is_correct(metric: str, row: Mapping[str, Any]) -> bool:
    taken = row["choices"][int(np.argmax(choice_values(metric, row)))]
    return taken == row["target"] or taken in row["target"].split(" | ")


def choice_values(metric: str, row: Mapping[str, Any]) -> list[float]:
    """Return the values that a metric compares, from `choices`, `log_probs` and `tokens`."""
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
