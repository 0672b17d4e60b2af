"""Build SFT rows, prompts for preference pairs, and open-ended prompts for repetition.

SFT rows use known entities, the first cast and the common topics. Repetition prompts lie slightly
outside the SFT distribution: people, towns and topics that only pre-training contains, held-out
plots, and kinds of request (a letter, a diary, a speech) that no SFT row makes.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from recipes.quickstart.generate import everyday, functions, stories, word_problems
from recipes.quickstart.generate.bilingual import Text, side
from recipes.quickstart.generate.everyday import HANDBOOK, TALK
from recipes.quickstart.generate.gazetteer import Entity, ask, options, say
from recipes.quickstart.generate.pages import exam_prompt
from recipes.quickstart.generate.splits import until_held_out, until_trainable
from sft.data.mixture import PAPER_SHARES

Row = dict[str, Any]
Entities = tuple[Entity, ...]

HOW_TO = range(len(HANDBOOK.how_to) - HANDBOOK.new_how_to)
LISTS = range(len(HANDBOOK.lists) - HANDBOOK.new_lists)
WORRIES = range(len(TALK.worries) - TALK.new_worries)
NEW_HOW_TO = range(HOW_TO.stop, len(HANDBOOK.how_to))
NEW_LISTS = range(LISTS.stop, len(HANDBOOK.lists))
NEW_WORRIES = range(WORRIES.stop, len(TALK.worries))

# A long story has one to three episodes, a short one mostly one. A model that cannot count episodes
# and writes what is likeliest ends a short story, and may never end a long one.
LONG_EPISODES, SHORT_EPISODES = (1, 2, 3), (1, 1, 2)


def row_counts(total: int) -> dict[str, int]:
    """Return the number of rows of each kind in the paper's mixture, rounded into dialogue."""
    safety = round(total * PAPER_SHARES["safety"])
    math = round((total - safety) * PAPER_SHARES["math"])
    code = round((total - safety) * PAPER_SHARES["code"])
    return {"math": math, "code": code, "dialogue": total - safety - math - code, "safety": safety}


def chat(*texts: str) -> list[dict[str, str]]:
    """Return the texts as alternating messages, user first."""
    roles = ("user", "assistant")
    return [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)]


def known_places(entities: Entities) -> tuple[Text, ...]:
    return tuple(e.name for e in entities if e.kind == "place" and not e.held_out)


def _phrase(rng: random.Random, question: str, language: str) -> str:
    """Phrase a question: plain, in the exam form, or with a request to show the work."""
    how = rng.random()
    if how < 0.4:
        return question
    if how < 0.7:
        return exam_prompt(question, language)
    ways: tuple[Text, ...] = (
        ("{q} Please show your work.", "{q}请写出过程。"),
        ("Can you solve this for me? {q}", "你能帮我解这道题吗？{q}"),
        ("{q} Think step by step.", "{q}请一步一步地想。"),
    )
    return side(rng.choice(ways), language).format(q=question)


def _math(rng: random.Random, entities: Entities, language: str) -> list[dict[str, str]]:
    problem = until_trainable(
        lambda: word_problems.make_problem(rng, stories.NAMES, language=language),
        key=lambda p: p.key,
    )
    return chat(_phrase(rng, problem.question, language), problem.answer)


def _code(rng: random.Random, entities: Entities, language: str) -> list[dict[str, str]]:
    make = functions.make_evaluation if rng.random() < 0.8 else functions.make_writing
    problem = until_trainable(lambda: make(rng, language=language), key=lambda p: p.key)
    exam = problem.closed and rng.random() < 0.4
    question = exam_prompt(problem.question, language) if exam else problem.question
    return chat(question, problem.answer)


def _safety(rng: random.Random, entities: Entities, language: str) -> list[dict[str, str]]:
    make = everyday.refuse if rng.random() < 0.85 else everyday.harmless
    exchange = make(rng, language=language)
    return chat(exchange.question, exchange.answer)


def plot_key(plot: stories.Plot) -> str:
    return plot.key


