"""Caveats on changes that training alone does not explain: formats, weights, cut answers."""

from eval.metrics.number_format import percent
from eval.report.headline import MOSTLY, overall, transitions
from eval.schema import Results


def caveats(results: Results) -> list[str]:
    """Return the sentences to show with the changes of `results`."""
    checks = (_same_weights, _mixed_formats, cut_tasks, _unchanged)
    return [sentence for check in checks for sentence in check(results)]


def cut_tasks(results: Results) -> list[str]:
    """Return a sentence on tasks on which most answers of the last model were cut."""
    last = results["models"][-1] if results["models"] else None
    cut = [
        f"{task} {percent(entries[last]['cut_answers'] / entries[last]['n'])}"
        for task, entries in results.get("benchmarks", {}).items()
        if last in entries and entries[last].get("cut_answers", 0) >= MOSTLY * entries[last]["n"]
    ]
    if not cut:
        return []
    return [f"Answers of {last} cut at the task's token limit: {', '.join(cut)}."]


def _unchanged(results: Results) -> list[str]:
    """Return a sentence on clustered tasks in which no answer changed between two models."""
    steps = [
        f"{row['task']} ({row['from']} \u2192 {row['to']})"
        for row in results.get("deltas", [])
        if row["test"].endswith("clustered") and row.get("gained") == row.get("lost") == 0
    ]
    if not steps:
        return []
    return [
        f"No answer changed in {', '.join(steps)}. Without any change, the variation within a "
        "cluster is unknown, so each cluster counts as one question, and the interval is wider "
        "than with a few changes."
    ]


def _mixed_formats(results: Results) -> list[str]:
    """Return a sentence on pairs of models that a benchmark prompted in different formats."""
    mixed = []
    for pair in transitions(results):
        entries = [s for s in results.get("benchmarks", {}).values() if all(m in s for m in pair)]
        formats = [{(s[m]["shots"], s[m].get("chat_template")) for m in pair} for s in entries]
        if any(len(each) > 1 for each in formats):
            mixed.append(pair)
    if not mixed:
        return []
    overall_pair = overall(results)
    named = overall_pair if overall_pair in mixed else mixed[0]
    also = [f"{a} \u2192 {b}" for a, b in mixed if (a, b) != named]
    more = f" (so were {', '.join(also)})" if also else ""
    return [
        f"{named[0]} and {named[1]} were prompted in different formats (see the table){more}, so "
        "the change in their benchmark scores includes the change of format."
    ]


def _same_weights(results: Results) -> list[str]:
    return [
        f"{' and '.join(names)} have the same weights: if their scores differ, the cause is the "
        "prompt format, not training."
        for names in results.get("same_weights", [])
    ]
