"""Build stories: two characters, a goal, one to three episodes with speech, and an ending."""

from __future__ import annotations

import random
from dataclasses import dataclass

from recipes.quickstart.generate.bilingual import Text, load_sentences, side

Character = tuple[Text, str]  # name, "f" or "m"
PLOTS = load_sentences("plots")
SENTENCES = load_sentences("stories")
CAST: tuple[Character, ...] = tuple((c.name, c.gender) for c in SENTENCES.cast)
NEW_CAST: tuple[Character, ...] = tuple((c.name, c.gender) for c in SENTENCES.new_cast)
NAMES: tuple[Text, ...] = tuple(name for name, _ in CAST)
_GOALS = {goal.key: goal for goal in PLOTS.goals}
_EPISODES = {episode.key: episode for episode in PLOTS.episodes}


@dataclass(frozen=True)
class Plot:
    """The content of a story; `tell` draws its wording."""

    first: Character
    second: Character
    place: Text
    goal: str
    episodes: tuple[str, ...]

    @property
    def key(self) -> str:
        return ":".join(("story", self.goal, *self.episodes))


def make_plot(
    rng: random.Random,
    *,
    cast: tuple[Character, ...],
    places: tuple[Text, ...],
    episodes: tuple[int, ...] = (1, 2, 3),
) -> Plot:
    """Return a plot with two characters of `cast` and one of these numbers of episodes."""
    first, second = rng.sample(cast, 2)
    chosen = rng.sample(PLOTS.episodes, rng.choice(episodes))
    return Plot(
        first,
        second,
        rng.choice(places),
        rng.choice(PLOTS.goals).key,
        tuple(episode.key for episode in chosen),
    )


def goal_object(goal: str, language: str) -> str:
    """Return the object of a goal, for example "the ferry bell"."""
    return side(_GOALS[goal].object, language)


Line = tuple[str, str]  # (slot in the plot, sentence)


CLOCK_SHARE = 0.6  # of the stories


def tell(
    rng: random.Random, plot: Plot, *, language: str, clock_share: float = CLOCK_SHARE
) -> list[str]:
    """Return the sentences of a story; a share of stories names the time of the day."""
    lines = tell_lines(rng, plot, language=language, clock_share=clock_share)
    return [sentence for _, sentence in lines]


def tell_lines(
    rng: random.Random, plot: Plot, *, language: str, clock_share: float = CLOCK_SHARE
) -> list[Line]:
    """Return the sentences of a story with their slots: "reason", "speech", "solution"..."""
    english = language == "en"
    goal = _GOALS[plot.goal]
    trades = rng.sample(SENTENCES.trades, 2)
    woman = plot.first[1] == "f"
    fill = {
        "A": side(plot.first[0], language),
        "B": side(plot.second[0], language),
        "ra": side(trades[0], language),
        "rb": side(trades[1], language),
        "P": side(plot.place, language),
        "o": side(goal.object, language),
        "his": "her" if woman else "his",
        "ta": "她" if woman else "他",
    }

    def draw(choices: tuple[Text, ...]) -> str:
        return side(rng.choice(choices), language).format(**fill)

    def fixed(text: Text) -> str:
        return side(text, language).format(**fill)

    story = [("opening", draw(SENTENCES.openings))]
    if rng.random() < 0.7:
        story.append(("trait", draw(SENTENCES.traits)))
    story += [
        ("event", fixed(goal.event)),
        ("reason", fixed(goal.reason)),
        ("plan", draw(SENTENCES.plans)),
    ]
    clock = rng.random() < clock_share  # times of the day, or loose links
    for number, key in enumerate(plot.episodes):
        episode = _EPISODES[key]
        link = side(SENTENCES.times[number], language) if clock else draw(SENTENCES.links)
        met = (
            f"{link} {fixed(episode.obstacle)}."
            if english
            else f"{link}{fixed(episode.obstacle)}。"
        )
        story.append(("obstacle", met))
        for slot, speaker, speech in (
            ("speech", "A", episode.speech),
            ("reply", "B", episode.reply),
        ):
            verb = draw(SENTENCES.says if slot == "speech" else SENTENCES.replies)
            words, name = fixed(speech), fill[speaker]
            if english:
                quoted = words[:-1] + "," if words.endswith(".") else words
                first, _, rest = verb.partition(" ")  # "said", "with a smile"
                said = " ".join(part for part in (first, name, rest) if part)
                story.append((slot, f'"{quoted}" {said}.'))
            else:
                story.append((slot, f"“{words}”{name}{verb}。"))
        if rng.random() < 0.5:
            story.append(("feeling", draw(SENTENCES.feelings)))
        story.append(("solution", fixed(episode.solution)))
    if rng.random() < 0.6:
        story.append(("luck", draw(SENTENCES.finds)))
    story += [("find", fixed(goal.solution)), ("ending", fixed(goal.endings[0]))]
    if rng.random() < 0.7:
        story.append(("after", fixed(goal.endings[1])))
    story.append(("closing", draw(SENTENCES.closings)))
    return story


def join(sentences: list[str], language: str) -> str:
    """Join sentences into one text."""
    return (" " if language == "en" else "").join(sentences)


# Requests for a long story, and for a short one.
LONG: tuple[Text, ...] = (
    ("Please write a long story about {a} and {b}", "请写一个关于{a}和{b}的长故事"),
    ("I would like to hear a long story with {a} and {b} in it", "我想听一个有{a}和{b}的长故事"),
)
SHORT: tuple[Text, ...] = (
    ("Tell me a short story about {a} and {b}", "给我讲一个关于{a}和{b}的小故事"),
    ("Can you make up a bedtime story about {a} and {b}", "能编一个{a}和{b}的睡前故事吗"),
)


def ask_for(rng: random.Random, plot: Plot, *, long: bool, language: str) -> str:
    """Ask for a story with the people of the plot, and perhaps its place and object."""
    english = language == "en"
    start = side(rng.choice(LONG if long else SHORT), language)
    where = (", set in {place}" if english else "，发生在{place}") if rng.random() < 0.6 else ""
    what = ""
    if rng.random() < 0.6:
        what = ". It should be about {thing}" if english else "，讲的是{thing}"
    return (start + where + what + ("." if english else "。")).format(
        a=side(plot.first[0], language),
        b=side(plot.second[0], language),
        place=side(plot.place, language),
        thing=goal_object(plot.goal, language),
    )
