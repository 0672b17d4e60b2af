"""Word problems: a question, a written-out chain of reasoning, and a final answer.

A problem is drawn from a template and numbers; (template, numbers) is its key. Keys are divided
between training and benchmark by a hash (`world.held_out`), so the two never share a problem,
whatever names and languages dress it.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from recipes.quickstart.gazetteer import Text, pairs, side

THINGS = pairs(
    "shells|贝壳;apples|苹果;candles|蜡烛;letters|信;buttons|纽扣;eggs|鸡蛋;nails|钉子;beads|珠子;"
    "pears|梨;stamps|邮票;coins|硬币;walnuts|核桃;cups|杯子;fish|鱼;bricks|砖头;lanterns|灯笼"
)
BOXES = pairs("baskets|篮子;boxes|盒子;bags|袋子;crates|箱子;jars|罐子;trays|托盘")


@dataclass(frozen=True)
class Problem:
    """A question, its worked steps, and its final value.

    `answer` is the steps, then the fixed final form unless `closed` is false (written functions).
    """

    key: str
    question: str
    steps: tuple[str, ...]
    final: str
    language: str
    closed: bool = True

    @property
    def answer(self) -> str:
        gap = " " if self.language == "en" else ""
        end = (final_form(self.final, self.language),) if self.closed else ()
        return gap.join((*self.steps, *end))


def final_form(value: str, language: str) -> str:
    """The sentence that ends every worked answer; benchmarks read the value from it."""
    return f"The answer is {value}." if language == "en" else f"答案是 {value}。"


Numbers = dict[str, int]
Draw = Callable[[random.Random], Numbers]


@dataclass(frozen=True)
class Template:
    """`{a}`, `{b}`, ... are numbers, `{n}`, `{m}` names, `{t}` a thing, `{x}` a container."""

    name: str
    draw: Draw
    question: Text
    steps: tuple[Text, ...]
    final: str  # which number is the answer


# Sums have one operand below ten, products two: about a thousand facts, learnable for five million
# parameters; the chains of two and three of them are what differs between problems.


def _small(r: random.Random) -> int:
    return r.randint(2, 9)


def _few(r: random.Random) -> int:
    return r.randint(2, 6)


def _add_take(r: random.Random) -> Numbers:
    a, b, c = r.randint(4, 30), _small(r), _small(r)
    return {"a": a, "b": b, "c": c, "s": a + b, "z": a + b - c} if c < a + b else _add_take(r)


def _boxes_plus(r: random.Random) -> Numbers:
    a, b, c = _few(r), _small(r), _small(r)
    return {"a": a, "b": b, "c": c, "p": a * b, "z": a * b + c}


def _boxes_minus(r: random.Random) -> Numbers:
    a, b, c = _few(r), _small(r), _small(r)
    return {"a": a, "b": b, "c": c, "p": a * b, "z": a * b - c} if c < a * b else _boxes_minus(r)


def _share(r: random.Random) -> Numbers:
    k, z, b = _few(r), _small(r), _small(r)
    return {"a": k * z - b, "b": b, "k": k, "s": k * z, "z": z} if b < k * z else _share(r)


def _compare(r: random.Random) -> Numbers:
    a, d = r.randint(3, 15), _small(r)
    return {"a": a, "d": d, "b": a + d, "z": a + a + d}


def _twice(r: random.Random) -> Numbers:
    a, k = r.randint(2, 12), r.randint(2, 5)
    return {"a": a, "k": k, "b": a * k, "z": a + a * k}


def _change(r: random.Random) -> Numbers:
    a, b = _few(r), _small(r)
    paid = r.choice([v for v in (20, 30, 40, 50, 60) if v > a * b])
    return {"a": a, "b": b, "c": paid, "p": a * b, "z": paid - a * b}


def _two_prices(r: random.Random) -> Numbers:
    a, b, c, d = _few(r), r.randint(2, 5), _few(r), r.randint(2, 5)
    return {"a": a, "b": b, "c": c, "d": d, "p": a * b, "q": c * d, "z": a * b + c * d}


def _days(r: random.Random) -> Numbers:
    a, b, c = _few(r), _small(r), _small(r)
    return {"a": a, "b": b, "c": c, "p": a * b, "z": c + a * b}


def _three(r: random.Random) -> Numbers:
    a, b, c = r.randint(3, 30), _small(r), _small(r)
    return {"a": a, "b": b, "c": c, "s": a + b, "z": a + b + c}


def _left_share(r: random.Random) -> Numbers:
    k, z, c = _few(r), _small(r), _small(r)
    return {"a": k * z + c, "c": c, "k": k, "d": k * z, "z": z}


def _trip(r: random.Random) -> Numbers:
    v, h, c = _few(r), _small(r), _small(r)
    return {"a": v, "b": h, "c": c, "p": v * h, "t": v * h + c, "z": c}


TEMPLATES = (
    Template(
        "add_take",
        _add_take,
        (
            "{n} has {a} {t}. {m} gives {n} {b} more, and then {n} sells {c} of them. "
            "How many {t} does {n} have now?",
            "{n}有{a}个{t}。{m}又给了{n}{b}个，然后{n}卖掉了{c}个。{n}现在有多少个{t}？",
        ),
        (
            (
                "After the gift {n} has {a} + {b} = {s} {t}.",
                "收到以后，{n}有 {a} + {b} = {s} 个{t}。",
            ),
            ("After the sale {s} - {c} = {z} are left.", "卖掉以后还剩 {s} - {c} = {z} 个。"),
        ),
        "z",
    ),
    Template(
        "boxes_plus",
        _boxes_plus,
        (
            "{n} fills {a} {x} with {b} {t} each and keeps {c} {t} on the table. "
            "How many {t} are there in all?",
            "{n}装了{a}个{x}，每个{x}里有{b}个{t}，桌上还有{c}个{t}。一共有多少个{t}？",
        ),
        (
            ("The {x} hold {a} * {b} = {p} {t}.", "{x}里共有 {a} * {b} = {p} 个{t}。"),
            ("With the others it makes {p} + {c} = {z}.", "加上桌上的是 {p} + {c} = {z} 个。"),
        ),
        "z",
    ),
    Template(
        "boxes_minus",
        _boxes_minus,
        (
            "A shop gets {a} {x} with {b} {t} in each. On the first day {n} sells {c} {t}. "
            "How many {t} remain?",
            "店里进了{a}个{x}，每个里面有{b}个{t}。第一天{n}卖出{c}个{t}。还剩多少个{t}？",
        ),
        (
            ("The shop gets {a} * {b} = {p} {t}.", "店里进了 {a} * {b} = {p} 个{t}。"),
            ("After the first day {p} - {c} = {z} remain.", "第一天以后还剩 {p} - {c} = {z} 个。"),
        ),
        "z",
    ),
    Template(
        "share",
        _share,
        (
            "{n} has {a} {t} and finds {b} more. {n} shares them equally among {k} friends. "
            "How many {t} does each friend get?",
            "{n}有{a}个{t}，又找到了{b}个。{n}把它们平均分给{k}个朋友。每个朋友得到多少个{t}？",
        ),
        (
            ("Together that is {a} + {b} = {s} {t}.", "一共是 {a} + {b} = {s} 个{t}。"),
            ("Each friend gets {s} / {k} = {z}.", "每个朋友得到 {s} / {k} = {z} 个。"),
        ),
        "z",
    ),
    Template(
        "compare",
        _compare,
        (
            "{n} collects {a} {t}. {m} collects {d} more than {n}. "
            "How many {t} do they have together?",
            "{n}收集了{a}个{t}，{m}比{n}多收集{d}个。他们一共有多少个{t}？",
        ),
        (
            ("{m} has {a} + {d} = {b} {t}.", "{m}有 {a} + {d} = {b} 个{t}。"),
            ("Together they have {a} + {b} = {z}.", "他们一共有 {a} + {b} = {z} 个。"),
        ),
        "z",
    ),
    Template(
        "twice",
        _twice,
        (
            "{n} carries {a} {t}, and {m} carries {k} times as many. "
            "How many {t} do the two carry in all?",
            "{n}带了{a}个{t}，{m}带的是{n}的{k}倍。两人一共带了多少个{t}？",
        ),
        (
            ("{m} carries {a} * {k} = {b} {t}.", "{m}带了 {a} * {k} = {b} 个{t}。"),
            ("In all they carry {a} + {b} = {z}.", "两人一共带了 {a} + {b} = {z} 个。"),
        ),
        "z",
    ),
    Template(
        "change",
        _change,
        (
            "{n} buys {a} {t} at {b} crowns each and pays with {c} crowns. "
            "How many crowns does {n} get back?",
            "{n}买了{a}个{t}，每个{b}元，付了{c}元。应该找回多少元？",
        ),
        (
            ("The {t} cost {a} * {b} = {p} crowns.", "{t}共要 {a} * {b} = {p} 元。"),
            ("The change is {c} - {p} = {z} crowns.", "找回 {c} - {p} = {z} 元。"),
        ),
        "z",
    ),
    Template(
        "two_prices",
        _two_prices,
        (
            "At the market {n} buys {a} {t} for {b} crowns each, and {m} buys {c} loaves for {d} "
            "crowns each. How many crowns do they spend together?",
            "在集市上，{n}买了{a}个{t}，每个{b}元；{m}买了{c}个面包，每个{d}元。两人一共花了多少元？",
        ),
        (
            ("{n} spends {a} * {b} = {p} crowns.", "{n}花了 {a} * {b} = {p} 元。"),
            ("{m} spends {c} * {d} = {q} crowns.", "{m}花了 {c} * {d} = {q} 元。"),
            ("Together it is {p} + {q} = {z} crowns.", "一共花了 {p} + {q} = {z} 元。"),
        ),
        "z",
    ),
    Template(
        "days",
        _days,
        (
            "{n} already has {c} {t} and makes {a} more every day for {b} days. "
            "How many {t} does {n} have at the end?",
            "{n}原来有{c}个{t}，以后每天做{a}个，做了{b}天。最后{n}有多少个{t}？",
        ),
        (
            (
                "In {b} days {n} makes {a} * {b} = {p} {t}.",
                "{b}天里{n}做了 {a} * {b} = {p} 个{t}。",
            ),
            ("At the end there are {c} + {p} = {z}.", "最后有 {c} + {p} = {z} 个。"),
        ),
        "z",
    ),
    Template(
        "three",
        _three,
        (
            "{n} finds {a} {t} in the morning, {b} at noon and {c} in the evening. "
            "How many {t} does {n} find that day?",
            "{n}早上找到{a}个{t}，中午找到{b}个，晚上找到{c}个。{n}这天一共找到多少个{t}？",
        ),
        (
            ("By noon it is {a} + {b} = {s} {t}.", "到中午是 {a} + {b} = {s} 个{t}。"),
            ("By evening it is {s} + {c} = {z}.", "到晚上是 {s} + {c} = {z} 个。"),
        ),
        "z",
    ),
    Template(
        "left_share",
        _left_share,
        (
            "{n} has {a} {t}. {n} keeps {c} of them and puts the rest into {k} {x}, "
            "the same number in each. How many {t} are in each of the {x}?",
            "{n}有{a}个{t}，自己留下{c}个，其余的平均放进{k}个{x}。每个{x}里有多少个{t}？",
        ),
        (
            ("The rest is {a} - {c} = {d} {t}.", "其余的是 {a} - {c} = {d} 个{t}。"),
            ("Each one holds {d} / {k} = {z}.", "每个里面有 {d} / {k} = {z} 个。"),
        ),
        "z",
    ),
    Template(
        "trip",
        _trip,
        (
            "{n} walks to a town that is {t_} miles away, {a} miles every hour. "
            "After {b} hours, how many miles are still to go?",
            "{n}步行去一座小镇，路长{t_}里，每小时走{a}里。走了{b}小时以后，还剩多少里？",
        ),
        (
            ("In {b} hours {n} walks {a} * {b} = {p} miles.", "{b}小时走了 {a} * {b} = {p} 里。"),
            ("Still to go are {t_} - {p} = {z} miles.", "还剩 {t_} - {p} = {z} 里。"),
        ),
        "z",
    ),
)


def make_problem(rng: random.Random, names: tuple[Text, ...], *, language: str) -> Problem:
    """A random problem told with two of `names`."""
    template = rng.choice(TEMPLATES)
    numbers = template.draw(rng)
    first, second = rng.sample(names, 2)
    fill = {k: str(v) for k, v in numbers.items() if k != "t"} | {
        "n": side(first, language),
        "m": side(second, language),
        "t": side(rng.choice(THINGS), language),
        "x": side(rng.choice(BOXES), language),
        "t_": str(numbers.get("t", "")),
    }
    return Problem(
        key=f"{template.name}:" + ",".join(str(v) for v in numbers.values()),
        question=side(template.question, language).format(**fill),
        steps=tuple(side(step, language).format(**fill) for step in template.steps),
        final=fill[template.final],
        language=language,
    )
