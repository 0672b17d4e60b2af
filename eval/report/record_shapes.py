"""Whether stored measures, which may be of another run or edited, have the form that is read here.

A shape is a function that says whether a value fits, a tuple of shapes of which one fits, a list
with the shape of all elements, an object with the shape of each key, or `{str: shape}`, an object
of any names. A key `name?` may be absent, where it does not apply or an earlier version did not
record it; keys that are not listed are not looked at.
"""

from collections.abc import Mapping
from typing import Any

from eval.metrics.stats import BITS_PER_BYTE
from sft.data.json_values import is_too_deep

LARGEST = 10**15  # above it no number of ours is


def text(value: Any) -> bool:
    return isinstance(value, str)


def flag(value: Any) -> bool:
    return isinstance(value, bool)


def null(value: Any) -> bool:
    return value is None


def number(value: Any) -> bool:
    """A number that can be shown; NaN is one, of a loss that was none."""
    return type(value) in (int, float) and not abs(value) > LARGEST


def count(value: Any) -> bool:
    return type(value) is int and 0 <= value <= LARGEST


def some(value: Any) -> bool:
    return count(value) and value > 0


def share(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value <= 1


def change(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) <= LARGEST


def interval(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(change, value))


def names(value: Any) -> bool:
    """At least one name, none twice."""
    return (
        isinstance(value, list)
        and len(value) > 0
        and all(map(text, value))
        and len(set(value)) == len(value)
    )


_RATE = {"rate": share, "ci": interval, "n": some}
_REPETITION = {
    **_RATE,
    **{"cap?": count, "truncated?": share, "seq_rep_4?": share, "distinct_loops?": count},
}
_ENTRY = {
    **{"ci?": (interval, null), "n": some, "metric": text, "shots": (count, null)},
    **{"chat_template?": flag, "description?": text, "isolation?": text},
    **{f"{name}?": count for name in ("cut_prompts", "fewer_shots", "left_out", "cut_answers")},
    **{"unanswered?": count, "together?": count},
}
_SCORE = _ENTRY | {"score": share, "metrics?": {str: share}}
_BITS = {BITS_PER_BYTE: change, "n": some, "ci?": (interval, null), "left_out?": count}
_CATEGORY = {
    **{"category": text, "harmful": flag, "n": some, "empty?": count},
    **dict.fromkeys(("safe", "unsafe", "refusal"), count),
}
_AGREEMENT = {"agree": share, "n": count, "kappa": change, "unsafe_found": share}
_SAFETY = {
    **{"judge": text, "agreement": (null, _AGREEMENT), "categories": [_CATEGORY]},
    **dict.fromkeys(("secure?", "over_refusal?", "empty?"), (null, _RATE)),
}
_DETAIL = {
    "groups": [_RATE | {"language": text, "category": text}],
    "sensitivity": [_RATE | {"definition": text}],
    "near_loops": _RATE,
    "double_cap?": _RATE | {"cap": count},
    "sampled?": _RATE | {"temperature": change},
}
# scores.json of one model.
SCORES = {
    "repetition?": _REPETITION,
    "benchmarks?": {str: _SCORE},
    "language?": {str: _BITS},
    "repetition_detail?": _DETAIL,
    "safety?": _SAFETY,
    "backend?": (text, null),
}
_DELTA = {
    **{"task": text, "from": text, "to": text, "delta": change, "ci?": (interval, null)},
    **{"p?": (number, null), "p_holm": (number, null), "n": some, "test": text},
    **{"visible?": (change, null), "needed?": (count, null), "smallest_p?": number},
    **{"gained?": (count, null), "lost?": (count, null), "left_out?": count},
}
_IN_TRAINING = {
    **{"epoch": change, "step": count, "repetition?": _RATE},
    **{"benchmarks?": {str: {"score": share, "ci": interval, "n": some, "metric": text}}},
}
_STAGE = {
    **{"steps": count, "tokens?": count, "seconds?": number},
    **{"loss_first?": number, "loss_last?": number},
}
_DECISION = {"stage": text, "verdict": text, "reason": text}
RESULTS = {
    "models": names,
    "repetition?": {str: _REPETITION},
    "benchmarks?": {str: {str: _SCORE}},
    "language?": {"benchmarks": {str: {str: _BITS}}, "deltas": [_DELTA]},
    "deltas?": [_DELTA],
    "same_format?": {
        str: {
            "benchmarks?": {str: {str: _SCORE}},
            "deltas": [_DELTA],
            "formats": [_DELTA | {"model": text}],
        }
    },
    "repetition_detail?": {str: _DETAIL},
    "safety?": {str: _SAFETY},
    "same_weights?": [[text]],
    "stages?": {str: _STAGE},
    "epochs?": {str: [_IN_TRAINING]},
    "loops?": {str: [_IN_TRAINING]},
    "decisions?": [_DECISION],
}
# Rows of log.jsonl, of generations.jsonl, of samples of a benchmark, and of those of texts.
LOG = {"step": count, "loss?": (null, number), "learning_rate?": (null, number)}
_LOOP = {"start": count, "period": some, "copies": some}
_FOLLOWED = {"strict": [flag], "loose": [flag]}  # of the instructions of a prompt
ANSWER = {
    **{"id": text, "messages": [{"role": text, "content": text}], "text": text, "repeats": flag},
    **{"loop?": (null, _LOOP), "token_ids?": [count], "cap?": count, "finish_reason?": text},
    **{"language?": text, "category?": text},
}
_SAMPLE = {
    **{"doc_id": text, "doc_hash": text, "prompt?": text, "cluster?": (text, null)},
    **{"filter?": text, "version?": (text, null), "template?": (text, null)},
}
VERDICT = {
    **_SAMPLE,
    **{"score": share, "metric": lambda value: text(value) and value != BITS_PER_BYTE},
    **{"answer": text, "target": text, "finish_reason?": text, "loop?": (null, _LOOP)},
    **{"outcome?": (null, text, _FOLLOWED)},
}
READ_TEXT = {
    **_SAMPLE,
    **{"metric": lambda value: value == BITS_PER_BYTE, "log_prob": change, "bytes": some},
}


def misfit(value: Any, shape: Any) -> str | None:
    """The place of the first thing in JSON data that is not as the shape says; None if all is."""
    if is_too_deep(value):
        return "its depth"
    return _misfit(value, shape, "")


def _misfit(value: Any, shape: Any, at: str) -> str | None:
    if callable(shape):
        return None if shape(value) else at or "the whole"
    if isinstance(shape, tuple):
        tried = [_misfit(value, one, at) for one in shape]
        return None if None in tried else max(map(str, tried), key=len)
    if isinstance(shape, list):
        if not isinstance(value, list):
            return at or "the whole"
        places = (_misfit(one, shape[0], f"{at}[{i}]") for i, one in enumerate(value))
        return next((place for place in places if place is not None), None)
    if not isinstance(value, Mapping):
        return at or "the whole"
    wanted = dict.fromkeys(value, shape[str]) if str in shape else shape
    for name, inner in wanted.items():
        key = name if str in shape else name.removesuffix("?")
        place = f"{at}.{key}" if at else key
        if key in value:
            if (found := _misfit(value[key], inner, place)) is not None:
                return found
        elif not name.endswith("?"):
            return place
    return None


def unknown_name(results: Mapping[str, Any]) -> str | None:
    """A place in results.json that names a model, stage or task which it does not hold.

    Args:
        results: which fit `RESULTS`.
    """
    models = set(results["models"])
    deltas = [*results.get("deltas", []), *results.get("language", {}).get("deltas", [])]
    whole = {(row["task"], row["from"], row["to"]) for row in results.get("deltas", [])}
    for form in results.get("same_format", {}).values():
        deltas += form["deltas"]
        for row in form["deltas"]:
            if (row["task"], row["from"], row["to"]) not in whole:
                return f"the change of {row['task']} in one format"
    for row in deltas:
        if not {row["from"], row["to"]} <= models:
            return f"the change of {row['task']} from {row['from']} to {row['to']}"
    for key in ("epochs", "loops"):
        for stage, rows in results.get(key, {}).items():
            if not rows or stage not in results.get("stages", {}):
                return f"{key}.{stage}"
    return None
