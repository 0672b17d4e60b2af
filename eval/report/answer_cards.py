"""Cards of the report: one prompt or question with every model's answer, and what filters it.

A tag is a short generated word (`t3`, `m0-loops`), never the name of a model or the text of a row,
so that these stay text.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from eval.report.examples import BenchmarkQuestion, Prompt
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

    item: Prompt | BenchmarkQuestion
    outcomes: dict[str, Outcome]
    keys: str
    tags: str = ""


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
    """Return prompts for repetition, filtered by language, kind and how the answers ended."""
    cards = []
    for prompt in prompts:
        outcomes = {model: ended(row) for model, row in prompt.answers.items()}
        longest = max(len(row["text"]) for row in prompt.answers.values())
        cards.append(Card(prompt, outcomes, _keys(outcomes, "stops", longest)))
    facets = {
        "language": [prompt.language for prompt in prompts],
        "kind": [prompt.category for prompt in prompts],
    }
    return _deck(cards, facets, models, "most unfinished first")


def question_deck(questions: Sequence[BenchmarkQuestion], *, models: Sequence[str]) -> Deck:
    """Return benchmark questions, filtered by task and each model's outcome."""
    cards = []
    for question in questions:
        outcomes = {model: judged(row) for model, row in question.answers.items()}
        longest = max(len(row["answer"]) for row in question.answers.values())
        cards.append(Card(question, outcomes, _keys(outcomes, "right", longest)))
    facets = {"task": [question.task for question in questions]}
    return _deck(cards, facets, models, "most mistakes first")


def _keys(outcomes: Mapping[str, Outcome], good: str, longest: int) -> str:
    """Return the sorting keys of a card, one for each order of its deck."""
    return f"{sum(good not in outcome.kinds for outcome in outcomes.values())} {longest}"


def _deck(
    cards: Sequence[Card], facets: Mapping[str, Sequence[str]], models: Sequence[str], order: str
) -> Deck:
    """Tag the cards by facet and outcome, and offer the tags as filters."""
    tags: list[list[str]] = [[] for _ in cards]
    filters = []
    for name, values in facets.items():
        numbers = {value: f"{name}-{i}" for i, value in enumerate(dict.fromkeys(values))}
        for own, value in zip(tags, values, strict=True):
            own.append(numbers[value])
        if len(numbers) > 1:
            words = [(tag, value or "not named") for value, tag in numbers.items()]
            filters.append(Filter(name, {"": words}))
    prefixes = {"any model": "any"} | {model: f"m{i}" for i, model in enumerate(models)}
    for own, card in zip(tags, cards, strict=True):
        for model, outcome in card.outcomes.items():
            own += [f"{who}-{kind}" for kind in outcome.kinds for who in ("any", prefixes[model])]
    filters.append(_outcome_filter(prefixes, set().union(*tags)))
    tagged = [
        replace(card, tags=" ".join(dict.fromkeys(own)))
        for card, own in zip(cards, tags, strict=True)
    ]
    return Deck(tagged, filters, (order, "longest answer first"))


def _outcome_filter(prefixes: Mapping[str, str], tags: set[str]) -> Filter:
    """Return the kinds of outcome that occur, of any model and of each."""
    options = {
        name: [(f"{who}-{kind}", words) for kind, words in KINDS.items() if f"{who}-{kind}" in tags]
        for name, who in prefixes.items()
    }
    return Filter("outcome", {name: some for name, some in options.items() if some})