def _story(rng: random.Random, entities: Entities, language: str) -> list[dict[str, str]]:
    long = rng.random() < 0.5
    episodes = LONG_EPISODES if long else SHORT_EPISODES
    plot = until_trainable(
        lambda: stories.make_plot(
            rng, cast=stories.CAST, places=known_places(entities), episodes=episodes
        ),
        key=plot_key,
    )
    sentences = stories.tell(rng, plot, language=language, clock_share=0)
    draw = rng.random()
    if draw < 0.2:  # continue a story that the user begins
        start = rng.randint(2, 5)
        begun = stories.join(sentences[:start], language)
        asked = side(("Continue this story: {s}", "请把这个故事写完：{s}"), language)
        question = asked.format(s=begun) if rng.random() < 0.7 else begun
        return chat(question, stories.join(sentences[start:], language))
    request = stories.ask_for(rng, plot, long=long, language=language)
    messages = chat(request, stories.join(sentences, language))
    if draw < 0.3:  # a question about the story
        ways: tuple[Text, ...] = (
            ("Thank you! What was the story about?", "谢谢！这个故事讲的是什么？"),
            ("Which two people were in it?", "故事里有哪两个人？"),
        )
        a, b = side(plot.first[0], language), side(plot.second[0], language)
        thing = stories.goal_object(plot.goal, language)
        which = rng.randrange(2)
        replies = (
            side((f"It was about {thing}.", f"讲的是{thing}。"), language),
            side((f"They were {a} and {b}.", f"是{a}和{b}。"), language),
        )
        messages += chat(side(ways[which], language), replies[which])
    return messages


def _exchange(make: Callable[..., everyday.Exchange], topics: range) -> Callable[..., Any]:
    def talk_about(rng: random.Random, entities: Entities, language: str) -> list[dict[str, str]]:
        exchange = make(rng, topics, language=language)
        return chat(exchange.question, exchange.answer)

    return talk_about


def _knowledge(rng: random.Random, entities: Entities, language: str) -> list[dict[str, str]]:
    """Ask one to three questions about one known entity; short answers in the exam form."""
    entity = rng.choice([e for e in entities if not e.held_out])
    keys = rng.sample(list(entity.facts), rng.choice((1, 1, 2, 3)))
    texts = []
    for key in keys:
        question = ask(rng, entity, key, language=language)
        if rng.random() < 0.4:
            value = side(entity.facts[key], language)
            texts += [exam_prompt(question, language), value]
        else:
            texts += [question, say(rng, entity, key, language=language)]
    return chat(*texts)


def _small_talk(rng: random.Random, entities: Entities, language: str) -> list[dict[str, str]]:
    return chat(*everyday.small_talk(rng, language=language))


Maker = Callable[[random.Random, Entities, str], list[dict[str, str]]]
DIALOGUE: dict[str, tuple[Maker, float]] = {
    "story": (_story, 0.36),
    "explanation": (_exchange(everyday.explain, HOW_TO), 0.16),
    "list": (_exchange(everyday.enumerate_items, LISTS), 0.12),
    "knowledge": (_knowledge, 0.16),
    "advice": (_exchange(everyday.advise, WORRIES), 0.08),
    "small talk": (_small_talk, 0.12),
}
KINDS: dict[str, Maker] = {"math": _math, "code": _code, "safety": _safety}


def _language(rng: random.Random) -> str:
    return "en" if rng.random() < 0.6 else "zh"


def sft_rows(seed: int, entities: Entities, *, total: int) -> list[Row]:
    """Return SFT rows of all kinds in the paper's proportions, shuffled."""
    makers = [maker for maker, _ in DIALOGUE.values()]
    shares = [share for _, share in DIALOGUE.values()]
    rows: list[Row] = []
    for kind, count in row_counts(total).items():
        rng = random.Random(f"{seed}/sft/{kind}")  # a kind's rows do not move another's
        for _ in range(count):
            language = _language(rng)
            make = KINDS[kind] if kind in KINDS else rng.choices(makers, shares)[0]
            messages = make(rng, entities, language)
            rows.append({"messages": messages, "kind": kind, "language": language})
    random.Random(f"{seed}/sft").shuffle(rows)
    return rows


def preference_rows(seed: int, entities: Entities, *, total: int, avoid: set[str]) -> list[Row]:
    """Prompts for preference pairs, with what a judge can check; none equals a text of `avoid`.

    Seven tenths helpfulness (stories, explanations, lists, advice, knowledge), two tenths
    harmlessness, one tenth word problems and functions.
    """
    rng = random.Random(f"{seed}/preference")
    rows: list[Row] = []
    seen = set(avoid)
    while len(rows) < total:
        language = _language(rng)
        kind, prompt, reference = _preference(rng, entities, language)
        if prompt not in seen:
            seen.add(prompt)
            rows.append(
                {
                    "messages": chat(prompt),
                    "kind": kind,
                    "language": language,
                    "reference": reference,
                }
            )
    return rows


