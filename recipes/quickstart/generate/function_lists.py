"""Define families of small functions of a list of numbers."""

from __future__ import annotations

import random

from recipes.quickstart.generate.bilingual import Text
from recipes.quickstart.generate.function_draft import Draft, Family, returns


def _evens(r: random.Random, f: str, x: str) -> Draft:
    items = [r.randint(1, 9) for _ in range(r.randint(3, 5))]
    odd = r.random() < 0.5
    kept = [v for v in items if v % 2 == odd]
    en, zh = ("odd", "奇数") if odd else ("even", "偶数")
    return Draft(
        f"evens:{items},{odd}",
        f"def {f}({x}):\n    return [i for i in {x} if i % 2 == {int(odd)}]",
        f"{f}({items})",
        (
            (f"It keeps the {en} numbers.", f"它保留{zh}。"),
            (f"There are {len(kept)} of them.", f"共有 {len(kept)} 个。"),
        ),
        (f"keeps the {en} numbers of a list", f"保留列表中的{zh}"),
    )


def _above(r: random.Random, f: str, x: str) -> Draft:
    items = [r.randint(1, 9) for _ in range(r.randint(3, 5))]
    a = r.randint(3, 6)
    kept = [v for v in items if v > a]
    return Draft(
        f"above:{items},{a}",
        f"def {f}({x}):\n    return [i for i in {x} if i > {a}]",
        f"{f}({items})",
        (
            (f"It keeps the numbers above {a}.", f"它保留大于 {a} 的数。"),
            (f"There are {len(kept)} of them.", f"共有 {len(kept)} 个。"),
        ),
        (f"keeps the numbers of a list above {a}", f"保留列表中大于 {a} 的数"),
    )


def _each(r: random.Random, f: str, x: str) -> Draft:
    items = [r.randint(1, 9) for _ in range(r.randint(2, 3))]
    a = r.randint(1, 5)
    return Draft(
        f"each:{items},{a}",
        f"def {f}({x}):\n    return [i + {a} for i in {x}]",
        f"{f}({items})",
        ((f"It adds {a} to every number.", f"它把每个数加 {a}。"),),
        (f"adds {a} to every number of a list", f"把列表中的每个数加 {a}"),
    )


def _extreme(r: random.Random, f: str, x: str) -> Draft:
    items = r.sample(range(2, 40), r.randint(3, 4))
    b, top = r.randint(1, 9), r.random() < 0.5
    word, best = ("max", max(items)) if top else ("min", min(items))
    en, zh = ("largest", "最大") if top else ("smallest", "最小")
    return Draft(
        f"extreme:{items},{b},{top}",
        f"def {f}({x}):\n    y = {word}({x})\n    return y + {b}",
        f"{f}({items})",
        (
            (f"The {en} item is {best}.", f"{zh}的是 {best}。"),
            (f"It returns {best} + {b} = {best + b}.", f"返回 {best} + {b} = {best + b}。"),
        ),
        (f"adds {b} to the {en} item of a list", f"把列表中{zh}的数加 {b}"),
    )


def _extreme_less(r: random.Random, f: str, x: str) -> Draft:
    items = r.sample(range(11, 40), r.randint(3, 4))
    b, top = r.randint(2, 9), r.random() < 0.5
    word, best = ("max", max(items)) if top else ("min", min(items))
    en, zh = ("largest", "最大") if top else ("smallest", "最小")
    return Draft(
        f"extreme_less:{items},{b},{top}",
        f"def {f}({x}):\n    y = {word}({x})\n    return y - {b}",
        f"{f}({items})",
        (
            (f"The {en} item is {best}.", f"{zh}的是 {best}。"),
            returns(f"{best} - {b} = {best - b}"),
        ),
        (f"subtracts {b} from the {en} item of a list", f"把列表中{zh}的数减去 {b}"),
    )


def _total(r: random.Random, f: str, x: str) -> Draft:
    items = [r.randint(1, 9) for _ in range(3)]
    first, total = items[0] + items[1], sum(items)
    added = f"{items[0]} + {items[1]} + {items[2]} = {first} + {items[2]} = {total}"
    b = r.randint(2, 3)
    return Draft(
        f"total:{items},{b}",
        f"def {f}({x}):\n    return sum({x}) * {b}",
        f"{f}({items})",
        (
            (
                f"The sum is {added}.",
                f"和是 {added}。",
            ),
            (f"It returns {total} * {b} = {total * b}.", f"返回 {total} * {b} = {total * b}。"),
        ),
        (f"multiplies the sum of a list by {b}", f"把列表的和乘以 {b}"),
    )


def _sum_less(r: random.Random, f: str, x: str) -> Draft:
    items = [r.randint(3, 9) for _ in range(2)]
    total, b = sum(items), r.randint(1, 5)
    return Draft(
        f"sum_less:{items},{b}",
        f"def {f}({x}):\n    return sum({x}) - {b}",
        f"{f}({items})",
        (
            (
                f"The sum is {items[0]} + {items[1]} = {total}.",
                f"和是 {items[0]} + {items[1]} = {total}。",
            ),
            returns(f"{total} - {b} = {total - b}"),
        ),
        (f"subtracts {b} from the sum of a list", f"把列表的和减去 {b}"),
    )


def _end_item(place: int, name: str, words: Text) -> Family:
    """A family that adds to the item at `place`, 0 or -1."""
    en, zh = words

    def draft(r: random.Random, f: str, x: str) -> Draft:
        items = r.sample(range(2, 30), r.randint(2, 4))
        b, item = r.randint(1, 9), items[place]
        return Draft(
            f"{name}:{items},{b}",
            f"def {f}({x}):\n    return {x}[{place}] + {b}",
            f"{f}({items})",
            (
                (f"The {en} item is {item}.", f"{zh}是 {item}。"),
                returns(f"{item} + {b} = {item + b}"),
            ),
            (f"adds {b} to the {en} item of a list", f"把列表的{zh}数加 {b}"),
        )

    return draft


def _length(r: random.Random, f: str, x: str) -> Draft:
    items = [r.randint(1, 9) for _ in range(r.randint(2, 6))]
    b, n = r.randint(1, 9), len(items)
    return Draft(
        f"length:{items},{b}",
        f"def {f}({x}):\n    return len({x}) + {b}",
        f"{f}({items})",
        (
            (f"There are {n} of them.", f"共有 {n} 个。"),
            returns(f"{n} + {b} = {n + b}"),
        ),
        (f"adds {b} to the length of a list", f"把列表的长度加 {b}"),
    )


FAMILIES: tuple[Family, ...] = (
    _evens,
    _above,
    _each,
    _extreme,
    _extreme_less,
    _total,
    _sum_less,
    _end_item(0, "first", ("first", "第一个")),
    _end_item(-1, "last", ("last", "最后一个")),
    _length,
)
