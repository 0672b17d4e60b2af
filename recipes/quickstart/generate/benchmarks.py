"""Held-out benchmark documents for the lm-eval tasks, and their few-shot examples.

No document shares its question with training: problems, functions and plots are kept apart by the
hash of their key, facts by the entity they ask about. The few-shot examples come from training's
side, so they give nothing away.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from recipes.quickstart.generate import functions, stories, word_problems
from recipes.quickstart.generate.bilingual import LANGUAGES, side
from recipes.quickstart.generate.gazetteer import Entity, ask, options
from recipes.quickstart.generate.pages import CAST, NAMES, exam_prompt
from recipes.quickstart.generate.splits import until_held_out, until_trainable

Doc = dict[str, Any]
Entities = tuple[Entity, ...]
Draw = Callable[[Callable[[], Any]], Any]


def facts_docs(seed: int, entities: Entities, *, total: int, held_out: bool) -> list[Doc]:
    """Return four-way choices on facts of held-out (or, for few-shot, known) entities."""
    rng = random.Random(f"{seed}/facts/{held_out}")
    docs: list[Doc] = []
    seen: set[str] = set()
    while len(docs) < total:
        language = LANGUAGES[len(docs) % 2]
        entity = rng.choice([e for e in entities if e.held_out == held_out])
        key = rng.choice(list(entity.facts))
        right = entity.facts[key]
        wrong = rng.sample([o for o in options(entities, key) if o != right], 3)
        choices = [right, *wrong]
        rng.shuffle(choices)
        question = ask(rng, entity, key, language=language)
        if question in seen:
            continue
        seen.add(question)
        docs.append(
            {
                "id": f"facts-{len(docs)}",
                "language": language,
                "prompt": exam_prompt(question, language),
                "choices": [side(c, language) for c in choices],
                "gold": choices.index(right),
                "cluster": entity.name[0],
            }
        )
    return docs


def worked_docs(
    seed: int,
    make: Callable[..., word_problems.Problem],
    *,
    name: str,
    total: int,
    held_out: bool,
) -> list[Doc]:
    """Return word problems or function calls; `solution` is the few-shot target."""
    rng = random.Random(f"{seed}/{name}/{held_out}")
    draw = until_held_out if held_out else until_trainable
    docs: list[Doc] = []
    seen: set[str] = set()
    while len(docs) < total:
        language = LANGUAGES[len(docs) % 2]

        def problem(language: str = language) -> word_problems.Problem:
            return make(rng, language=language)

        item = draw(problem, key=lambda p: p.key)
        # lm-eval reads a target in brackets as several targets: lists are stored without.
        final = item.final.strip("[]")
        if item.key in seen or not final:
            continue
        seen.add(item.key)
        docs.append(
            {
                "id": f"{name}-{len(docs)}",
                "language": language,
                "prompt": exam_prompt(item.question, language),
                "solution": item.answer,
                "final": final,
                "cluster": item.key.split(":")[0],
            }
        )
    return docs


def math_docs(seed: int, *, total: int, held_out: bool) -> list[Doc]:
    """Return word problems with any of the names."""

    def make(rng: random.Random, *, language: str) -> word_problems.Problem:
        return word_problems.make_problem(rng, NAMES, language=language)

    return worked_docs(seed, make, name="math", total=total, held_out=held_out)


def code_docs(seed: int, *, total: int, held_out: bool) -> list[Doc]:
    """Return small functions to evaluate."""
    return worked_docs(seed, functions.make_evaluation, name="code", total=total, held_out=held_out)


# Slots whose sentence follows from the sentences before it, so that exactly one choice is right.
DETERMINED = ("reason", "speech", "reply", "solution", "ending", "after")


def completion_docs(seed: int, entities: Entities, *, total: int) -> list[Doc]:
    """The next sentence of a story among four; the wrong ones fill the same place in other plots.

    The wrong sentences speak of the same two people in the same town. Choices carry the space that
    divides English sentences, so that the task needs no delimiter of its own.
    """
    rng = random.Random(f"{seed}/completion")
    places = tuple(e.name for e in entities if e.kind == "place")
    docs: list[Doc] = []
    while len(docs) < total:
        language = LANGUAGES[len(docs) % 2]
        plot = until_held_out(
            lambda: stories.make_plot(rng, cast=CAST, places=places), key=lambda p: p.key
        )
        sentences = stories.tell_lines(rng, plot, language=language)
        spots = [i for i, (slot, _) in enumerate(sentences) if slot in DETERMINED]
        spot = rng.choice(spots)
        slot, right = sentences[spot]
        present = {sentence for _, sentence in sentences}
        wrong: list[str] = []
        while len(wrong) < 3:
            other = stories.make_plot(rng, cast=(plot.first, plot.second), places=(plot.place,))
            other = stories.Plot(plot.first, plot.second, plot.place, other.goal, other.episodes)
            candidates = [
                sentence
                for s, sentence in stories.tell_lines(rng, other, language=language)
                if s == slot and sentence not in present and sentence not in wrong
            ]
            if candidates and not _same_words(candidates[0], (right, *wrong)):
                wrong.append(candidates[0])
        choices = [right, *wrong]
        rng.shuffle(choices)
        gap = " " if language == "en" else ""
        docs.append(
            {
                "id": f"completion-{len(docs)}",
                "language": language,
                "prompt": stories.join([s for _, s in sentences[:spot]], language),
                "choices": [gap + choice for choice in choices],
                "gold": choices.index(right),
                "cluster": _part(plot, sentences[: spot + 1]),
            }
        )
    return docs


def _part(plot: stories.Plot, sentences: list[stories.Line]) -> str:
    """Return the goal or episode that the last sentence belongs to: its template."""
    if sentences[-1][0] in ("speech", "reply", "solution"):
        return plot.episodes[sum(slot == "obstacle" for slot, _ in sentences) - 1]
    return plot.goal


def _same_words(sentence: str, others: tuple[str, ...]) -> bool:
    """Return whether two sentences differ only in the verb ("said", "whispered")."""

    def speech(text: str) -> str:
        if text.startswith('"'):
            return text.split('"')[1]
        return text.split("”")[0] if text.startswith("“") else text

    return any(speech(sentence) == speech(other) for other in others)
