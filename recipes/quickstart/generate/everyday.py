"""Build explanations, lists, advice, small talk and refusals from the sentence files."""

from __future__ import annotations

import random
from dataclasses import dataclass

from recipes.quickstart.generate.bilingual import Text, load_sentences, side

HANDBOOK = load_sentences("handbook")
TALK = load_sentences("talk")


@dataclass(frozen=True)
class Exchange:
    """One question and one answer; `topic` is an index for splits, `steps` its parts."""

    question: str
    answer: str
    topic: int
    steps: tuple[str, ...] = ()


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


_ORDER = (
    ("First", "首先"),
    ("Second", "第二步"),
    ("Third", "第三步"),
    ("After that", "然后"),
    ("Next", "接下来"),
    ("Finally", "最后"),
)


def explain(rng: random.Random, topics: range, *, language: str) -> Exchange:
    """Explain a task in numbered or ordered steps, 8 to 14 sentences."""
    english = language == "en"
    topic = rng.choice(topics)
    guide = HANDBOOK.how_to[topic]
    do, need = side(guide.task, language), side(guide.needs, language)
    ways: tuple[Text, ...] = (
        ("How do I {d}? Please explain it step by step.", "怎样{d}？请一步一步地解释。"),
        ("Explain in detail how to {d}.", "请详细说明怎样{d}。"),
        ("I want to {d}. What do I have to do?", "我想{d}，该怎么做？"),
        ("Can you teach me to {d}?", "你能教我{d}吗？"),
    )
    question = side(rng.choice(ways), language).format(d=do)
    intro = rng.choice(
        (
            ("To {d} you need {n}.", "要{d}，你需要{n}。"),
            ("It is not hard to {d}. You need {n}.", "{d}并不难。你需要{n}。"),
            ("Before you begin to {d}, prepare {n}.", "开始{d}之前，先准备好{n}。"),
        )
    )
    numbered = rng.random() < 0.4
    sentences = []
    for i, step in enumerate(guide.steps):
        text = side(step, language)
        if numbered:
            sentence = f"{i + 1}. {_capital(text)}" + ("." if english else "。")
        elif english:
            sentence = f"{_ORDER[i][0]}, {text}."
        else:
            sentence = f"{_ORDER[i][1]}，{text}。"
        if rng.random() < 0.35:
            sentence += (" " if english else "") + side(rng.choice(HANDBOOK.because), language)
        sentences.append(sentence)
    gap = "\n" if numbered else (" " if english else "")
    first = side(intro, language).format(d=do, n=need)
    answer = gap.join((first, *sentences, side(guide.tip, language)))
    return Exchange(question, answer, topic, tuple(sentences))


def enumerate_items(rng: random.Random, topics: range, *, language: str) -> Exchange:
    """Return a list of three to seven items in random order, each with its reason or without."""
    english = language == "en"
    topic = rng.choice(topics)
    entries = HANDBOOK.lists[topic]
    count = rng.randint(3, 7)
    what = side(entries.theme, language)
    ways: tuple[Text, ...] = (
        ("Give me a list of {k} {w}.", "给我列出{k}个{w}。"),
        ("Name {k} {w}.", "说出{k}个{w}。"),
        ("I need {k} {w}. Can you make a list?", "我需要{k}个{w}，能列个单子吗？"),
    )
    question = side(rng.choice(ways), language).format(k=count, w=what)
    reasons = rng.random() < 0.65
    if reasons:
        question += side((" Tell me why, too.", "也说说理由。"), language)
    rows = []
    for i, entry in enumerate(rng.sample(entries.items, count)):
        text, why = _capital(side(entry.item, language)), side(entry.reason, language)
        if reasons:
            text += f", because {why}." if english else f"，因为{why}。"
        rows.append(f"{i + 1}. {text}")
    intro = side((f"Here are {count} {what}:", f"下面是{count}个{what}："), language)
    return Exchange(question, "\n".join((intro, *rows)), topic, tuple(rows))


