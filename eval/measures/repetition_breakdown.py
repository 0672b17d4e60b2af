"""Stored answers looked at more closely: by language and category, under other thresholds, and the
answers that nearly loop. Pure functions of the rows of generations.jsonl."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from eval.measures.repetition import repeats, unfinished
from eval.metrics.loop_detection import BEGUN_COPIES, find_loop
from eval.metrics.stats import wilson

Row = Mapping[str, Any]

# A number (with its points, commas and colons), a Chinese number, a word, or any other character.
_UNIT = re.compile(
    r"\d+(?:[.,:]\d+)*|[零〇一二三四五六七八九十百千万两]+|[^\W\d_\u2e80-\uffff]+|\S"
)
_NUMBER = re.compile(r"[\d零〇一二三四五六七八九十百千万两]")


def detail(rows: Sequence[Row]) -> dict[str, Any]:
    """The `repetition_detail` of one model in results.json, beside the contract's rate."""
    return {
        "groups": groups(rows),
        "sensitivity": sensitivity(rows),
        "near_loops": rate(rows, near_loop),
    }


def groups(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The rate of each language, of each category, and of each pair that occurs, in that order.

    An entry is {"language", "category", "rate", "ci", "n"}, with "" for "all of them". A partition
    of one part is left out, since it says what the whole does.
    """
    entries = []
    for keys in (("language",), ("category",), ("language", "category")):
        parts: dict[tuple[str, ...], list[Row]] = {}
        for row in rows:
            parts.setdefault(tuple(str(row.get(key, "")) for key in keys), []).append(row)
        coarser = any(len({str(row.get(key, "")) for row in rows}) < 2 for key in keys)
        if coarser:
            continue
        for values in sorted(parts):
            named = {"language": "", "category": ""} | dict(zip(keys, values, strict=True))
            entries.append(named | rate(parts[values], repeats))
    return entries


def sensitivity(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The rate under other thresholds; the first entry is the definition itself.

    Stricter: more copies begun by the cap. Looser: loops that run at the cap, whether or not they
    survive its doubling. Also as if the cap had been half of this. There is none with another
    MIN_TOKENS, since a loop that has begun by the cap and lasts to its double has more tokens than
    the cap. All are exact on stored rows, since every loop of BEGUN_COPIES at the cap was followed.
    """
    variants: list[tuple[str, Callable[[Row], bool]]] = [
        ("as defined", repeats),
        (f"{BEGUN_COPIES + 1} copies by the cap", lambda r: repeats(r, copies=BEGUN_COPIES + 1)),
        (f"{BEGUN_COPIES + 2} copies by the cap", lambda r: repeats(r, copies=BEGUN_COPIES + 2)),
        ("loops at the cap, not followed", loops_at_cap),
        ("half the cap", lambda r: repeats(halved(r))),
    ]
    return [{"definition": name} | rate(rows, counts) for name, counts in variants]


def loops_at_cap(row: Row) -> bool:
    """Whether an unfinished answer ends in BEGUN_COPIES of a loop where the cap cuts it."""
    tokens = row["token_ids"][: row["cap"]]
    return unfinished(row) and find_loop(tokens, cap=len(tokens)) is not None


def halved(row: Row) -> dict[str, Any]:
    """The row as it would have been stored, had the cap been half as large."""
    cap = row["cap"] // 2
    tokens = row["token_ids"][: 2 * cap]
    reason = row["finish_reason"] if len(row["token_ids"]) <= 2 * cap else "cap"
    return {**row, "token_ids": tokens, "finish_reason": reason, "cap": cap}


def near_loop(row: Row) -> bool:
    """Whether an answer that the cap cut, and that is no loop, ends in one but for its numbers.

    "1. Rest well. 2. Rest well. 3. ..." never repeats a token sequence, yet says one thing. Words,
    single Chinese characters and signs are compared, with all numbers taken as equal; `find_loop`'s
    own thresholds hold, in these units.
    """
    if repeats(row) or not unfinished(row):
        return False
    units = _UNIT.findall(row["text"] or row.get("thinking", ""))
    return find_loop(["0" if _NUMBER.match(unit) else unit for unit in units]) is not None


def rate(rows: Sequence[Row], counts: Callable[[Row], bool]) -> dict[str, Any]:
    """{"rate", "ci", "n"} of the rows that count."""
    found = sum(map(counts, rows))
    return {"rate": found / len(rows), "ci": list(wilson(found, len(rows))), "n": len(rows)}
