"""Format how an answer ended and what it scored, with the kinds that the report filters by."""

from dataclasses import dataclass
from typing import Literal

from eval.schema import GenerationRow, ScoredRow

Css = Literal["good", "bad", "cut"]
_CSS: dict[str, Css] = {"right": "good", "wrong": "bad", "partly": "cut"}

REASON = 160  # characters shown of a program's error


@dataclass(frozen=True)
class Outcome:
    """The outcome of one answer.

    Attributes:
        kinds: for filters: right, wrong, partly, stops, loops, cut.
        css: the class of its color on the page.
        brief: one or two words.
        words: the same with numbers or a reason.
    """

    kinds: tuple[str, ...]
    css: Css
    brief: str
    words: str


def ended(row: GenerationRow) -> Outcome:
    """Return how a row of generations.jsonl ended."""
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


def judged(row: ScoredRow) -> Outcome:
    """Return what a row of samples/<task>.jsonl scored, how it ended, and why it is wrong.

    The reason is a program's error, or the number of instructions that were followed.
    """
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


def _reason(row: ScoredRow) -> str:
    outcome = row.get("outcome")
    if isinstance(outcome, str) and outcome != "passed":
        return outcome if len(outcome) <= REASON else f"{outcome[:REASON]}\u2026"
    if isinstance(outcome, dict):
        followed = outcome["loose" if "loose" in row["metric"] else "strict"]
        return f"{sum(followed)} of {len(followed)} instructions followed"
    return ""