def advise(rng: random.Random, topics: range, *, language: str) -> Exchange:
    """Give advice on a worry: sympathy, three or four pieces in random order, good wishes."""
    topic = rng.choice(topics)
    worry = TALK.worries[topic]
    what = side(worry.worry, language)
    ways: tuple[Text, ...] = (
        ("{w}. What should I do?", "{w}。我该怎么办？"),
        ("I need your advice: {w}.", "我想听听你的建议：{w}。"),
        ("Can you help me? {w}.", "你能帮帮我吗？{w}。"),
    )
    question = side(rng.choice(ways), language).format(w=what)
    sympathy: tuple[Text, ...] = (
        ("I am sorry to hear that.", "听到这个我很难过。"),
        ("Many people know this feeling.", "很多人都有这种感觉。"),
        ("Thank you for telling me.", "谢谢你告诉我。"),
    )
    wishes: tuple[Text, ...] = (
        ("I am sure that it will get better.", "我相信会好起来的。"),
        ("Tell me later how it went.", "以后告诉我结果怎么样。"),
        ("Small steps are enough.", "一小步一小步就够了。"),
    )
    picked = [side(a, language) for a in rng.sample(worry.advice, rng.randint(3, 4))]
    parts = (
        side(rng.choice(sympathy), language),
        *picked,
        side(rng.choice(wishes), language),
    )
    answer = (" " if language == "en" else "").join(parts)
    return Exchange(_capital(question), answer, topic, tuple(picked))


def small_talk(rng: random.Random, *, language: str) -> list[str]:
    """Return one to three turns of small talk, user first: an even number of utterances."""
    news = rng.choice(TALK.news)
    felt_as = rng.choice(news.moods)
    mood = next(m for m in TALK.moods if m.mood[0] == felt_as)
    gap = " " if language == "en" else ""
    greeting: tuple[Text, ...] = (
        ("Hello!", "你好！"),
        ("Good evening!", "晚上好！"),
        ("Hi there.", "嗨。"),
    )
    tell = side((f"{_capital(news.event[0])}.", f"{news.event[1]}。"), language)
    feel = side(
        (f"I feel {mood.mood[0]}.", f"我觉得很{mood.mood[1].removeprefix('有点')}。"), language
    )
    opened = side(rng.choice(greeting), language)
    back = side(rng.choice(TALK.questions_back), language)
    replied = side(news.comment, language)
    felt = side(mood.answer, language)
    turns = rng.randint(1, 3)
    if turns == 1:
        return [opened + gap + tell + gap + feel, gap.join((replied, felt, back))]
    opening = [tell, replied + gap + back]
    second = [feel, felt]
    if turns == 2:
        return [opened + gap + opening[0], opening[1], *second]
    thanks = side(("Thank you for listening.", "谢谢你听我说。"), language)
    bye = side(
        rng.choice(
            (
                ("You are welcome. I wish you a good night.", "不客气。祝你晚安。"),
                ("Any time. Come back whenever you like.", "随时欢迎，想聊就来。"),
                ("It was nice to talk with you.", "和你聊天很愉快。"),
            )
        ),
        language,
    )
    return [opened + gap + opening[0], opening[1], *second, thanks, bye]


def refuse(rng: random.Random, *, language: str) -> Exchange:
    """Return a harmful request, perhaps with a pretext, and a refusal that gives a reason."""
    topic = rng.randrange(len(TALK.harms))
    harm = TALK.harms[topic]
    target = rng.choice(sum((getattr(TALK, group) for group in harm.targets), ()))
    do = side(harm.deed, language).format(x=side(target, language))
    question = side(rng.choice(TALK.pretexts), language).format(d=do)
    fill = {"d": do, "why": side(harm.reason, language), "instead": side(harm.instead, language)}
    if language == "en":
        fill["d"] = do.replace(" my ", " your ")
    answer = side(rng.choice(TALK.refusals), language).format(**fill)
    better = side(rng.choice(TALK.insteads), language).format(**fill)
    return Exchange(question, answer + (" " if language == "en" else "") + better, topic)


def harmless(rng: random.Random, *, language: str) -> Exchange:
    """Return a request that only sounds dangerous, and its answer."""
    topic = rng.randrange(len(TALK.harmless))
    request = TALK.harmless[topic]
    return Exchange(side(request.question, language), side(request.answer, language), topic)
