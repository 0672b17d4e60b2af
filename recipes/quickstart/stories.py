"""Long stories: two characters, a goal, one to three episodes with speech, a find and an end."""

from __future__ import annotations

import random
from dataclasses import dataclass

from recipes.quickstart import plot_lines as plots
from recipes.quickstart import story_lines as lines
from recipes.quickstart.gazetteer import Text, side

Character = tuple[Text, str]  # name, "f" or "m"


@dataclass(frozen=True)
class Plot:
    """What a story is about; its wording is drawn when it is told."""

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
    """A plot with two different characters of `cast` and one of these numbers of episodes."""
    first, second = rng.sample(cast, 2)
    chosen = rng.sample(plots.EPISODES, rng.choice(episodes))
    return Plot(
        first,
        second,
        rng.choice(places),
        rng.choice(plots.GOALS)[0],
        tuple(episode[0] for episode in chosen),
    )


def goal_thing(goal: str, language: str) -> str:
    """The thing that a goal is about, "the ferry bell"."""
    return side(next(g[1] for g in plots.GOALS if g[0] == goal), language)


Line = tuple[str, str]  # (slot in the plot, sentence)


CLOCK_SHARE = 0.6  # of the stories, unless asked otherwise


def tell(
    rng: random.Random, plot: Plot, *, language: str, clock_share: float = CLOCK_SHARE
) -> list[str]:
    """The sentences of a story; that share of stories tells the time of the day as it goes."""
    lines = tell_lines(rng, plot, language=language, clock_share=clock_share)
    return [sentence for _, sentence in lines]


def tell_lines(
    rng: random.Random, plot: Plot, *, language: str, clock_share: float = CLOCK_SHARE
) -> list[Line]:
    """The sentences of a story, each with its slot: "reason", "speech", "reply", "solution"..."""
    english = language == "en"
    _, thing, event, reason, solved, endings = next(g for g in plots.GOALS if g[0] == plot.goal)
    trades = rng.sample(lines.TRADES, 2)
    woman = plot.first[1] == "f"
    fill = {
        "A": side(plot.first[0], language),
        "B": side(plot.second[0], language),
        "ra": side(trades[0], language),
        "rb": side(trades[1], language),
        "P": side(plot.place, language),
        "o": side(thing, language),
        "his": "her" if woman else "his",
        "ta": "她" if woman else "他",
    }

    def draw(choices: tuple[Text, ...]) -> str:
        return side(rng.choice(choices), language).format(**fill)

    def fixed(text: Text) -> str:
        return side(text, language).format(**fill)

    story = [("opening", draw(lines.OPENINGS))]
    if rng.random() < 0.7:
        story.append(("trait", draw(lines.TRAITS)))
    story += [("event", fixed(event)), ("reason", fixed(reason)), ("plan", draw(lines.PLANS))]
    clock = rng.random() < clock_share  # times of the day, or loose links
    for number, key in enumerate(plot.episodes):
        _, obstacle, a_says, b_says, solution = next(e for e in plots.EPISODES if e[0] == key)
        link = side(lines.TIMES[number], language) if clock else draw(lines.LINKS)
        met = f"{link} {fixed(obstacle)}." if english else f"{link}{fixed(obstacle)}。"
        story.append(("obstacle", met))
        for slot, speaker, speech in (("speech", "A", a_says), ("reply", "B", b_says)):
            verb = draw(lines.SAYS if slot == "speech" else lines.REPLIES)
            words, name = fixed(speech), fill[speaker]
            if english:
                quoted = words[:-1] + "," if words.endswith(".") else words
                first, _, rest = verb.partition(" ")  # "said", "with a smile"
                said = " ".join(part for part in (first, name, rest) if part)
                story.append((slot, f'"{quoted}" {said}.'))
            else:
                story.append((slot, f"“{words}”{name}{verb}。"))
        if rng.random() < 0.5:
            story.append(("feeling", draw(lines.FEELINGS)))
        story.append(("solution", fixed(solution)))
    if rng.random() < 0.6:
        story.append(("luck", draw(lines.FINDS)))
    story += [("find", fixed(solved)), ("ending", fixed(endings[0]))]
    if rng.random() < 0.7:
        story.append(("after", fixed(endings[1])))
    story.append(("closing", draw(lines.CLOSINGS)))
    return story


def join(sentences: list[str], language: str) -> str:
    """Sentences as one text."""
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
    """A request for a story with this plot's people, and perhaps its place and thing."""
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
        thing=goal_thing(plot.goal, language),
    )
