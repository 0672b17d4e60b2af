"""Judgments kept as they come, so that none is paid for twice, and the tables made of them."""

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from eval.metrics.stats import mcnemar, paired_proportion_interval, score_interval
from eval.open_ended.judge_prompts import Ask, Item, judge_item
from sft.data.json_values import find_lone_surrogate, is_too_deep
from sft.errors import UserError
from sft.system.atomic_files import iter_jsonl, writing

Row = Mapping[str, Any]

# The paper's order of MT-Bench's categories (arXiv 2401.02954, table 8).
MT_BENCH = (
    *("stem", "humanities", "reasoning", "coding"),
    *("math", "extraction", "roleplay", "writing"),
)
# AlignBench's two halves; its overall score is the mean of theirs, each the mean of its categories.
GRADES = (1.0, 10.0)
LARGEST = 10**12  # of a count in a judgment
REASONING = ("数学计算", "逻辑推理")
LANGUAGE = ("基本任务", "中文理解", "综合问答", "文本写作", "角色扮演", "专业能力")


def judge_all(
    items: Sequence[Item],
    ask: Ask,
    *,
    path: Path,
    workers: int = 4,
    progress: Callable[[int], object] | None = None,
) -> list[dict[str, Any]]:
    """Judge what `path` does not hold yet and add it there, row by row; rows in the items' order.

    Args:
        path: judgments.jsonl, made if it is missing; a line torn by a crash is cut off.
        workers: requests under way at once.

    Raises:
        UserError: the endpoint failed for good; every judgment that came until then is in `path`.
    """
    done = {row["key"]: row for row in _kept(path)}
    left = [item for item in items if item.key not in done]
    if progress is not None:
        progress(len(items) - len(left))
    failure: UserError | None = None
    with (
        writing(path),
        path.open("a", encoding="utf-8") as file,
        ThreadPoolExecutor(workers) as pool,
    ):
        waiting = iter(left)
        running = {pool.submit(judge_item, item, ask) for item in islice(waiting, workers)}
        while running:
            ended, running = wait(running, return_when=FIRST_COMPLETED)
            for future in ended:
                try:
                    row = future.result()
                except UserError as error:
                    failure = failure or error
                    continue
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
                file.flush()
                os.fsync(file.fileno())
                done[row["key"]] = row
                if progress is not None:
                    progress(1)
                # After a failure the others under way are still taken in, and nothing is begun.
                item = None if failure else next(waiting, None)
                if item is not None:
                    running.add(pool.submit(judge_item, item, ask))
    if failure is not None:
        raise failure
    return [done[item.key] for item in items]


def grade_table(rows: Iterable[Row]) -> dict[str, dict[str, Any]]:
    """Mean grades by model: {"score", "ci", "n", "unread", "turns", "categories"}.

    `score` is the mean over all turns, with the interval of clustered questions; for AlignBench it
    is the mean of its two halves, which stand beside it. `n` counts questions, `unread` replies
    without a verdict, which are left out.
    """
    by_model: dict[str, list[Row]] = {}
    for row in rows:
        if row["kind"] == "grade":
            by_model.setdefault(row["model"], []).append(row)
    return {model: _grades(own) for model, own in by_model.items()}


def pair_table(rows: Iterable[Row], *, first: str, second: str) -> dict[str, Any]:
    """How `second` fares against `first`: {"wins", "ties", "losses", "win_rate", "ci", "p", ...}.

    Each question was judged in both orders. The verdicts have to name the same model; where they
    do not (the judge went by the place), or one of them is "neither", it is a tie. A tie is half a
    win in `win_rate`; p is that of the sign test of wins and losses. `same_place` is the share of
    questions on which the judge named the same place twice.
    """
    verdicts: dict[str, dict[str, str | None]] = {}
    categories: dict[str, str] = {}
    for row in rows:
        if row["kind"] == "pair" and {row["a"], row["b"]} == {first, second}:
            named = {"A": row["a"], "B": row["b"], "C": "neither"}.get(row["verdict"])
            verdicts.setdefault(row["question"], {})[row["a"]] = named
            categories[row["question"]] = row["category"]
    read = {q: (v.get(first), v.get(second)) for q, v in verdicts.items()}
    scores = {
        q: 1.0 if both == (second, second) else 0.0 if both == (first, first) else 0.5
        for q, both in read.items()
        if None not in both
    }
    wins, losses = (sum(s == value for s in scores.values()) for value in (1.0, 0.0))
    return {
        "wins": wins,
        "ties": len(scores) - wins - losses,
        "losses": losses,
        "win_rate": _mean(scores.values()),
        "ci": _win_rate_interval(wins, losses, len(scores)) if scores else None,
        "p": mcnemar(wins, losses),
        "n": len(scores),
        "unread": len(read) - len(scores),
        "same_place": _mean(both in ((first, second), (second, first)) for both in read.values()),
        "categories": {
            name: _mean(s for q, s in scores.items() if categories[q] == name)
            for name in _ordered({categories[q] for q in scores})
        },
    }


