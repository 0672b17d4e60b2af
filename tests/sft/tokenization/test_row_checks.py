"""The hard rules: rows made to break each of them are named with their places."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from rich.console import Console

from sft.chat_template.encoding import encode_chats
from sft.chat_template.template import ensure_template
from sft.errors import UserError
from sft.run.console import show
from sft.tokenization.prepare import CUT_SCHEMA
from sft.tokenization.row_checks import (
    Checked,
    Rules,
    Tally,
    check_no_broken_rules,
    check_row,
    check_rows,
    mix_table,
    stage_table,
    total,
)
from sft.tokenization.tokenize import SCHEMA

BOS, END = 7, 9
RULES = Rules(stops=frozenset({END}), bos=BOS, leading_bos=1)
GOOD = [BOS, 1, 2, END, 1, 3, END]
MASK = [0, 0, 1, 1, 0, 1, 1]


def test_docstring_example():
    assert check_row(GOOD, MASK, rules=RULES) == (2, [])
    assert check_row(GOOD[:-1], MASK[:-1], rules=RULES)[1]
    assert check_row(GOOD[:-1], MASK[:-1], rules=RULES, cut=True) == (2, [])


@pytest.mark.parametrize(
    ("ids", "trained", "cut", "rule"),
    [
        (GOOD[1:], MASK[1:], False, "does not begin with 1 BOS"),
        ([BOS, *GOOD], [0, *MASK], False, "does not begin with 1 BOS"),
        (GOOD, [0] * 7, False, "nothing in it is trained"),
        ([], [], False, "nothing in it is trained"),
        (GOOD, [0, 0, 1, 0, 0, 1, 1], False, "no trained end-of-turn"),
        (GOOD, [0, 0, 1, 0, 0, 1, 1], True, "no trained end-of-turn"),
        (GOOD, [0, 0, 1, 1, 0, 1, 0], False, "no trained end-of-turn"),
        (GOOD[:5] + GOOD[4:], [0, 0, 1, 1, 0, 1, 0, 1], True, "no trained end-of-turn"),
        ([BOS, 1, 2], [0, 0, 1], False, "no trained end-of-turn"),
    ],
)
def test_each_rule_can_be_broken(ids, trained, cut, rule):
    _, broken = check_row(ids, trained, rules=RULES, cut=cut)
    assert [r for r in broken if rule in r]


def test_what_follows_the_end_of_turn_may_be_trained_too(tiny_tokenizer):
    """As a template's own generation block may have it."""
    ids, trained = [*GOOD[:4], 2, *GOOD[4:]], [*MASK[:4], 1, *MASK[4:]]
    assert check_row(ids, trained, rules=RULES) == (2, [])
    block = "{% generation %}{{ m.content }}<|im_end|>\n{% endgeneration %}"
    tiny_tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role == 'user' %}U{{ m.content }}{% else %}"
        f"<|im_start|>{block}{{% endif %}}{{% endfor %}}"
        "{% if add_generation_prompt %}<|im_start|>{% endif %}"
    )
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    (chat,) = encode_chats(tiny_tokenizer, [{"messages": turns * 2}])
    assert tiny_tokenizer.decode(chat.input_ids[-1:]) == "\n" and chat.trained[-1]
    assert check_row(chat.input_ids, chat.trained, rules=Rules.of(tiny_tokenizer)) == (2, [])


def test_no_bos_is_asked_where_the_template_writes_none():
    rules = Rules(frozenset({END}), BOS, leading_bos=0)
    assert check_row(GOOD[1:], MASK[1:], rules=rules)[1] == []
    assert check_row(GOOD, MASK, rules=rules)[1] != []


def row(place, ids=GOOD, trained=MASK, **more):
    flags = [bool(flag) for flag in trained]
    facts = {"origin": place, "kind": "k", "untrained": 0}
    return {**facts, "input_ids": ids, "trained": flags, **more}


def table(*rows):
    return pa.Table.from_pylist(list(rows), CUT_SCHEMA if "cut" in rows[0] else SCHEMA)


def test_broken_rows_stop_with_counts_and_first_places():
    bad = [row(f"data/f.jsonl:{i}", trained=[0] * 7) for i in range(2, 7)]
    checked = check_rows(
        [table(row("data/f.jsonl:1"), *bad), table(row("g:1", GOOD[1:], MASK[1:]))], rules=RULES
    )
    with pytest.raises(UserError) as stopped:
        check_no_broken_rules(checked.broken, where="sft_all")
    sentence = str(stopped.value)
    assert "5 where nothing in it is trained" in sentence
    assert "(first: data/f.jsonl:2, data/f.jsonl:3, data/f.jsonl:4)" in sentence
    assert "1 where it does not begin with 1 BOS" in sentence and "g:1" in sentence
    assert "\n" not in sentence
    check_no_broken_rules({}, where="sft_all")
    check_no_broken_rules({"a rule": []}, where="sft_all")


def shown(renderable):
    console = Console(width=120, markup=False)
    with console.capture() as capture:
        console.print(renderable)
    return capture.get()


