"""Templates of word problems that divide, after other steps or alone."""

from __future__ import annotations

import random

from recipes.quickstart.problem_template import Numbers, Template, few, small


def _divide(r: random.Random) -> Numbers:
    k, z = r.randint(2, 9), r.randint(2, 9)
    return {"a": k * z, "k": k, "z": z}


def _share(r: random.Random) -> Numbers:
    k, z, b = few(r), small(r), small(r)
    return {"a": k * z - b, "b": b, "k": k, "s": k * z, "z": z} if b < k * z else _share(r)


def _left_share(r: random.Random) -> Numbers:
    k, z, c = few(r), small(r), small(r)
    return {"a": k * z + c, "c": c, "k": k, "d": k * z, "z": z}


def _times_share(r: random.Random) -> Numbers:
    a, b, k = few(r), small(r), few(r)
    if a * b % k or k in (a, b):
        return _times_share(r)
    return {"a": a, "b": b, "k": k, "p": a * b, "z": a * b // k}


TEMPLATES = (
    Template(
        "friends",
        _divide,
        (
            "{n} shares {a} {t} equally among {k} friends. How many {t} does each friend get?",
            "{n}把{a}个{t}平均分给{k}个朋友。每个朋友得到多少个{t}？",
        ),
        (("Each friend gets {a} / {k} = {z}.", "每个朋友得到 {a} / {k} = {z} 个。"),),
        "z",
    ),
    Template(
        "pack",
        _divide,
        (
            "{n} puts {a} {t} into {k} {x}, the same number in each. "
            "How many {t} are in each of the {x}?",
            "{n}把{a}个{t}平均放进{k}个{x}。每个{x}里有多少个{t}？",
        ),
        (("Each one holds {a} / {k} = {z}.", "每个里面有 {a} / {k} = {z} 个。"),),
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
        "boxes_share",
        _times_share,
        (
            "{n} shares the {t} of {a} {x} equally among {k} friends. There are {b} {t} in each of "
            "the {x}. How many {t} does each friend get?",
            "{n}把{a}个{x}里的{t}平均分给{k}个朋友，每个{x}里有{b}个{t}。每个朋友得到多少个？",
        ),
        (
            ("The {x} hold {a} * {b} = {p} {t}.", "{x}里共有 {a} * {b} = {p} 个{t}。"),
            ("Each friend gets {p} / {k} = {z}.", "每个朋友得到 {p} / {k} = {z} 个。"),
        ),
        "z",
    ),
)
