"""The breakdown of stored answers, by hand, against the measure, and on real text."""

import gzip
import json
import re
import sysconfig
from itertools import combinations, pairwise
from pathlib import Path

import pytest
from files import ROOT
from looping_model import PROMPTS, looping_model
from transformers import AutoTokenizer

from eval.measures.repetition import greedy_answers, repeats, summarize
from eval.measures.repetition_breakdown import detail, groups, halved, near_loop, sensitivity
from eval.metrics.loop_detection import find_loop
from sft.chat_template.template import ensure_template
from sft.config.sections import RepetitionSection, Source
from sft.data.prompts import read_prompts

VARIED = list(range(1000, 1400))


def row(tokens, reason="cap", cap=100, *, text="", language="en", category="code"):
    facts = {"text": text, "language": language, "category": category}
    return {"token_ids": tokens, "finish_reason": reason, "cap": cap} | facts


ENDLESS = [5] * 200


def test_groups_are_partitions_of_the_rate():
    rows = [
        row(ENDLESS, language="en", category="code"),
        row(VARIED[:100], language="en", category="math"),
        row(ENDLESS, language="zh", category="math"),
        row(ENDLESS, language="zh", category="math"),
        row(VARIED[:50], "stop_id", language="zh", category="code"),
    ]
    found = {(g["language"], g["category"]): (g["rate"], g["n"]) for g in groups(rows)}
    assert found == {
        ("en", ""): (1 / 2, 2),
        ("zh", ""): (2 / 3, 3),
        ("", "code"): (1 / 2, 2),
        ("", "math"): (2 / 3, 3),
        ("en", "code"): (1.0, 1),
        ("en", "math"): (0.0, 1),
        ("zh", "code"): (0.0, 1),
        ("zh", "math"): (1.0, 2),
    }
    # One language and one category say what the whole says.
    assert groups(rows[:1]) == []
    assert {(g["language"], g["category"]) for g in groups(rows[:2])} == {
        ("", "code"),
        ("", "math"),
    }


def test_each_threshold_moves_the_answers_that_it_should():
    unit = VARIED[:30]
    two_copies = [*VARIED[100:140], *unit * 6][:200]  # exactly two by the cap of 100
    three_copies = [*VARIED[100:110], *unit * 7][:200]
    left = [*[5] * 150, *VARIED[:50]]
    rows = [row(two_copies), row(three_copies), row(left), row(ENDLESS)]
    found = {entry["definition"]: entry["rate"] for entry in sensitivity(rows)}
    assert found == {
        "as defined": 3 / 4,  # not the one that was left
        "3 copies by the cap": 2 / 4,
        "4 copies by the cap": 1 / 4,
        "loops at the cap, not followed": 4 / 4,
        "half the cap": 2 / 4,  # of 50: the one that was left later, and the plain one
    }
    assert sensitivity(rows)[0]["rate"] == summarize(rows)["rate"]
    assert detail(rows)["sensitivity"] == sensitivity(rows)


@pytest.mark.parametrize(("width", "seed"), [(0.08, 1), (0.09, 3), (0.08, 2)])
def test_half_the_cap_is_what_would_have_been_measured(tiny_tokenizer, width, seed):
    ensure_template(tiny_tokenizer)
    model = looping_model(width, seed)
    rows = greedy_answers(model, tiny_tokenizer, PROMPTS, cap=90)
    small = greedy_answers(model, tiny_tokenizer, PROMPTS, cap=45)
    assert [repeats(halved(r)) for r in rows] == [r["repeats"] for r in small]


@pytest.mark.parametrize(
    ("text", "near"),
    [
        ("".join(f"{i}. Rest well and drink water.\n" for i in range(1, 20)), True),
        (
            "Here are tips:\n" + "".join(f"Day {i}, 0{i}:30: run {i}.5 km. " for i in range(20)),
            True,
        ),
        ("".join(f"第{n}，要多喝水。" for n in "一二三四五六七八九十" * 2), True),
        ("".join(f"{i}, " for i in range(60)), True),
        (
            "1. Wake up early. 2. Drink water. 3. Stretch. 4. Read a page. 5. Call a friend. ",
            False,
        ),
        ("".join(f"{i}. {'abcdefghijklmnopqrstuvwxyz'[i]} comes next. " for i in range(20)), False),
        ("".join(f"{i}. Rest well and drink water.\n" for i in range(1, 4)), False),
    ],
)
def test_a_list_that_only_counts_is_a_near_loop(text, near):
    assert near_loop(row(VARIED[:100], text=text)) == near
    assert not near_loop(row(VARIED[:90], "stop_id", text=text)), "it ended"
    assert not near_loop(row(ENDLESS, text=text)), "a loop is counted as one"


def bundled():
    return read_prompts([Source(RepetitionSection().prompts)])


def test_the_bundled_prompts_are_many_of_each_kind_and_language():
    rows = bundled()
    assert len(rows) >= 400
    counts = {}
    for r in rows:
        counts[(r["language"], r["category"])] = counts.get((r["language"], r["category"]), 0) + 1
    kinds = {"writing", "question answering", "reasoning", "code", "math", "small talk"}
    assert set(counts) == {(language, kind) for language in ("en", "zh") for kind in kinds}
    assert min(counts.values()) >= 30
    assert len({r["id"] for r in rows}) == len(rows)
    for r in rows:
        chinese = sum("\u4e00" <= c <= "\u9fff" for c in r["messages"][-1]["content"])
        assert (chinese > 3) == (r["language"] == "zh"), r["id"]


