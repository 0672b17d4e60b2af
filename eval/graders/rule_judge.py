"""A judge made of rules: does an answer end, without looping, and say what is known to be right.

A judge is any callable of an answer and the row's reference that returns a Verdict; this one needs
no model, so preference pairs of the quickstart rest on facts.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any

from eval.generation.thinking import GeneratedAnswer, split_text
from eval.graders.safety_rules import is_refusal
from eval.metrics.loop_detection import Loop, find_loop, seq_rep_n

# An answer that ends but is wrong is worth half of a right one; one that runs into the cap a
# quarter; one that loops or says nothing, nothing.
WRONG, CUT_OFF = 0.5, 0.25
# Of its 4-grams, above which an answer is held to repeat itself; people's prose stays below.
REPEATS = 0.2

KEYS = frozenset({"final", "any_of", "all_of", "none_of", "refuse"})

_MARKERS = re.compile(
    r"####|answer is|final answer:|answer:|答案是|答案为|答案[:：]", re.IGNORECASE
)
_NUMBER = re.compile(r"(?<![\d.])[-\N{MINUS SIGN}]?\d[\d,]*(?:\.\d+)?")


@dataclass(frozen=True)
class Verdict:
    """A score in [0, 1], higher is better, and a phrase for each thing that was looked at."""

    score: float
    reasons: tuple[str, ...]


def rule_judge(
    answer: GeneratedAnswer,
    reference: dict[str, Any],
    *,
    loops: Callable[[Sequence[int]], Loop | None] = find_loop,
) -> Verdict:
    """Judge one answer by its end, by loops and repeats, and by what `reference` knows.

    Thinking that its text holds is not read for what the answer says.

    Args:
        reference: any of {"final": "42"} (the final answer equals it), {"any_of": [...]},
            {"all_of": [...]}, {"none_of": [...]} (what the text says, as whole words),
            {"refuse": true | false}; empty: end and repeats alone count.
        loops: finds a loop at the tail of token ids.

    Returns:
        0 for an answer that loops or is empty, 0.25 for one cut off at its cap, otherwise from 0.5
        (ends, all wrong) to 1 (ends, all right). Equal scores mean no preference.

    Raises:
        ValueError: the reference has a key that no rule reads, or a value of the wrong kind.
    """
    if problem := reference_flaw(reference):
        raise ValueError(problem)
    ended = answer.finish_reason in ("stop_id", "stop_string")
    said = answer.token_ids[:-1] if answer.finish_reason == "stop_id" else answer.token_ids
    loop = loops(said)
    if loop is not None:
        return Verdict(0.0, (f"loops with period {loop.period}",))
    text = split_text(answer.text).answer
    if not (text if ended else answer.text).strip():
        return Verdict(0.0, ("says nothing",))
    if not ended:
        return Verdict(CUT_OFF, ("does not end",))
    checks = _checks(text, reference)
    repeated = seq_rep_n(said)
    if repeated > REPEATS:
        checks.append((1 - repeated, f"repeats {repeated:.0%} of its 4-grams"))
    share = sum(right for right, _ in checks) / len(checks) if checks else 1.0
    return Verdict(WRONG + (1 - WRONG) * share, ("ends", *(reason for _, reason in checks)))


def reference_flaw(reference: Any) -> str | None:
    """What is wrong with a reference that `rule_judge` is to judge by; None where nothing is."""
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
    """What follows the last "answer is", "####" or 答案是, up to the end of its line; else the
    last line that is not empty."""
    marks = list(_MARKERS.finditer(text))
    if marks:
        return text[marks[-1].end() :].strip().split("\n")[0].strip()
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""


def same_answer(given: str, expected: str) -> bool:
    """Whether a final answer is the expected one: as numbers, or as text without its trimmings.

    Where a number is expected, the last number of `given` counts ("2 + 40 = 42 coins").
    """
    wanted = _number(expected)
    if wanted is not None:
        numbers = _NUMBER.findall(given)
        return bool(numbers) and _number(numbers[-1]) == wanted
    return _bare(given) == _bare(expected)


def says(text: str, phrase: str) -> bool:
    """Whether the text holds the phrase as whole words, in any case; Chinese needs no borders."""
    pattern = re.escape(phrase)
    if re.match(r"[A-Za-z0-9]", phrase):
        pattern = r"(?<![A-Za-z0-9])" + pattern
    if re.search(r"[A-Za-z0-9]$", phrase):
        pattern += r"(?![A-Za-z0-9])"
    return re.search(pattern, text, re.IGNORECASE) is not None


def _checks(text: str, reference: dict[str, Any]) -> list[tuple[float, str]]:
    """(share right, phrase) for each key of the reference."""
    checks: list[tuple[float, str]] = []
    if "final" in reference:
        given, expected = final_answer(text), str(reference["final"])
        right = same_answer(given, expected)
        verb = "is" if right else "is not"
        checks.append((float(right), f"final answer {given[:40]!r} {verb} {expected!r}"))
    if "any_of" in reference:
        found = [phrase for phrase in reference["any_of"] if says(text, phrase)]
        checks.append(
            (float(bool(found)), f"says {found[0]!r}" if found else "says none of any_of")
        )
    if "all_of" in reference:
        wanted = reference["all_of"]
        missing = [phrase for phrase in wanted if not says(text, phrase)]
        share = 1 - len(missing) / len(wanted) if wanted else 1.0
        checks.append((share, f"leaves out {missing[0]!r}" if missing else "says all of all_of"))
    if "none_of" in reference:
        wrong = [phrase for phrase in reference["none_of"] if says(text, phrase)]
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
    """Casefolded, without spaces, quotes, brackets at the ends and a final stop."""
    return re.sub(r"\s+", "", text).strip(".。!！\"'`[](){}“”‘’").casefold()
