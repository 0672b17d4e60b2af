r"""Grades mathematics: whether a worked answer ends in the right result.

`final_answer` finds the result: the last `\boxed{...}`, else what follows the last "the answer is",
else the last formula or number. `is_equal` compares two results by value with math-verify
(https://github.com/huggingface/Math-Verify), so that `\frac{1}{2}`, `\dfrac12`, 1/2 and 0.5 agree,
sets and intervals agree in any spelling, and units and `\text{}` do not matter. A per cent sign may
be omitted or evaluated: 50%, 50 and 1/2 agree, but 0.5% and 1/2 do not.
"""

import re
import threading
from collections.abc import Iterator
from typing import Any

SECONDS = 5  # to parse a result, and to compare two: sympy may not terminate
WORDS = 4  # of a result after "the answer is", unit included; more form a sentence
LONGEST = 400  # characters of a result that is parsed; longer ones are compared as text

_BOX = re.compile(r"\\(?:boxed|fbox)\s*")
_CUE = re.compile(
    r"(?:\banswer\b[\s*_]*(?:is|are|:|=|：)+|####|答案(?:应该)?(?:是|为|：|:|等于)+)[\s*_:：]*",
    re.I,
)
_CLOSING = re.compile(r"\s*I hope it is correct.*", re.S)
_FORMULA = re.compile(r"\$\$(.+?)\$\$|\$([^$]+?)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.S)
_NUMBER = re.compile(
    r"(?:(?<![\dA-Za-z.)])-)?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?"
    r"(?:\s+\d+\s*/\s*\d+|\s*/\s*\d+)?(?:\s*(?:\\?%|％))?"
)
# Parts of a result that is more than its only number: x^2, [2, a), 3 or b.
_STRUCTURE = re.compile(r"[\\^_(\[{]|\b(?:and|or)\b|[和或与、;；]")
_WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}")
_CHINESE = re.compile(r"[\u4e00-\u9fff]")
_BETWEEN = re.compile("[;；]")
_MIXED = re.compile(r"(?<![\d./])(\d+)\s+(\d+)\s*/\s*(\d+)(?![\d.])")
_WRITTEN = re.compile(r"(\d+)分之(\d+)")
_OF_HUNDRED = re.compile(r"百分之(\d+(?:\.\d+)?)")
_WRAPPED = re.compile(r"\\(?:text|textbf|textrm|mbox|mathrm|mathbf)\s*\{([^{}]*)\}")
_DROPPED = re.compile(
    r"\\(?:left|right|displaystyle|limits)(?![A-Za-z])|\\[!,;:> ]|~|\^\s*\{?\\circ\}?|°|\\?\$|\s+"
)
_PERCENT = re.compile(r"([^%]+)%")


def grade(answer: str, target: Any) -> float:
    """Return 1.0 if a worked answer ends in the result of `target`, or of one in a list."""
    targets = target if isinstance(target, list) else [target]
    return float(any(is_right(answer, str(one)) for one in targets))


def is_right(answer: str, target: str) -> bool:
    """Return whether an answer ends in the result of `target`, a result or a worked answer."""
    gold = _boxed(target)
    gold = target if gold is None else gold
    return any(is_equal(found, gold) for found in _readings(answer))


def final_answer(text: str) -> str:
    """Return the result that a worked answer ends in, "" if it has none."""
    return next(_readings(text), "")


def is_equal(answer: str, target: str) -> bool:
    """Return whether two results are equal: a value, set, interval, formula or word, or several
    in the same order, which `target` separates by semicolons."""
    golds = _BETWEEN.split(target)
    if len(golds) > 1:
        parts = _BETWEEN.split(answer)
        parts = parts if len(parts) == len(golds) else re.split("[,，、]", answer)
        return len(parts) == len(golds) and all(map(is_equal, parts, golds))
    given, gold = _normalized(answer), _normalized(target)
    if not given or not gold:
        return False
    if given == gold:
        return True
    shares = _PERCENT.fullmatch(given), _PERCENT.fullmatch(gold)
    if shares[0] and shares[1]:
        return _same_value(shares[0][1], shares[1][1])
    for share, other in ((shares[0], gold), (shares[1], given)):
        if share is not None:
            ratio = f"\\frac{{{share[1]}}}{{100}}"
            return share[1] == other or _same_value(ratio, other)
    return _same_value(_trimmed(answer), _trimmed(target))


