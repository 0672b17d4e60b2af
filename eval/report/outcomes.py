"""How an answer ended and what it scored, in words and in kinds that the report filters by.

Nothing is judged here: every outcome is read from a stored row.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Css = Literal["good", "bad", "cut"]
_CSS: dict[str, Css] = {"right": "good", "wrong": "bad", "partly": "cut"}

# Characters of a program's error that are shown.
REASON = 160


@dataclass(frozen=True)
class Outcome:
    """One answer's outcome.

    Attributes:
        kinds: what a filter finds it by: right, wrong, partly, stops, loops, cut.
        css: its colour on the page.
        brief: in a word or two.
        words: the same with its numbers or its reason.
    """

    kinds: tuple[str, ...]
    css: Css
    brief: str
    words: str


def ended(row: Mapping[str, Any]) -> Outcome:
    """How a row of generations.jsonl ended."""
    count = len(row.get("token_ids", ()))
    if row.get("repeats"):
        loop = row.get("loop")
        words = f"loops: {loop['period']} tokens \u00d7 {loop['copies']}" if loop else "loops"
        return Outcome(("loops",), "bad", "loops", words)
    reason, cap = row.get("finish_reason"), row.get("cap")
    if reason is None:
        return Outcome((), "cut", "end unknown", "how it ended is not recorded")
    if reason not in ("stop_id", "stop_string"):
        return Outcome(("cut",), "cut", "cut", f"cut at {count} tokens")
    if cap is not None and count > cap:
        words = f"past the cap: stops after {count} tokens"
        return Outcome(("cut",), "cut", "cut", words)
    words = f"stops after {count} token{'s' * (count != 1)}"
    return Outcome(("stops",), "good", "stops", words)


def judged(row: Mapping[str, Any]) -> Outcome:
    """What a row of samples/<task>.jsonl scored, whether it ended, and why it is wrong where the
    row says so: a program's error, instructions that were not followed."""
    score = row["score"]
    kind = {0.0: "wrong", 1.0: "right"}.get(score, "partly")
    brief = words = f"{score:.2f}" if kind == "partly" else kind
    kinds = [kind]
    if loop := row.get("loop"):
        kinds.append("loops")
        brief += ", loops"
        words += f", cut in a loop: {loop['period']} characters \u00d7 {loop['copies']}"
    elif row.get("finish_reason") == "cap":
        kinds.append("cut")
        brief += ", cut"
        words += ", cut at the task's limit of tokens"
    reason = _reason(row)
    return Outcome(tuple(kinds), _CSS[kind], brief, f"{words}: {reason}" if reason else words)


def _reason(row: Mapping[str, Any]) -> str:
    outcome = row.get("outcome")
    if isinstance(outcome, str) and outcome != "passed":
        return outcome if len(outcome) <= REASON else f"{outcome[:REASON]}\u2026"
    if isinstance(outcome, dict):
        followed = outcome["loose" if "loose" in row["metric"] else "strict"]
        return f"{sum(followed)} of {len(followed)} instructions followed"
    return ""
