"""Generate pre-training pages: plain text in two languages, without a chat template.

A page holds several pieces of one kind, as a book would: entries of a gazetteer, a collection of
tales, an exercise sheet, a chapter of a handbook, a scene of a play. Exercise sheets give the base
model its few-shot ability. Held-out problems, plots and questions never appear.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

from recipes.quickstart.generate import everyday, functions, stories, word_problems
from recipes.quickstart.generate.bilingual import Text, side
from recipes.quickstart.generate.everyday import HANDBOOK, TALK
from recipes.quickstart.generate.gazetteer import Entity, ask, portrait, say
from recipes.quickstart.generate.splits import until_trainable

CAST = stories.CAST + stories.NEW_CAST
NAMES = tuple(name for name, _ in CAST)
QUESTION = ("Question: {q}\nAnswer: {a}", "问题: {q}\n回答: {a}")


def exercise(question: str, answer: str, language: str) -> str:
    """Return a question and its answer in the few-shot format of the benchmarks."""
    return side(QUESTION, language).format(q=question, a=answer)


def exam_prompt(question: str, language: str) -> str:
    """Return the few-shot format without the answer."""
    return exercise(question, "", language).rstrip()


def _places(entities: tuple[Entity, ...]) -> tuple[tuple[str, str], ...]:
    return tuple(e.name for e in entities if e.kind == "place")


def _gazetteer(rng: random.Random, entities: tuple[Entity, ...], language: str) -> str:
    chosen = rng.sample(entities, rng.randint(6, 10))
    return "\n\n".join(portrait(rng, e, language=language) for e in chosen)


def _facts(rng: random.Random, entities: tuple[Entity, ...], language: str) -> str:
    """Return single facts, one per line: who wrote what, which towns share an emblem."""
    rows = []
    for _ in range(rng.randint(8, 16)):
        entity = rng.choice(entities)
        key = rng.choice(list(entity.facts))
        rows.append("- " + say(rng, entity, key, language=language))
    return "\n".join(rows)


def _quiz(rng: random.Random, entities: tuple[Entity, ...], language: str) -> str:
    known = [e for e in entities if not e.held_out]
    rows = []
    for _ in range(rng.randint(8, 14)):
        entity = rng.choice(known)
        key = rng.choice(list(entity.facts))
        question = ask(rng, entity, key, language=language)
        rows.append(exercise(question, side(entity.facts[key], language), language))
    return "\n\n".join(rows)


def _tales(rng: random.Random, entities: tuple[Entity, ...], language: str) -> str:
    tales = []
    for _ in range(rng.randint(2, 4)):
        plot = until_trainable(
            lambda: stories.make_plot(rng, cast=CAST, places=_places(entities)), key=lambda p: p.key
        )
        title = stories.goal_object(plot.goal, language)
        text = stories.join(stories.tell(rng, plot, language=language), language)
        tales.append(f"{title[0].upper() + title[1:]}\n{text}")
    return "\n\n".join(tales)


def _sums(rng: random.Random, entities: tuple[Entity, ...], language: str) -> str:
    sheet = []
    for _ in range(rng.randint(8, 12)):
        problem = until_trainable(
            lambda: word_problems.make_problem(rng, NAMES, language=language), key=lambda p: p.key
        )
        sheet.append(exercise(problem.question, problem.answer, language))
    return "\n\n".join(sheet)


def _calls(rng: random.Random, entities: tuple[Entity, ...], language: str) -> str:
    sheet = []
    make = functions.make_evaluation if rng.random() < 0.85 else functions.make_writing
    for _ in range(rng.randint(7, 10)):
        problem = until_trainable(lambda: make(rng, language=language), key=lambda p: p.key)
        sheet.append(exercise(problem.question, problem.answer, language))
    return "\n\n".join(sheet)


def _handbook(rng: random.Random, entities: tuple[Entity, ...], language: str) -> str:
    chapters = []
    for _ in range(rng.randint(4, 7)):
        draw = rng.random()
        if draw < 0.5:
            piece = everyday.explain(rng, range(len(HANDBOOK.how_to)), language=language)
            task = side(HANDBOOK.how_to[piece.topic].task, language)
            title = side((f"How to {task}", f"怎样{task}"), language)
        elif draw < 0.75:
            piece = everyday.enumerate_items(rng, range(len(HANDBOOK.lists)), language=language)
            theme = side(HANDBOOK.lists[piece.topic].theme, language)
            title = theme[0].upper() + theme[1:]
        else:
            piece = everyday.advise(rng, range(len(TALK.worries)), language=language)
            title = piece.question
        chapters.append(f"{title}\n{piece.answer}")
    return "\n\n".join(chapters)


def _play(rng: random.Random, entities: tuple[Entity, ...], language: str) -> str:
    scenes = []
    for _ in range(rng.randint(4, 7)):
        a, b = (side(n, language) for n in rng.sample(NAMES, 2))
        utterances = everyday.small_talk(rng, language=language)
        if rng.random() < 0.2:
            request = everyday.refuse(rng, language=language)
            utterances = [request.question, request.answer]
        scenes.append("\n".join(f"{(a, b)[i % 2]}: {text}" for i, text in enumerate(utterances)))
    return "\n\n".join(scenes)


def _ledger(rng: random.Random, entities: tuple[Entity, ...], language: str) -> str:
    """Return a harbor ledger: boats with random names arrive, and are billed below.

    A name can be predicted only from the lines above, which teaches a small model to copy.
    """
    boats = []
    for _ in range(rng.randint(6, 10)):
        name = "".join(
            rng.choice("bdfgklmnprstvz") + rng.choice("aeiou") for _ in range(rng.randint(2, 4))
        ).capitalize()
        cargo = side(rng.choice(word_problems.THINGS), language)
        boats.append((name, rng.randint(10, 99), cargo, side(rng.choice(NAMES), language)))
    arrive: Text = ("The {b} brings {k} {c} for {n}.", "到港：{b}号，给{n}，{k}个{c}。")
    bill: Text = ("Paid for the {b}: {k} {c} by {n}.", "已付：{b}号，{k}个{c}，{n}。")
    rows = []
    for form in (arrive, bill):
        for b, k, c, n in rng.sample(boats, len(boats)):
            rows.append(side(form, language).format(b=b, k=k, c=c, n=n))
    return "\n".join(rows)


# kind of page -> (writer, its weight among pages)
Writer = Callable[[random.Random, tuple[Entity, ...], str], str]
KINDS: dict[str, tuple[Writer, float]] = {
    "gazetteer": (_gazetteer, 0.18),
    "facts": (_facts, 0.05),
    "quiz": (_quiz, 0.12),
    "tales": (_tales, 0.18),
    "sums": (_sums, 0.36),
    "calls": (_calls, 0.26),
    "handbook": (_handbook, 0.08),
    "play": (_play, 0.05),
    "ledger": (_ledger, 0.15),
}


def pages(seed: int | str, entities: tuple[Entity, ...]) -> Iterator[str]:
    """Yield pages without end, three English for two Chinese."""
    rng = random.Random(f"{seed}/pages")
    writers = [writer for writer, _ in KINDS.values()]
    shares = [share for _, share in KINDS.values()]
    while True:
        language = "en" if rng.random() < 0.6 else "zh"
        writer = rng.choices(writers, shares)[0]
        yield writer(rng, entities, language)