def usage(rows: Iterable[Row], *, prices: tuple[float, float] | None) -> dict[str, Any]:
    """Tokens of all judgments, and their cost at `prices` a million prompt and answer tokens."""
    listed = list(rows)
    prompt = sum(row["prompt_tokens"] for row in listed)
    completion = sum(row["completion_tokens"] for row in listed)
    cost = None if prices is None else (prompt * prices[0] + completion * prices[1]) / 1e6
    requests = sum(row["asked"] for row in listed)
    counts = {"requests": requests, "prompt_tokens": prompt, "completion_tokens": completion}
    return counts | {"cost": cost}


def _kept(path: Path) -> list[dict[str, Any]]:
    """Rows of earlier starts; what a crash left of a last line is cut off the file."""
    if not path.exists():
        return []
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        with path.open("r+b") as file:
            file.truncate(len(whole))
    rows = []
    for number, row in iter_jsonl(path, remedy="move the file away"):
        if not _is_judgment(row):
            raise UserError(f"{path}:{number}: no judgment of ours; move the file away")
        rows.append(row)
    return rows


def _is_judgment(row: dict[str, Any]) -> bool:
    """Whether this is a row that `judge_item` makes."""
    if is_too_deep(row) or find_lone_surrogate(row):
        return False
    verdict = row.get("verdict", "")
    if row.get("kind") == "grade":
        texts: tuple[str, ...] = ("model",)
        low, high = GRADES
        fits = type(row.get("turn")) is int and (
            verdict is None or (type(verdict) in (int, float) and low <= verdict <= high)
        )
    else:
        texts = ("a", "b")
        fits = row.get("kind") == "pair" and verdict in (None, "A", "B", "C")
    texts += ("key", "question", "category", "reply")
    counts = [row.get(name) for name in ("asked", "prompt_tokens", "completion_tokens")]
    return (
        fits
        and all(isinstance(row.get(name), str) for name in texts)
        and all(type(count) is int and 0 <= count <= LARGEST for count in counts)
    )


def _grades(rows: Sequence[Row]) -> dict[str, Any]:
    read = [row for row in rows if row["verdict"] is not None]
    found = {
        name: [row["verdict"] for row in read if row["category"] == name]
        for name in _ordered({row["category"] for row in read})
    }
    entry: dict[str, Any] = {
        "score": _mean(row["verdict"] for row in read),
        "ci": None,
        "n": len({row["question"] for row in read}),
        "unread": len(rows) - len(read),
        "turns": [
            _mean(row["verdict"] for row in read if row["turn"] == turn)
            for turn in sorted({row["turn"] for row in read})
        ],
        "categories": {name: _mean(grades) for name, grades in found.items()},
    }
    halves = [[name for name in half if name in found] for half in (REASONING, LANGUAGE)]
    if all(halves) and sum(map(len, halves)) == len(found):
        weights = {name: 1 / (2 * len(half)) for half in halves for name in half}
        means = entry["categories"]
        entry["reasoning"], entry["language"] = (
            _mean(means[name] for name in half) for half in halves
        )
        entry["score"] = sum(weights[name] * means[name] for name in found)
        spread = [
            weights[name] ** 2 * np.var(grades, ddof=1) / len(grades)
            for name, grades in found.items()
            if len(grades) > 1
        ]
        if len(spread) == len(found):
            half_width = 1.96 * float(np.sqrt(sum(spread)))
            entry["ci"] = [entry["score"] - half_width, entry["score"] + half_width]
    elif entry["n"] > 1:
        grades, questions = zip(*((row["verdict"], row["question"]) for row in read), strict=True)
        low, high = GRADES
        entry["ci"] = list(score_interval(grades, clusters=questions, low=low, high=high))
    return entry


def _win_rate_interval(wins: int, losses: int, n: int) -> list[float]:
    """The interval of a win rate, a tie half a win: it excludes 1/2 where the sign test rejects."""
    return [0.5 + end / 2 for end in paired_proportion_interval(wins, losses, n)]


def _ordered(names: set[str]) -> list[str]:
    """Categories in the order of the paper's tables, others by name after them."""
    known = [*MT_BENCH, *REASONING, *LANGUAGE]
    return [n for n in known if n in names] + sorted(names.difference(known))


def _mean(values: Iterable[float]) -> float | None:
    listed = list(values)
    return sum(listed) / len(listed) if listed else None
