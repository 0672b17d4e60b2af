"""Judgments, stored one by one so that none is paid for twice, and the tables made of them."""

import json
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from itertools import islice
from pathlib import Path
from typing import cast

import numpy as np
from typing_extensions import NotRequired, TypedDict

from eval.metrics.mcnemar import mcnemar
from eval.metrics.stats import paired_proportion_interval, score_interval
from eval.open_ended.judge_prompts import AskJudge, JudgeRequest, judge_request
from eval.schema import GradeJudgment, Judgment, PairJudgment
from eval.schema_checks import first_mismatch
from sft.data.json_values import find_lone_surrogate
from sft.errors import UserError
from sft.system.atomic_files import iter_jsonl, writing

# The paper's order of MT-Bench's categories (arXiv 2401.02954, table 8).
MT_BENCH = (
    *("stem", "humanities", "reasoning", "coding"),
    *("math", "extraction", "roleplay", "writing"),
)
# AlignBench's two halves; its overall score is the mean of theirs, each the mean of its categories.
REASONING = ("数学计算", "逻辑推理")
LANGUAGE = ("基本任务", "中文理解", "综合问答", "文本写作", "角色扮演", "专业能力")
LOWEST, HIGHEST = 1.0, 10.0  # grades


class Grades(TypedDict):
    """Mean grades of one model; `n` counts questions, `unread` replies without a verdict."""

    score: float | None
    ci: list[float] | None
    n: int
    unread: int
    turns: list[float | None]
    categories: dict[str, float | None]
    reasoning: NotRequired[float | None]
    language: NotRequired[float | None]


class PairResult(TypedDict):
    """How one model compares with another; a tie is half a win in `win_rate`."""

    wins: int
    ties: int
    losses: int
    win_rate: float | None
    ci: list[float] | None
    p: float
    n: int
    unread: int
    same_place: float | None
    categories: dict[str, float | None]


class Usage(TypedDict):
    """Requests and tokens of all judgments, and their cost."""

    requests: int
    prompt_tokens: int
    completion_tokens: int
    cost: float | None


def judge_all(
    requests: Sequence[JudgeRequest],
    ask: AskJudge,
    *,
    path: Path,
    workers: int = 4,
    progress: Callable[[int], object] | None = None,
) -> list[Judgment]:
    """Judge what `path` does not hold yet and append it; return rows in the requests' order.

    Args:
        path: judgments.jsonl, created if missing; a line torn by a crash is cut off.
        workers: concurrent requests.

    Raises:
        UserError: the endpoint failed for good; `path` holds every judgment received before.
    """
    done = {row["key"]: row for row in _stored(path)}
    left = [request for request in requests if request.key not in done]
    if progress is not None:
        progress(len(requests) - len(left))
    failure: UserError | None = None
    with (
        writing(path),
        path.open("a", encoding="utf-8") as file,
        ThreadPoolExecutor(workers) as pool,
    ):
        waiting = iter(left)
        running = {pool.submit(judge_request, each, ask) for each in islice(waiting, workers)}
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
                os.fsync(file.fileno())  # a paid judgment survives a crash of the machine
                done[row["key"]] = row
                if progress is not None:
                    progress(1)
                # After a failure, running requests are still stored and no new one starts.
                following = None if failure else next(waiting, None)
                if following is not None:
                    running.add(pool.submit(judge_request, following, ask))
    if failure is not None:
        raise failure
    return [done[request.key] for request in requests]


def grade_table(rows: Iterable[Judgment]) -> dict[str, Grades]:
    """Return mean grades by model.

    `score` is the mean over all turns, with an interval that clusters turns by question; for
    AlignBench it is the mean of its two halves, which are added. Replies without a verdict are
    left out.
    """
    by_model: dict[str, list[GradeJudgment]] = {}
    for row in rows:
        if row["kind"] == "grade":
            by_model.setdefault(row["model"], []).append(row)
    return {model: _grades(own) for model, own in by_model.items()}


