"""Templates of word problems that add and subtract."""

from __future__ import annotations

import random

from recipes.quickstart.problem_template import Numbers, Template, small


def _add(r: random.Random) -> Numbers:
    a, b = r.randint(4, 40), small(r)
    return {"a": a, "b": b, "z": a + b}


def _take(r: random.Random) -> Numbers:
    a, b = r.randint(11, 40), small(r)
    return {"a": a, "b": b, "z": a - b}


def _add_take(r: random.Random) -> Numbers:
    a, b, c = r.randint(4, 30), small(r), small(r)
    return {"a": a, "b": b, "c": c, "s": a + b, "z": a + b - c} if c < a + b else _add_take(r)


def _take_add(r: random.Random) -> Numbers:
    a, b, c = r.randint(11, 30), small(r), small(r)
    return {"a": a, "b": b, "c": c, "s": a - b, "z": a - b + c}


def _take_take(r: random.Random) -> Numbers:
    a, b, c = r.randint(20, 40), small(r), small(r)
    return {"a": a, "b": b, "c": c, "s": a - b, "z": a - b - c}


def _three(r: random.Random) -> Numbers:
    a, b, c = r.randint(3, 30), small(r), small(r)
    return {"a": a, "b": b, "c": c, "s": a + b, "z": a + b + c}


def _compare(r: random.Random) -> Numbers:
    a, d = r.randint(3, 15), small(r)
    return {"a": a, "d": d, "b": a + d, "z": a + a + d}


def _fewer(r: random.Random) -> Numbers:
    a, d = r.randint(11, 20), small(r)
    return {"a": a, "d": d, "b": a - d, "z": a + a - d}


TEMPLATES = (
    Template(
        "gift",
        _add,
        (
            "{n} has {a} {t}. {m} gives {n} {b} more. How many {t} does {n} have now?",
            "{n}有{a}个{t}。{m}又给了{n}{b}个。{n}现在有多少个{t}？",
        ),
        (("Now {n} has {a} + {b} = {z} {t}.", "现在{n}有 {a} + {b} = {z} 个{t}。"),),
        "z",
    ),
    Template(
        "sale",
        _take,
        (
            "{n} has {a} {t} and sells {b} of them to {m}. How many {t} are left?",
            "{n}有{a}个{t}，卖给{m}{b}个。还剩多少个{t}？",
        ),
        (("After the sale {a} - {b} = {z} are left.", "卖掉以后还剩 {a} - {b} = {z} 个。"),),
        "z",
    ),
    Template(
        "difference",
        _take,
        (
            "{n} carries {a} {t} and {m} carries {b}. How many more {t} does {n} carry?",
            "{n}带了{a}个{t}，{m}带了{b}个。{n}多带了多少个{t}？",
        ),
        (("{n} carries {a} - {b} = {z} more.", "{n}多带了 {a} - {b} = {z} 个。"),),
        "z",
    ),
    Template(
        "age",
        _add,
        (
            "{n} is {a} years old, and {m} is {b} years older than {n}. How old is {m}?",
            "{n}今年{a}岁，{m}比{n}大{b}岁。{m}今年多少岁？",
        ),
        (("{m} is {a} + {b} = {z} years old.", "{m}今年 {a} + {b} = {z} 岁。"),),
        "z",
    ),
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
        "take_add",
        _take_add,
        (
            "{n} has {a} {t} and sells {b} of them. Then {m} gives {n} {c} more. "
            "How many {t} does {n} have now?",
            "{n}有{a}个{t}，卖掉了{b}个。然后{m}又给了{n}{c}个。{n}现在有多少个{t}？",
        ),
        (
            ("After the sale {a} - {b} = {s} are left.", "卖掉以后还剩 {a} - {b} = {s} 个。"),
            (
                "After the gift {n} has {s} + {c} = {z} {t}.",
                "收到以后，{n}有 {s} + {c} = {z} 个{t}。",
            ),
        ),
        "z",
    ),
    Template(
        "two_days",
        _take_take,
        (
            "A shop has {a} {t}. On the first day {n} sells {b} {t}, on the second day {c}. "
            "How many {t} remain?",
            "店里有{a}个{t}。第一天{n}卖出{b}个，第二天卖出{c}个。还剩多少个{t}？",
        ),
        (
            ("After the first day {a} - {b} = {s} remain.", "第一天以后还剩 {a} - {b} = {s} 个。"),
            ("After the second day {s} - {c} = {z} remain.", "第二天以后还剩 {s} - {c} = {z} 个。"),
        ),
        "z",
    ),
    Template(
        "lost",
        _add_take,
        (
            "{n} finds {a} {t} in the morning and {b} in the evening, and loses {c} on the way. "
            "How many {t} are left?",
            "{n}早上找到{a}个{t}，晚上找到{b}个，路上丢了{c}个。还剩多少个{t}？",
        ),
        (
            ("By evening it is {a} + {b} = {s} {t}.", "到晚上是 {a} + {b} = {s} 个{t}。"),
            ("On the way {s} - {c} = {z} are left.", "路上丢了以后还剩 {s} - {c} = {z} 个。"),
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
        "fewer",
        _fewer,
        (
            "{n} collects {a} {t}. {m} collects {d} fewer than {n}. "
            "How many {t} do they have together?",
            "{n}收集了{a}个{t}，{m}比{n}少收集{d}个。他们一共有多少个{t}？",
        ),
        (
            ("{m} has {a} - {d} = {b} {t}.", "{m}有 {a} - {d} = {b} 个{t}。"),
            ("Together they have {a} + {b} = {z}.", "他们一共有 {a} + {b} = {z} 个。"),
        ),
        "z",
    ),
)
