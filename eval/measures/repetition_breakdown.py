"""Repetition rate by language and category and under other thresholds.

All functions take the rows of generations.jsonl.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from eval.measures.repetition import repeats, unfinished
from eval.metrics.loop_detection import BEGUN_COPIES, find_loop
from eval.metrics.stats import wilson
from eval.schema import DefinitionRate, GroupRate, Rate, RepetitionDetail

Row = Mapping[str, Any]

# A number (with its points, commas and colons), a Chinese number, a word, or any other character.
_UNIT = re.compile(
    r"\d+(?:[.,:]\d+)*|[零〇一二三四五六七八九十百千万两]+|[^\W\d_\u2e80-\uffff]+|\S"
)
_NUMBER = re.compile(r"[\d零〇一二三四五六七八九十百千万两]")


def detail(rows: Sequence[Row]) -> RepetitionDetail:
    """Compute the `repetition_detail` of one model in results.json."""
    return {
        "groups": groups(rows),
        "sensitivity": sensitivity(rows),
        "near_loops": rate(rows, near_loop),
    }


def groups(rows: Sequence[Row]) -> list[GroupRate]:
    """Compute the rate of each language, of each category, and of each pair that occurs.

    An entry is {"language", "category", "rate", "ci", "n"}, with "" for "all". A partition of one
    part is left out: its rate is that of all rows.
    """
    entries = []
    for keys in (("language",), ("category",), ("language", "category")):
        parts: dict[tuple[str, ...], list[Row]] = {}
        for row in rows:
            parts.setdefault(tuple(str(row.get(key, "")) for key in keys), []).append(row)
        if any(len({str(row.get(key, "")) for row in rows}) < 2 for key in keys):
            continue
        for values in sorted(parts):
            named = dict(zip(keys, values, strict=True))
            language, category = named.get("language", ""), named.get("category", "")
            found = rate(parts[values], repeats)
            entries.append(GroupRate(language=language, category=category, **found))
    return entries


def sensitivity(rows: Sequence[Row]) -> list[DefinitionRate]:
    """Compute the rate under other thresholds; the first entry is the definition itself.

    All are exact on stored rows, since every loop of BEGUN_COPIES at the cap was followed.
    """
    # MIN_TOKENS is not varied: a loop that has begun by the cap and lasts to its double has more
    # tokens than the cap.
    variants: list[tuple[str, Callable[[Row], bool]]] = [
        ("as defined", repeats),
        (f"{BEGUN_COPIES + 1} copies by the cap", lambda r: repeats(r, copies=BEGUN_COPIES + 1)),
        (f"{BEGUN_COPIES + 2} copies by the cap", lambda r: repeats(r, copies=BEGUN_COPIES + 2)),
        ("loops at the cap, not followed", loops_at_cap),
        ("half the cap", lambda r: repeats(halved(r))),
    ]
    return [DefinitionRate(definition=name, **rate(rows, counts)) for name, counts in variants]


def loops_at_cap(row: Row) -> bool:
    """Return whether an unfinished answer ends in BEGUN_COPIES of a loop at the cap."""
    tokens = row["token_ids"][: row["cap"]]
    return unfinished(row) and find_loop(tokens, cap=len(tokens)) is not None


def halved(row: Row) -> dict[str, Any]:
    """Return the row that would have been stored with half the cap."""
    cap = row["cap"] // 2
    tokens = row["token_ids"][: 2 * cap]
    reason = row["finish_reason"] if len(row["token_ids"]) <= 2 * cap else "cap"
    return {**row, "token_ids": tokens, "finish_reason": reason, "cap": cap}


def near_loop(row: Row) -> bool:
    """Return whether an unfinished answer ends in a loop that only its numbers break.

    "1. Rest well. 2. Rest well. 3. ..." does not repeat a token sequence. Words, single Chinese
    characters and signs are compared, and all numbers are equal; the thresholds of `find_loop`
    count these units.
    """
    if repeats(row) or not unfinished(row):
        return False
    units = _UNIT.findall(row["text"] or row.get("thinking", ""))
    return find_loop(["0" if _NUMBER.match(unit) else unit for unit in units]) is not None


def rate(rows: Sequence[Row], counts: Callable[[Row], bool]) -> Rate:
    """Return {"rate", "ci", "n"} of the rows for which `counts` is true."""
    found = sum(map(counts, rows))
    return {"rate": found / len(rows), "ci": list(wilson(found, len(rows))), "n": len(rows)}