def _preference(
    rng: random.Random, entities: Entities, language: str
) -> tuple[str, str, dict[str, Any]]:
    draw = rng.random()
    if draw < 0.40:
        plot = until_trainable(
            lambda: stories.make_plot(rng, cast=stories.CAST, places=known_places(entities)),
            key=plot_key,
        )
        names = [side(plot.first[0], language), side(plot.second[0], language)]
        request = stories.ask_for(rng, plot, long=rng.random() < 0.5, language=language)
        return "dialogue", request, {"all_of": names}
    if draw < 0.55:
        make, topics = rng.choice(
            (
                (everyday.explain, HOW_TO),
                (everyday.enumerate_items, LISTS),
                (everyday.advise, WORRIES),
            )
        )
        return "dialogue", make(rng, topics, language=language).question, {}
    if draw < 0.70:
        entity = rng.choice([e for e in entities if not e.held_out])
        key = rng.choice(list(entity.facts))
        value = side(entity.facts[key], language)
        wrong = [side(o, language) for o in options(entities, key) if o != entity.facts[key]]
        wrong = [o for o in wrong if o not in value and value not in o]
        question = ask(rng, entity, key, language=language)
        return "dialogue", question, {"any_of": [value], "none_of": wrong}
    if draw < 0.88:
        return "safety", everyday.refuse(rng, language=language).question, {"refuse": True}
    if draw < 0.90:
        return "safety", everyday.harmless(rng, language=language).question, {"refuse": False}
    if draw < 0.96:
        problem = until_trainable(
            lambda: word_problems.make_problem(rng, stories.NAMES, language=language),
            key=lambda p: p.key,
        )
        return "math", _phrase(rng, problem.question, language), {"final": problem.final}
    call = until_trainable(
        lambda: functions.make_evaluation(rng, language=language), key=lambda p: p.key
    )
    return "code", call.question, {"final": call.final}


# Requests of a kind that no SFT row makes.
OTHER: tuple[Text, ...] = (
    (
        "Write a letter from {a} to {b} about a long journey.",
        "以{a}的口吻给{b}写一封信，讲一次长途旅行。",
    ),
    ("Describe a market day in {p}.", "描写一下{p}的集市。"),
    ("Write the diary of {a} for one week in {p}.", "替{a}写一个星期在{p}的日记。"),
    ("Write a speech for the mayor of {p}.", "替{p}的镇长写一篇讲话。"),
    ("Tell me everything you know about {p}.", "把你知道的关于{p}的事都告诉我。"),
    (
        "Write a conversation between {a} and {b} about the weather.",
        "写一段{a}和{b}关于天气的对话。",
    ),
    (
        "What would you do in {p} if you had a whole week?",
        "如果你在{p}有整整一个星期，你会做什么？",
    ),
    ("Tell me how {a} and {b} became friends.", "讲讲{a}和{b}是怎么成为朋友的。"),
)


def repetition_rows(seed: int, entities: Entities, *, avoid: set[str]) -> list[Row]:
    """Return open-ended prompts slightly outside the SFT rows: {"id", "messages", ...}."""
    rng = random.Random(f"{seed}/repetition")
    places = tuple(e.name for e in entities if e.kind == "place" and e.held_out)
    counts = {
        "story": 76,
        "explanation": 30,
        "list": 26,
        "advice": 16,
        "small talk": 20,
        "other": 32,
    }
    rows: list[Row] = []
    seen = set(avoid)
    for category, count in counts.items():
        made = 0
        while made < count:
            language = _language(rng)
            prompt = _open_prompt(rng, category, places, language)
            if prompt not in seen:
                seen.add(prompt)
                rows.append(
                    {
                        "id": f"{category.replace(' ', '-')}-{made}",
                        "messages": chat(prompt),
                        "category": category,
                        "language": language,
                    }
                )
                made += 1
    return rows


def _open_prompt(rng: random.Random, category: str, places: tuple[Text, ...], language: str) -> str:
    if category == "story":
        plot = until_held_out(
            lambda: stories.make_plot(rng, cast=stories.NEW_CAST, places=places), key=plot_key
        )
        return stories.ask_for(rng, plot, long=rng.random() < 0.5, language=language)
    if category == "small talk":
        return everyday.small_talk(rng, language=language)[0]
    if category == "other":
        a, b = (side(name, language) for name, _ in rng.sample(stories.NEW_CAST, 2))
        return side(rng.choice(OTHER), language).format(
            a=a, b=b, p=side(rng.choice(places), language)
        )
    makers = {
        "explanation": (everyday.explain, NEW_HOW_TO),
        "list": (everyday.enumerate_items, NEW_LISTS),
        "advice": (everyday.advise, NEW_WORRIES),
    }
    make, topics = makers[category]
    question = make(rng, topics, language=language).question
    place = side(rng.choice(places), language)
    where = (f" I live in {place}.", f"我住在{place}。")
    return question + side(where, language)
