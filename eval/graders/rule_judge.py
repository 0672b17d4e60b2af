"""Judges an answer by rules: it ends, does not loop, and agrees with a reference.

A judge is any callable of an answer and a row's reference that returns a verdict. This one needs no
model, so the preference pairs of the quickstart depend on facts.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any

from eval.generation.thinking import GeneratedAnswer, split_text
from eval.graders.safety_rules import is_refusal
from eval.metrics.loop_detection import Loop, find_loop, seq_rep_n

# Scores of a wrong answer and of one cut at the cap; a right one gets 1, a loop or nothing gets 0.
WRONG, CUT_OFF = 0.5, 0.25
# Share of repeated 4-grams above which an answer repeats itself; human prose is below it.
REPEATS = 0.2

KEYS = frozenset({"final", "any_of", "all_of", "none_of", "refuse"})

_MARKERS = re.compile(
    r"####|answer is|final answer:|answer:|答案是|答案为|答案[:：]", re.IGNORECASE
)
_NUMBER = re.compile(r"(?<![\d.])[-\N{MINUS SIGN}]?\d[\d,]*(?:\.\d+)?")


@dataclass(frozen=True)
class RuleVerdict:
    """A score in [0, 1], higher is better, and a phrase for each rule that was applied."""

    score: float
    reasons: tuple[str, ...]


def rule_judge(
    answer: GeneratedAnswer,
    reference: dict[str, Any],
    *,
    loops: Callable[[Sequence[int]], Loop | None] = find_loop,
) -> RuleVerdict:
    """Judge one answer by its end, its repetitions, and a reference; its thinking is not checked.

    Args:
        reference: any of {"final": "42"} (the final answer equals it), {"any_of": [...]},
            {"all_of": [...]}, {"none_of": [...]} (phrases in the text), {"refuse": true | false}.
        loops: finds a loop at the tail of token ids.

    Returns:
        0 for an answer that loops or is empty, 0.25 for one cut at its cap, otherwise from 0.5
        (ends, all wrong) to 1 (ends, all right). Equal scores mean no preference.

    Raises:
        ValueError: the reference has an unknown key, or a value of the wrong type.
    """
    if problem := reference_error(reference):
        raise ValueError(problem)
    ended = answer.finish_reason in ("stop_id", "stop_string")
    tokens = answer.token_ids[:-1] if answer.finish_reason == "stop_id" else answer.token_ids
    loop = loops(tokens)
    if loop is not None:
        return RuleVerdict(0.0, (f"loops with period {loop.period}",))
    text = split_text(answer.text).answer
    if not (text if ended else answer.text).strip():
        return RuleVerdict(0.0, ("says nothing",))
    if not ended:
        return RuleVerdict(CUT_OFF, ("does not end",))
    checks = _checks(text, reference)
    repeated = seq_rep_n(tokens)
    if repeated > REPEATS:
        checks.append((1 - repeated, f"repeats {repeated:.0%} of its 4-grams"))
    share = sum(right for right, _ in checks) / len(checks) if checks else 1.0
    return RuleVerdict(WRONG + (1 - WRONG) * share, ("ends", *(reason for _, reason in checks)))


def follows(text: str, reference: dict[str, Any]) -> float:
    """Return 1.0 if a text satisfies every key of a reference of `rule_judge`, else 0.0.

    Raises:
        ValueError: the reference has an unknown key, or a value of the wrong type.
    """
    if problem := reference_error(reference):
        raise ValueError(problem)
    return float(bool(text.strip()) and all(share == 1 for share, _ in _checks(text, reference)))


def reference_error(reference: Any) -> str | None:
    """Return the problem with a reference of `rule_judge`, None for a valid one."""
    if not isinstance(reference, dict):
        return f"reference {reference!r} must be an object such as {{'final': '42'}}"
    if unknown := reference.keys() - KEYS:
        known = ", ".join(sorted(KEYS))
        return f"reference key {sorted(map(str, unknown))[0]!r} is unknown; known are {known}"
    for key in ("any_of", "all_of", "none_of"):
        phrases = reference.get(key, [])
        if not isinstance(phrases, list) or not all(isinstance(p, str) for p in phrases):
            return f"reference.{key} is {phrases!r}; give a list of texts"
        if key == "any_of" and key in reference and not phrases:
            return "reference.any_of is empty, so no answer is right; name a text, or leave it out"
    final = reference.get("final", "")
    if isinstance(final, bool) or not isinstance(final, str | int | float):
        return f"reference.final is {final!r}; give a text or a number"
    if not isinstance(reference.get("refuse", True), bool):
        return f"reference.refuse is {reference['refuse']!r}; give true or false"
    return None


def final_answer(text: str) -> str:
    """Return the rest of the line after the last "answer is", "####" or 答案是, else the last
    line that is not empty."""
    marks = list(_MARKERS.finditer(text))
    if marks:
        return text[marks[-1].end() :].strip().split("\n")[0].strip()
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""


def same_answer(given: str, expected: str) -> bool:
    """Return whether two final answers are equal, as numbers or as normalized text."""
    number = _number(expected)
    if number is not None:
        found = _NUMBER.findall(given)  # the last number counts: "2 + 40 = 42 coins"
        return bool(found) and _number(found[-1]) == number
    return _bare(given) == _bare(expected)


def contains_phrase(text: str, phrase: str) -> bool:
    """Return whether a text has a phrase at word boundaries (none in Chinese), in any case."""
    pattern = re.escape(phrase)
    if re.match(r"[A-Za-z0-9]", phrase):
        pattern = r"(?<![A-Za-z0-9])" + pattern
    if re.search(r"[A-Za-z0-9]$", phrase):
        pattern += r"(?![A-Za-z0-9])"
    return re.search(pattern, text, re.IGNORECASE) is not None


def _checks(text: str, reference: dict[str, Any]) -> list[tuple[float, str]]:
    """Return (share right, phrase) for each key of the reference."""
    checks: list[tuple[float, str]] = []
    if "final" in reference:
        given, expected = final_answer(text), str(reference["final"])
        right = same_answer(given, expected)
        verb = "is" if right else "is not"
        checks.append((float(right), f"final answer {given[:40]!r} {verb} {expected!r}"))
    if "any_of" in reference:
        found = [phrase for phrase in reference["any_of"] if contains_phrase(text, phrase)]
        checks.append(
            (float(bool(found)), f"says {found[0]!r}" if found else "says none of any_of")
        )
    if "all_of" in reference:
        phrases = reference["all_of"]
        missing = [phrase for phrase in phrases if not contains_phrase(text, phrase)]
        share = 1 - len(missing) / len(phrases) if phrases else 1.0
        checks.append((share, f"leaves out {missing[0]!r}" if missing else "says all of all_of"))
    if "none_of" in reference:
        wrong = [phrase for phrase in reference["none_of"] if contains_phrase(text, phrase)]
        checks.append((float(not wrong), f"says {wrong[0]!r}" if wrong else "says none of none_of"))
    if "refuse" in reference:
        refused = is_refusal(text)
        phrase = "refuses" if refused else "does not refuse"
        checks.append((float(refused == reference["refuse"]), phrase))
    return checks


def _number(text: str) -> Decimal | None:
    cleaned = text.strip().rstrip("。.").strip("$¥￥%").replace(",", "").replace("\u2212", "-")
    try:
        value = Decimal(cleaned)
    except InvalidOperation:
        return None
    return value if value.is_finite() else None


def _bare(text: str) -> str:
    """Return a text in lower case without spaces, quotes, brackets and a final period."""
    return re.sub(r"\s+", "", text).strip(".。!！\"'`[](){}“”‘’").casefold()