def _readings(text: str) -> Iterator[str]:
    """Yield the results that the last statement of an answer may have, the likeliest first."""
    boxed = _boxed(text)
    if boxed is not None:
        yield boxed
        return
    text = _OF_HUNDRED.sub(r"\1%", _WRITTEN.sub(r"\2/\1", text))
    cues = list(_CUE.finditer(text))
    lines = _CLOSING.sub("", text[cues[-1].end() :] if cues else text).strip().splitlines()
    statement = (lines[0] if cues else lines[-1]).strip(" *_\t").rstrip(".。") if lines else ""
    formulas = [_inner(found) for found in _FORMULA.finditer(statement)]
    numbers = _NUMBER.findall(_FORMULA.sub(" ", statement))
    if cues and len(formulas) == 1 and not numbers:
        yield formulas[0]
    elif cues and not formulas and len(numbers) == 1 and not _STRUCTURE.search(statement):
        yield numbers[0]
    # A short line is the result itself, perhaps with its unit.
    words = WORDS if cues else 1 if len(lines) == 1 else -1
    if len(_WORD.findall(statement)) <= words:
        yield statement
    if len(_WORD.findall(statement)) > words or _CHINESE.search(statement):
        yield _last(statement if cues else text)


def _last(text: str) -> str:
    """Return the formula or number that ends last in a text, "" if there is none."""
    ends = [*_FORMULA.finditer(text), *_NUMBER.finditer(_FORMULA.sub(_blank, text))]
    if not ends:
        return ""
    last = max(ends, key=lambda found: found.end())
    return _inner(last) if last.re is _FORMULA else last[0]


def _blank(found: re.Match[str]) -> str:
    return " " * len(found[0])


def _inner(formula: re.Match[str]) -> str:
    return next(part for part in formula.groups() if part is not None)


def _boxed(text: str) -> str | None:
    r"""Return the content of the last complete `\boxed`."""
    for found in reversed(list(_BOX.finditer(text))):
        start = found.end()
        if text[start : start + 1] != "{":
            word = re.match(r"[^\s$]+", text[start:])
            if word is not None:
                return word[0]
            continue
        depth = 0
        for place in range(start, len(text)):
            depth += {"{": 1, "}": -1}.get(text[place], 0)
            if depth == 0:
                return text[start + 1 : place]
    return None


def _trimmed(text: str) -> str:
    """Return a result without formula delimiters and without a Chinese unit after a number."""
    text = text.strip().strip("*").rstrip(".。")
    formula = _FORMULA.fullmatch(text)
    text = _inner(formula) if formula is not None else text
    text = text.replace("\\$", "").replace("\\%", "%").replace("％", "%")
    text = _MIXED.sub(r"\1\\frac{\2}{\3}", text)
    return re.sub(r"(?<=[\d%}])\s*[\u4e00-\u9fff]+$", "", text)


def _normalized(text: str) -> str:
    """Return a result with normalized spaces, fractions, text, degrees and thousands."""
    text = re.sub(r"\\[dtc]frac(?![A-Za-z])", r"\\frac", _trimmed(text))
    text = _DROPPED.sub("", _WRAPPED.sub(r"\1", text)).replace("{,}", ",").rstrip(".")
    return text.replace(",", "") if re.fullmatch(r"-?\d{1,3}(,\d{3})+(\.\d+)?%?", text) else text


def _same_value(answer: str, target: str) -> bool:
    from math_verify import parse, verify  # imports sympy, which takes half a second

    if max(len(answer), len(target)) > LONGEST or _CHINESE.search(answer + target):
        return False
    # math-verify limits time by SIGALRM, which works in the main thread alone.
    limit = SECONDS if threading.current_thread() is threading.main_thread() else None
    gold, given = (
        parse(f"$\\boxed{{{text}}}$", parsing_timeout=limit) for text in (target, answer)
    )
    return bool(verify(gold, given, timeout_seconds=limit))
