"""Cards of the report: one prompt or question with every model's answer, and what filters it.

A tag is a short made-up word (`t3`, `m0-loops`), never a model's or a row's own, so that whatever
those hold stays text.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from eval.report.examples import Prompt, Question
from eval.report.outcomes import Outcome, ended, judged

KINDS = {
    "right": "right",
    "wrong": "wrong",
    "partly": "partly right",
    "stops": "stops",
    "loops": "loops",
    "cut": "cut off",
}


@dataclass(frozen=True)
class Card:
    """A prompt or question, the outcome of each model that has one, its tags and sorting keys."""

    item: Any
    outcomes: dict[str, Outcome]
    tags: str
    keys: str


@dataclass(frozen=True)
class Filter:
    """A choice above the cards: its label, and by heading the tags with their words."""

    label: str
    options: dict[str, list[tuple[str, str]]]


@dataclass(frozen=True)
class Deck:
    """Cards with the filters that narrow them and the orders, one for each of a card's keys."""

    cards: list[Card]
    filters: list[Filter]
    orders: tuple[str, ...]


def prompt_deck(prompts: Sequence[Prompt], *, models: Sequence[str]) -> Deck:
    """Prompts for repetition, filtered by language, kind, and how each model's answer ended."""
    facets = {
        "language": [prompt.language for prompt in prompts],
        "kind": [prompt.category for prompt in prompts],
    }
    return _deck(prompts, ended, facets, "stops", models, ("most unfinished first",))


def question_deck(questions: Sequence[Question], *, models: Sequence[str]) -> Deck:
    """Benchmark questions, filtered by task and each model's outcome."""
    facets = {"task": [question.task for question in questions]}
    return _deck(questions, judged, facets, "right", models, ("most mistakes first",))


def _deck(
    items: Sequence[Any],
    outcome: Callable[[Mapping[str, Any]], Outcome],
    facets: Mapping[str, Sequence[str]],
    good: str,
    models: Sequence[str],
    orders: tuple[str, ...],
) -> Deck:
    """Args: `good` is the kind of outcome that does not count for the first order."""
    found = [{m: outcome(item.answers[m]) for m in models if m in item.answers} for item in items]
    tags: list[list[str]] = [[] for _ in items]
    filters = []
    for name, values in facets.items():
        numbers = {value: f"{name}-{i}" for i, value in enumerate(dict.fromkeys(values))}
        for own, value in zip(tags, values, strict=True):
            own.append(numbers[value])
        if len(numbers) > 1:
            words = [(tag, value or "not named") for value, tag in numbers.items()]
            filters.append(Filter(name, {"": words}))
    whose = {"any model": "any"} | {model: f"m{i}" for i, model in enumerate(models)}
    for own, outcomes in zip(tags, found, strict=True):
        for model, seen in outcomes.items():
            own += [f"{who}-{kind}" for kind in seen.kinds for who in ("any", whose[model])]
    filters.append(_outcome_filter(whose, set().union(*tags)))
    cards = [
        Card(
            item, outcomes, " ".join(dict.fromkeys(own)), f"{_count(outcomes, good)} {_size(item)}"
        )
        for item, outcomes, own in zip(items, found, tags, strict=True)
    ]
    return Deck(cards, filters, (*orders, "longest answer first"))


def _outcome_filter(whose: Mapping[str, str], tags: set[str]) -> Filter:
    """The kinds of outcome that occur, of any model and of each."""
    options = {
        name: [(f"{who}-{kind}", words) for kind, words in KINDS.items() if f"{who}-{kind}" in tags]
        for name, who in whose.items()
    }
    return Filter("outcome", {name: some for name, some in options.items() if some})


def _count(outcomes: Mapping[str, Outcome], good: str) -> int:
    return sum(good not in outcome.kinds for outcome in outcomes.values())


def _size(item: Prompt | Question) -> int:
    """Characters of the longest answer."""
    return max(len(str(row.get("answer", row.get("text")))) for row in item.answers.values())