def test_the_bundled_prompts_are_not_cut_from_a_template():
    """No two share half of their four-character pieces, and no beginning comes often."""
    texts = [r["messages"][0]["content"] for r in bundled()]
    pieces = [{text[i : i + 4] for i in range(len(text) - 3)} or {text} for text in texts]
    assert max(len(a & b) / len(a | b) for a, b in combinations(pieces, 2)) < 0.4
    starts = {}
    for text in texts:
        start = text[:8] if re.search("[\u4e00-\u9fff]", text) else " ".join(text.split()[:4])
        starts[start] = starts.get(start, 0) + 1
    assert max(starts.values()) <= 4


def read(path):
    with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as lines:
        return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def encode(real_data):
    tokenizer = AutoTokenizer.from_pretrained(real_data / "tokenizers/qwen2.5")
    return lambda texts: tokenizer(list(texts), add_special_tokens=False)["input_ids"]


@pytest.mark.real
def test_on_real_outputs_it_finds_the_loops_and_nothing_else(real_data, encode):
    """2,000 outputs of ten models. Read by hand: nine end in a loop, and four count without end."""
    rows = read(real_data / "eval/alpaca_eval_model_outputs.jsonl.gz")
    texts = [r["output"] for r in rows]
    loops, near = [], []
    for source, tokens in zip(rows, encode(texts), strict=True):
        stored = row(tokens, cap=max(len(tokens), 1), text=source["output"])
        if find_loop(tokens):
            loops.append(source["generator"])
        elif near_loop(stored):
            near.append(source["generator"])
    assert sorted(loops) == sorted(
        ["baize-v2-7b", *["guanaco-7b"] * 3, *["phi-2"] * 4, "phi-2-sft"]
    )
    assert sorted(near) == ["guanaco-7b", "oasst-sft-pythia-12b", "phi-2", "phi-2"]


def refrains():
    """Our own songs and charms, whose refrains come back as people write them."""
    verses = [
        "The kettle sings upon the stove, the rain is on the sill,",
        "The road goes down to Harrow Cove and up again the hill,",
        "My brother has a wooden leg, my sister has a drum,",
        "The hen has laid a silver egg, the geese will surely come,",
        "And when the lamps along the quay are lit against the blue,",
        "I'll put my hat and mittens on and walk back home with you.",
    ]
    refrain = (
        "Oh, row, row, ferryman, row, row, row,\nthe tide is coming in again and home we go.\n"
    )
    yield "".join(f"{a}\n{refrain}" for a in verses)
    yield "".join(f"{a}\n{b}\n{refrain}{refrain}" for a, b in pairwise(verses))
    yield "\n".join(
        f"{n} green lanterns hanging on the wall" for n in ("Ten", "Nine", "Eight", "Two")
    )
    yield "啦啦啦，啦啦啦，我是卖花的小姑娘。\n" * 3 + "太阳出来我不怕，月亮出来我回家。\n"
    yield "\n".join(
        f"{v}\n摇啊摇，摇到外婆桥。" for v in ("春天来了柳枝长", "夏天来了荷花香", "秋天来了稻子黄")
    )
    yield "ha " * 20 + "that was a good one. " + "ho " * 20


def tables(real_data):
    """Rows of real questions as Markdown tables, as CSV and as lists."""
    rows = read(real_data / "eval/mmlu_val.jsonl")
    fields = [[str(v)[:40] for v in r.values()] for r in rows]
    for first in range(0, len(fields) - 12, 12):
        part = fields[first : first + 12]
        rule = "| " + " | ".join("---" for _ in part[0]) + " |"
        yield "\n".join([rule, *("| " + " | ".join(cells) + " |" for cells in part)])
        yield "\n".join(f"- {cells[0]}: {cells[-1]}" for cells in part)
        yield "x,0,0,0\n" + "\n".join(f"{i},0,0,{len(cells[0])}" for i, cells in enumerate(part))


def human_texts(real_data):
    """Texts that people wrote, or tables and lists of such."""

    def replies(node):
        if node["role"] == "assistant":
            yield node["text"]
        for reply in node.get("replies", []):
            yield from replies(reply)

    sft = real_data / "sft"
    yield from (r["response"] for r in read(sft / "dolly_hhrlhf_small.jsonl"))
    for tree in read(sft / "oasst_en_100_trees.jsonl"):
        yield from replies(tree["prompt"])
    yield from (r["answer"] for r in read(sft / "gsm8k_train.jsonl.gz"))
    yield from (r["canonical_solution"] for r in read(real_data / "eval/humaneval.jsonl"))
    yield from (r["output"] for r in read(sft / "codealpaca_2k.jsonl"))
    for poem in read(real_data / "models/poem-zh-750k/poetry_corpus.jsonl.gz"):
        yield "".join(poem["content"])
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        yield path.read_text("utf-8", errors="replace")[:20_000]
    yield from tables(real_data)
    yield from refrains()


@pytest.mark.real
def test_false_alarms_on_what_people_write_are_below_one_in_a_thousand(real_data, encode):
    """Each text is cut at every sixteenth token, as if a model had been there at twice its cap."""
    encoded = encode(human_texts(real_data))
    alarms = [
        index
        for index, tokens in enumerate(encoded)
        if find_loop(tokens)
        or any(
            repeats(row(tokens[: 2 * cap], cap=cap)) for cap in range(32, len(tokens) // 2 + 1, 16)
        )
    ]
    assert len(encoded) > 20_000
    assert len(alarms) / len(encoded) < 0.001, alarms


def test_refrains_are_no_loops(tiny_tokenizer):
    for text in refrains():
        assert find_loop(tiny_tokenizer(text)["input_ids"]) is None
    assert (ROOT / RepetitionSection().prompts).is_file()
