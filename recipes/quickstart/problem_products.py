"""Templates of word problems that multiply, and then may add or subtract."""

from __future__ import annotations

import random

from recipes.quickstart.problem_template import Numbers, Template, few, small


def _times(r: random.Random) -> Numbers:
    a, b = r.randint(2, 9), r.randint(2, 9)
    return {"a": a, "b": b, "z": a * b}


def _times_plus(r: random.Random) -> Numbers:
    a, b, c = few(r), small(r), small(r)
    return {"a": a, "b": b, "c": c, "p": a * b, "z": a * b + c}


def _times_minus(r: random.Random) -> Numbers:
    a, b, c = few(r), small(r), small(r)
    return {"a": a, "b": b, "c": c, "p": a * b, "z": a * b - c} if c < a * b else _times_minus(r)


def _twice(r: random.Random) -> Numbers:
    a, k = r.randint(2, 12), r.randint(2, 5)
    return {"a": a, "k": k, "b": a * k, "z": a + a * k}


def _change(r: random.Random) -> Numbers:
    a, b = few(r), small(r)
    paid = r.choice([v for v in (20, 30, 40, 50, 60) if v > a * b])
    return {"a": a, "b": b, "c": paid, "p": a * b, "z": paid - a * b}


def _two_products(r: random.Random) -> Numbers:
    a, b, c, d = few(r), r.randint(2, 5), few(r), r.randint(2, 5)
    return {"a": a, "b": b, "c": c, "d": d, "p": a * b, "q": c * d, "z": a * b + c * d}


def _days(r: random.Random) -> Numbers:
    a, b, c = few(r), small(r), small(r)
    return {"a": a, "b": b, "c": c, "p": a * b, "z": c + a * b}


def _trip(r: random.Random) -> Numbers:
    v, h, c = few(r), small(r), small(r)
    return {"a": v, "b": h, "c": c, "p": v * h, "t": v * h + c, "z": c}


def _add_times(r: random.Random) -> Numbers:
    a, b, c = few(r), r.randint(1, 3), small(r)
    return {"a": a, "b": b, "c": c, "s": a + b, "z": (a + b) * c}


def _take_times(r: random.Random) -> Numbers:
    b, s, c = r.randint(2, 4), few(r), small(r)
    return {"a": s + b, "b": b, "c": c, "s": s, "z": s * c}


TEMPLATES = (
    Template(
        "rows",
        _times,
        (
            "{n} lays the {t} in {a} rows with {b} {t} in each. How many {t} are there in all?",
            "{n}把{t}摆成{a}行，每行{b}个。一共有多少个{t}？",
        ),
        (("The rows hold {a} * {b} = {z} {t}.", "{a}行里共有 {a} * {b} = {z} 个{t}。"),),
        "z",
    ),
    Template(
        "price",
        _times,
        (
            "{n} buys {a} {t} for {b} crowns each. How many crowns does {n} pay?",
            "{n}买了{a}个{t}，每个{b}元。{n}要付多少元？",
        ),
        (("The {t} cost {a} * {b} = {z} crowns.", "{t}共要 {a} * {b} = {z} 元。"),),
        "z",
    ),
    Template(
        "walk",
        _times,
        (
            "{n} walks {a} miles every hour. How many miles does {n} walk in {b} hours?",
            "{n}每小时走{a}里。{b}小时{n}走多少里？",
        ),
        (("In {b} hours {n} walks {a} * {b} = {z} miles.", "{b}小时走了 {a} * {b} = {z} 里。"),),
        "z",
    ),
    Template(
        "boxes_plus",
        _times_plus,
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
        _times_minus,
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
        _two_products,
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
        "two_makers",
        _two_products,
        (
            "{n} fills {a} {x} with {b} {t} each, and {m} fills {c} {x} with {d} {t} each. "
            "How many {t} are there in all?",
            "{n}装了{a}个{x}，每个里有{b}个{t}；{m}装了{c}个{x}，每个里有{d}个{t}。一共有多少个{t}？",
        ),
        (
            ("{n} packs {a} * {b} = {p} {t}.", "{n}装了 {a} * {b} = {p} 个{t}。"),
            ("{m} packs {c} * {d} = {q} {t}.", "{m}装了 {c} * {d} = {q} 个{t}。"),
            ("Together it is {p} + {q} = {z} {t}.", "一共是 {p} + {q} = {z} 个{t}。"),
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
    Template(
        "earn_find",
        _times_plus,
        (
            "{n} sells {a} {t} for {b} crowns each and finds {c} crowns on the way home. "
            "How many crowns does {n} have?",
            "{n}卖了{a}个{t}，每个{b}元，回家路上又捡到{c}元。{n}有多少元？",
        ),
        (
            ("The {t} bring {a} * {b} = {p} crowns.", "{t}卖了 {a} * {b} = {p} 元。"),
            ("With the others it makes {p} + {c} = {z}.", "加上捡到的是 {p} + {c} = {z} 元。"),
        ),
        "z",
    ),
    Template(
        "earn_spend",
        _times_minus,
        (
            "{n} earns {a} crowns every day for {b} days and then spends {c} crowns on {t}. "
            "How many crowns are left?",
            "{n}每天挣{a}元，挣了{b}天，然后买{t}花了{c}元。还剩多少元？",
        ),
        (
            (
                "In {b} days {n} earns {a} * {b} = {p} crowns.",
                "{b}天里{n}挣了 {a} * {b} = {p} 元。",
            ),
            ("Then {p} - {c} = {z} crowns are left.", "然后还剩 {p} - {c} = {z} 元。"),
        ),
        "z",
    ),
    Template(
        "lost_later",
        _times_minus,
        (
            "{n} makes {a} {t} every day for {b} days, and {m} loses {c} of them. "
            "How many {t} are left?",
            "{n}每天做{a}个{t}，做了{b}天，{m}弄丢了{c}个。还剩多少个{t}？",
        ),
        (
            (
                "In {b} days {n} makes {a} * {b} = {p} {t}.",
                "{b}天里{n}做了 {a} * {b} = {p} 个{t}。",
            ),
            ("Then {p} - {c} = {z} are left.", "然后还剩 {p} - {c} = {z} 个。"),
        ),
        "z",
    ),
    Template(
        "more_boxes",
        _add_times,
        (
            "{n} has {a} {x} and {m} brings {b} more. There are {c} {t} in each. "
            "How many {t} are there in all?",
            "{n}有{a}个{x}，{m}又带来{b}个，每个里面有{c}个{t}。一共有多少个{t}？",
        ),
        (
            ("Together that is {a} + {b} = {s} {x}.", "一共是 {a} + {b} = {s} 个{x}。"),
            ("The {x} hold {s} * {c} = {z} {t}.", "{x}里共有 {s} * {c} = {z} 个{t}。"),
        ),
        "z",
    ),
    Template(
        "empty_boxes",
        _take_times,
        (
            "{n} has {a} {x}, and {b} of them are empty. The rest hold {c} {t} each. "
            "How many {t} does {n} have?",
            "{n}有{a}个{x}，其中{b}个是空的，其余的每个里面有{c}个{t}。{n}有多少个{t}？",
        ),
        (
            ("The rest is {a} - {b} = {s} {x}.", "其余的是 {a} - {b} = {s} 个{x}。"),
            ("The {x} hold {s} * {c} = {z} {t}.", "{x}里共有 {s} * {c} = {z} 个{t}。"),
        ),
        "z",
    ),
)