def pair_table(rows: Iterable[Judgment], *, first: str, second: str) -> PairResult:
    """Return how `second` compares with `first`.

    Each question was judged in both orders. The two verdicts must name the same model; if they do
    not (the judge went by the place) or one is "neither", the question is a tie. p is that of the
    sign test of wins and losses. `same_place` is the share of questions on which the judge named
    the same place twice.
    """
    verdicts: dict[str, dict[str, str | None]] = {}
    categories: dict[str, str] = {}
    for row in rows:
        if row["kind"] == "pair" and {row["a"], row["b"]} == {first, second}:
            named = {"A": row["a"], "B": row["b"], "C": "neither"}
            verdict = None if row["verdict"] is None else named[row["verdict"]]
            verdicts.setdefault(row["question"], {})[row["a"]] = verdict
            categories[row["question"]] = row["category"]
    read = {q: (v.get(first), v.get(second)) for q, v in verdicts.items()}
    scores = {
        q: 1.0 if both == (second, second) else 0.0 if both == (first, first) else 0.5
        for q, both in read.items()
        if None not in both
    }
    wins, losses = (sum(s == value for s in scores.values()) for value in (1.0, 0.0))
    # A tie is half a win, so the interval of wins - losses is halved around 1/2.
    bounds = paired_proportion_interval(wins, losses, len(scores))
    return {
        "wins": wins,
        "ties": len(scores) - wins - losses,
        "losses": losses,
        "win_rate": _mean(scores.values()),
        "ci": [0.5 + end / 2 for end in bounds] if scores else None,
        "p": mcnemar(wins, losses),
        "n": len(scores),
        "unread": len(read) - len(scores),
        "same_place": _mean(both in ((first, second), (second, first)) for both in read.values()),
        "categories": {
            name: _mean(s for q, s in scores.items() if categories[q] == name)
            for name in _ordered({categories[q] for q in scores})
        },
    }


def usage(rows: Iterable[Judgment], *, prices: tuple[float, float] | None) -> Usage:
    """Return the tokens of all judgments and their cost.

    Args:
        prices: of a million prompt tokens and a million answer tokens.
    """
    listed = list(rows)
    prompt = sum(row["prompt_tokens"] for row in listed)
    completion = sum(row["completion_tokens"] for row in listed)
    return {
        "requests": sum(row["asked"] for row in listed),
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "cost": None if prices is None else (prompt * prices[0] + completion * prices[1]) / 1e6,
    }


def _stored(path: Path) -> list[Judgment]:
    """Read the rows of earlier starts, and cut a line torn by a crash off the file."""
    if not path.exists():
        return []
    content = path.read_bytes()
    complete = content.rfind(b"\n") + 1
    if complete < len(content):
        os.truncate(path, complete)
    rows = []
    for number, row in iter_jsonl(path, remedy="move the file away"):
        schema = GradeJudgment if row.get("kind") == "grade" else PairJudgment
        if first_mismatch(row, schema) or find_lone_surrogate(row):
            raise UserError(f"{path}:{number}: no judgment of ours; move the file away")
        rows.append(cast(Judgment, row))
    return rows


def _grades(rows: Sequence[GradeJudgment]) -> Grades:
    read = [(row, row["verdict"]) for row in rows if row["verdict"] is not None]
    found = {
        name: [grade for row, grade in read if row["category"] == name]
        for name in _ordered({row["category"] for row, _ in read})
    }
    means = {name: sum(grades) / len(grades) for name, grades in found.items()}
    entry: Grades = {
        "score": _mean(grade for _, grade in read),
        "ci": None,
        "n": len({row["question"] for row, _ in read}),
        "unread": len(rows) - len(read),
        "turns": [
            _mean(grade for row, grade in read if row["turn"] == turn)
            for turn in sorted({row["turn"] for row, _ in read})
        ],
        "categories": {**means},
    }
    halves = [[name for name in half if name in found] for half in (REASONING, LANGUAGE)]
    if all(halves) and sum(map(len, halves)) == len(found):
        entry["reasoning"], entry["language"] = (
            _mean(means[name] for name in half) for half in halves
        )
        weights = {name: 1 / (2 * len(half)) for half in halves for name in half}
        entry["score"] = score = sum(weights[name] * means[name] for name in found)
        if all(len(grades) > 1 for grades in found.values()):
            variance = sum(
                weights[name] ** 2 * np.var(grades, ddof=1) / len(grades)
                for name, grades in found.items()
            )
            half_width = 1.96 * float(np.sqrt(variance))
            entry["ci"] = [score - half_width, score + half_width]
    elif entry["n"] > 1:
        grades, questions = zip(*((grade, row["question"]) for row, grade in read), strict=True)
        bounds = score_interval(grades, clusters=questions, low=LOWEST, high=HIGHEST)
        entry["ci"] = list(bounds)
    return entry


def _ordered(names: set[str]) -> list[str]:
    """Sort categories in the order of the paper's tables, others by name after them."""
    known = [*MT_BENCH, *REASONING, *LANGUAGE]
    return [n for n in known if n in names] + sorted(names.difference(known))


def _mean(values: Iterable[float]) -> float | None:
    listed = list(values)
    return sum(listed) / len(listed) if listed else None