def test_the_table_counts_every_row_by_source_and_kind():
    cut = table(row("a.jsonl:2", GOOD[:-1], MASK[:-1], cut=True))
    whole = table(row("a.jsonl:1", untrained=3), row("hub[x]:9", untrained=1))
    checked = check_rows([whole, cut], rules=RULES)
    checked.tally("a.jsonl:4", "k").left_out += 1
    whole = total(checked)
    assert (whole.rows, whole.tokens, whole.trained_tokens) == (3, 20, 11)
    assert (whole.turns, whole.untrained, whole.cut, whole.left_out) == (6, 4, 1, 1)
    text = shown(stage_table(checked, title="sft-all", rules=RULES))
    (a,) = [line.split() for line in text.splitlines() if "a.jsonl" in line]
    assert a == ["a.jsonl", "k", "2", "13", "53.8%", "4", "3", "1", "1"]
    assert "hub[x]" in text, "brackets of a split are no markup"
    said = " ".join(text.split())
    assert "5 of 6 trained turns end with a trained end-of-turn, 1 are cut" in said
    assert "of 10 assistant turns 4 are not trained" in said


def test_names_of_sources_and_kinds_are_whole_on_a_narrow_screen():
    checked = check_rows([table(row("alpaca_5000_subset.jsonl:1", kind="dialogue"))], rules=RULES)
    console = Console(width=80, markup=False)
    with console.capture() as capture:
        console.print(stage_table(checked, title="sft-all", rules=RULES))
    (line,) = [line for line in capture.get().splitlines() if "alpaca" in line]
    assert line.split()[:3] == ["alpaca_5000_subset.jsonl", "dialogue", "1"]


@pytest.mark.parametrize(("source", "rows"), [("alpaca.jsonl", 24), ("b" * 60, 1_234_567)])
def test_no_column_of_a_stage_is_cut_off_in_a_pipe(capsys, monkeypatch, source, rows):
    """rich takes 80 characters where there is no terminal, and cuts what is wider."""
    monkeypatch.setenv("COLUMNS", "80")
    counts = dict.fromkeys(("rows", "turns", "untrained", "cut", "left_out"), rows)
    tally = Tally(tokens=100 * rows, byte_tokens=3 * rows, **counts)
    rules = replace(RULES, unknown=frozenset({5}), byte_ids=frozenset({6}))
    show(stage_table(Checked({(source, "dialogue"): tally}), title="sft-all", rules=rules))
    (line,) = [line for line in capsys.readouterr().err.splitlines() if f"{100 * rows:,}" in line]
    assert line.split()[2:] == [
        *(f"{rows:,}", f"{100 * rows:,}", "0.0%"),
        *[f"{rows:,}"] * 4,
        *("0.0%", "3.0%"),
    ]


def test_the_mix_stands_beside_the_papers():
    rows = {"math": 466, "code": 222, "dialogue": 312, "safety": 250, "poems": 0}
    text = shown(mix_table(rows, dict.fromkeys(rows, 1000)))
    for line in text.splitlines():
        words = line.split()
        if words and words[0] in ("math", "code", "dialogue", "safety"):
            assert words[-2] == words[-1], line
    assert next(line for line in text.splitlines() if "poems" in line).split()[-1] == "-"


def test_rules_come_from_the_template(tiny_tokenizer):
    ensure_template(tiny_tokenizer)
    assert Rules.of(tiny_tokenizer) == Rules(frozenset({0, 3}), None, 0)
    tiny_tokenizer.bos_token = "<|pad|>"
    tiny_tokenizer.chat_template = "{{ bos_token }}" + tiny_tokenizer.chat_template
    assert Rules.of(tiny_tokenizer) == Rules(frozenset({0, 3}), 1, 1)


def alone(ids, trained, *, rules, cut):
    """The rules again, one row and one token at a time."""
    runs, i = [], 0
    while i < len(ids):
        end = i
        while end < len(ids) and trained[end]:
            end += 1
        runs += [(i, end)] if end > i else []
        i = end + 1
    if not runs:
        return 0, ["nothing in it is trained"]
    ended = [any(t in rules.stops for t in ids[a:b]) for a, b in runs]
    if cut and runs[-1][1] == len(ids):
        ended[-1] = True
    begins = next((i for i, t in enumerate(ids) if t != rules.bos), len(ids))
    first = f"it does not begin with {rules.leading_bos} BOS token as a prompt does"
    broken = [first] if begins != rules.leading_bos else []
    return len(runs), broken + ([] if all(ended) else ["a trained turn has no trained end-of-turn"])


@pytest.mark.parametrize(("bos", "leading"), [(BOS, 1), (BOS, 0), (None, 0)])
def test_a_table_of_rows_is_checked_as_each_alone(bos, leading):
    rules, lot = Rules(frozenset({END, 5}), bos, leading), np.random.default_rng(leading)
    rows = []
    for i in range(400):
        length = int(lot.integers(0, 12))
        ids = lot.choice([BOS, 1, 2, 5, END], length, p=[0.2, 0.3, 0.2, 0.1, 0.2]).tolist()
        ids[: lot.integers(0, 2)] = [BOS] * min(length, 1)
        trained = (lot.random(len(ids)) < 0.6).tolist()
        rows.append(row(f"f:{i}", ids, trained, cut=bool(lot.random() < 0.3)))
    checked = check_rows([table(*rows[:150]), table(*rows[150:])], rules=rules)
    turns, places = 0, {}
    for r in rows:
        expected = alone(r["input_ids"], r["trained"], rules=rules, cut=r["cut"])
        assert check_row(r["input_ids"], r["trained"], rules=rules, cut=r["cut"]) == expected
        turns += expected[0]
        for rule in expected[1]:
            places.setdefault(rule, []).append(r["origin"])
    assert checked.broken == places and len(places) == (3 if bos else 2)
    whole = total(checked)
    assert (whole.rows, whole.turns) == (400, turns)
    assert whole.tokens == sum(len(r["input_ids"]) for r in rows)
    assert whole.trained_tokens == sum(sum(r["trained"]) for r in rows)
    assert whole.cut == sum(r["cut"] for r in rows)
