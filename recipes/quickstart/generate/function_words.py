"""Define families of small functions of a word."""

from __future__ import annotations

import random

from recipes.quickstart.generate.function_draft import Draft, Family, returns

# fmt: off
WORDS = [
    "river", "lamp", "stone", "bread", "cloud", "tiger", "salt", "moon", "apple", "drum",
    "boat", "silk", "honey", "snow", "fox", "bell", "gold", "rain", "leaf", "harp",
]
# fmt: on


def _first(letters: int) -> str:
    return "the first letter" if letters == 1 else f"the first {letters} letters"


def _reverse(r: random.Random, f: str, x: str) -> Draft:
    w, tail = r.choice(WORDS), r.choice("abcdez")
    spelled = ", ".join(reversed(w))
    return Draft(
        f"reverse:{w},{tail}",
        f'def {f}({x}):\n    return {x}[::-1] + "{tail}"',
        f'{f}("{w}")',
        (
            (f"Backwards the letters are {spelled}.", f"倒过来的字母是 {spelled}。"),
            (
                f'It returns "{w[::-1]}" + "{tail}".',
                f'返回 "{w[::-1]}" + "{tail}"。',
            ),
        ),
        (f'reverses a word and adds "{tail}"', f'把单词倒过来再加上 "{tail}"'),
    )


def _repeat(r: random.Random, f: str, x: str) -> Draft:
    w, n = r.choice(WORDS), r.randint(2, 4)
    start = r.randint(1, 3)
    return Draft(
        f"repeat:{w},{n},{start}",
        f"def {f}({x}):\n    y = {x}[:{start}]\n    return y * {n}",
        f'{f}("{w}")',
        (
            (f'y = "{w[:start]}".', f'y = "{w[:start]}"。'),
            (f'It returns "{w[:start]}" * {n}.', f'返回 "{w[:start]}" * {n}。'),
        ),
        (
            f"repeats {_first(start)} of a word {n} times",
            f"取单词的前 {start} 个字母并重复 {n} 次",
        ),
    )


def _tail(r: random.Random, f: str, x: str) -> Draft:
    w, tail = r.choice(WORDS), r.choice("abcdez")
    return Draft(
        f"tail:{w},{tail}",
        f'def {f}({x}):\n    return {x} + "{tail}"',
        f'{f}("{w}")',
        (returns(f'"{w}" + "{tail}"'),),
        (f'adds "{tail}" to a word', f'在单词后面加上 "{tail}"'),
    )


def _echo(r: random.Random, f: str, x: str) -> Draft:
    w, n = r.choice(WORDS), r.randint(2, 4)
    return Draft(
        f"echo:{w},{n}",
        f"def {f}({x}):\n    return {x} * {n}",
        f'{f}("{w}")',
        (returns(f'"{w}" * {n}'),),
        (f"repeats a word {n} times", f"把单词重复 {n} 次"),
    )


def _head_tail(r: random.Random, f: str, x: str) -> Draft:
    w, n, tail = r.choice(WORDS), r.randint(1, 3), r.choice("abcdez")
    return Draft(
        f"head_tail:{w},{n},{tail}",
        f'def {f}({x}):\n    y = {x}[:{n}]\n    return y + "{tail}"',
        f'{f}("{w}")',
        (
            (f'y = "{w[:n]}".', f'y = "{w[:n]}"。'),
            returns(f'"{w[:n]}" + "{tail}"'),
        ),
        (
            f'takes {_first(n)} of a word and adds "{tail}"',
            f'取单词的前 {n} 个字母再加上 "{tail}"',
        ),
    )


FAMILIES: tuple[Family, ...] = (
    _reverse,
    _repeat,
    _tail,
    _echo,
    _head_tail,
)
