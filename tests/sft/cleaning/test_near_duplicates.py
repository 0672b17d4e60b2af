"""Near-duplicates against all pairs compared one by one, and against real overlapping files."""

import itertools
import random

import pytest

from sft.cleaning.near_duplicates import near_duplicates, row_text
from sft.cleaning.ngrams import ngram_hashes, normal_form
from sft.config.sections import Source
from sft.data.sources import read_sft


@pytest.mark.parametrize("alphabet", ["ab", "Aa1é ,", "你好吗𠀀ab", "\ud800x"])
@pytest.mark.parametrize("size", [1, 3, 8])
def test_hashes_are_equal_exactly_if_ngrams_are(alphabet, size):
    rng = random.Random(size)
    texts = ["".join(rng.choice(alphabet) for _ in range(rng.randint(0, 60))) for _ in range(40)]
    by_window, by_hash = {}, {}
    for text in texts:
        hashes = ngram_hashes(text, size=size).tolist()
        ngrams = [text[i : i + size] for i in range(len(text) - size + 1)]
        assert len(hashes) == len(ngrams)
        for window, value in zip(ngrams, hashes, strict=True):
            assert by_window.setdefault(window, value) == value, "one window, one hash"
            assert by_hash.setdefault(value, window) == window, "one hash, one window"


def test_a_copy_keeps_its_normal_form():
    assert normal_form("What IS 3 + 4,\n my friend?") == normal_form("ｗｈａｔ is３４ — my_friend")
    assert normal_form("小 明 有３个苹果。") == normal_form("小明有3个苹果!")
    assert normal_form("3.14") != normal_form("3.15")


def edited(rng, text, changes):
    words = text.split()
    for _ in range(changes):
        words[rng.randrange(len(words))] = rng.choice(["alpha", "beta", "gamma", "delta", "omega"])
    return " ".join(words)


@pytest.mark.parametrize("threshold", [0.6, 0.8])
def test_finds_what_comparing_all_pairs_finds(threshold):
    rng = random.Random(0)
    vocabulary = [f"{a}{b}{c}" for a, b, c in itertools.product("bdgkl", "aeiou", "mnrst")]
    texts = [" ".join(rng.choices(vocabulary, k=rng.randint(20, 80))) for _ in range(150)]
    texts += [edited(rng, text, rng.randint(0, 5)) for text in texts]
    rng.shuffle(texts)

    def ngrams(text):
        normal = normal_form(text)
        return {normal[i : i + 8] for i in range(len(normal) - 7)}

    def overlap(a, b):
        return len(ngrams(a) & ngrams(b)) / len(ngrams(a) | ngrams(b))

    expected, kept = {}, []
    for row, text in enumerate(texts):
        match = [k for k in kept if overlap(texts[k], text) >= threshold]
        if match:
            expected[row] = match
        else:
            kept.append(row)
    found = near_duplicates(texts, threshold=threshold)
    for duplicate in found:
        assert duplicate.of in expected[duplicate.row]
        exact = overlap(texts[duplicate.row], texts[duplicate.of])
        assert duplicate.overlap == pytest.approx(exact)
    missed = expected.keys() - {d.row for d in found}
    assert len(missed) <= 0.02 * len(expected), "a band meets with probability 0.998 at 0.8"
    assert len(expected) > 50


def test_short_and_empty_texts_are_compared_completely():
    found = near_duplicates(["Hi!", "hi", "ho", "", "...", "x" * 7], threshold=0.8)
    assert [(d.row, d.of) for d in found] == [(1, 0), (4, 3)]


def test_a_chain_of_small_changes_is_cut_when_the_first_text_is_no_longer_near():
    """Each text is near its neighbor; only texts near a kept one are removed."""
    base = [f"word{i:02d}" for i in range(40)]
    chain = [" ".join(["other"] * 0 + base)]
    for step in range(1, 12):
        base = [*base[: 3 * step - 3], *["new"] * 3, *base[3 * step :]]
        chain.append(" ".join(base))
    removed = {d.row: d.of for d in near_duplicates(chain, threshold=0.7)}
    assert all(of not in removed for of in removed.values())
    assert 0 < len(removed) < len(chain) - 1


@pytest.mark.real
def test_rows_shared_by_the_alpaca_files(real_data):
    first, second = (
        [
            row_text(row)
            for row in read_sft([Source(str(real_data / "sft" / name))], on_error="drop").rows
        ]
        for name in ("alpaca_en_first10k.jsonl.gz", "alpaca_5000_subset.jsonl.gz")
    )
    found = near_duplicates([*first, *second], threshold=0.8)
    normal = {normal_form(text) for text in first}
    shared = [text for text in second if normal_form(text) in normal]
    assert sum(d.overlap == 1 for d in found) >= len(shared) > 900
