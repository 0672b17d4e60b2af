import gzip
import json

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from looping_model import PROMPTS, looping_model
from tiny_models import make_tiny_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from eval.generation.generate import GenerationSettings, generate
from eval.generation.padding_check import supports_padding
from eval.measures.repetition import (
    check_cap,
    check_prompts,
    greedy_answers,
    repeats,
    sampled_answers,
    summarize,
)
from eval.metrics.loop_detection import MIN_COPIES, MIN_TOKENS, Loop, find_loop, seq_rep_n
from eval.metrics.stats import wilson
from sft.chat_template.encoding import encode_prompt, stop_ids
from sft.chat_template.template import ensure_template
from sft.errors import UserError
from sft.packing.logprobs import enable_scoring


def brute_force(tokens):
    """The definition, word for word."""
    n = len(tokens)
    for period in range(1, n):
        start = n - period
        while start > 0 and tokens[start - 1] == tokens[start - 1 + period]:
            start -= 1
        covered = n - start
        if covered // period >= MIN_COPIES and covered >= MIN_TOKENS:
            return Loop(period, covered // period, start)
    return None


@settings(max_examples=300)
@given(
    head=st.lists(st.integers(0, 2), max_size=60),
    unit=st.lists(st.integers(0, 2), min_size=1, max_size=30),
    times=st.integers(0, 12),
    partial=st.integers(0, 30),
    tail=st.lists(st.integers(0, 2), max_size=3),
)
@example(head=[], unit=[1], times=64, partial=0, tail=[])
@example(head=[], unit=[1], times=63, partial=0, tail=[])
def test_find_loop_equals_the_definition(head, unit, times, partial, tail):
    tokens = head + unit * times + unit[:partial] + tail
    assert find_loop(tokens) == brute_force(tokens)


@settings(max_examples=100)
@given(st.lists(st.integers(0, 1), max_size=200))
def test_find_loop_equals_the_definition_on_noise(tokens):
    assert find_loop(tokens) == brute_force(tokens)


def test_find_loop_limits():
    unit = list(range(1000, 1400))
    assert find_loop([7, 8, *unit * 4]) == Loop(400, 4, 2)
    assert find_loop([*unit, 1] * 5) == Loop(401, 5, 0)
    assert find_loop(unit * 3 + unit[:-1]) is None
    assert find_loop([1, 2, 3] * 21) is None, "63 tokens are too few"
    assert find_loop([9, 1, 2, 3] + [1, 2, 3] * 21 + [1, 2]) == Loop(3, 22, 1)
    assert find_loop([1, 2] * 40 + [0]) is None, "an ended loop is no loop"
    assert find_loop([]) is None


def test_seq_rep_by_hand():
    assert seq_rep_n([1, 2, 3], n=4) == 0.0
    assert seq_rep_n([1, 1, 1, 1, 1], n=4) == pytest.approx(0.5)
    assert seq_rep_n([1, 2, 1, 2, 1, 2], n=2) == pytest.approx(1 - 2 / 5)


def plain_rows(model, tokenizer, *, cap):
    """What the measure must find, by decoding every prompt to the doubled cap."""
    contexts = [encode_prompt(tokenizer, p["messages"]) for p in PROMPTS]
    settings = GenerationSettings(max_new_tokens=2 * cap, stop_ids=stop_ids(tokenizer))
    return generate(model, tokenizer, contexts, settings)


def periodic_since(tokens, cap):
    """By the definition: with some period, each token from two copies before the cap on repeats."""
    return len(tokens) >= 2 * cap and any(
        all(tokens[i] == tokens[i - period] for i in range(cap - period, 2 * cap))
        for period in range(1, cap // 2 + 1)
    )


# Of the eight answers: all loop for good; one leaves its loop; all do; the same, other tokens.
@pytest.mark.parametrize(
    ("width", "seed", "endless"), [(0.08, 1, 8), (0.09, 3, 7), (0.08, 2, 0), (0.12, 3, 0)]
)
def test_measure_agrees_with_decoding_everything(tiny_tokenizer, width, seed, endless):
    ensure_template(tiny_tokenizer)
    model, cap = looping_model(width, seed), 90
    rows = greedy_answers(model, tiny_tokenizer, PROMPTS, cap=cap)
    assert sum(row["repeats"] for row in rows) == endless
    for row, full in zip(rows, plain_rows(model, tiny_tokenizer, cap=cap), strict=True):
        assert row["token_ids"] == full.token_ids[: len(row["token_ids"])]
        begun = periodic_since(full.token_ids, cap)
        assert row["repeats"] == (full.finish_reason == "cap" and begun)
        assert cap <= len(row["token_ids"]) <= 2 * cap


@pytest.mark.parametrize(("width", "seed", "endless"), [(0.08, 1, 8), (0.09, 3, 4)])
def test_an_early_stop_saves_the_rest_of_the_cap_and_agrees_with_the_full_run(
    tiny_tokenizer, width, seed, endless
):
    ensure_template(tiny_tokenizer)
    model, cap = looping_model(width, seed), 200
    supports_padding(model)  # whose check runs forward passes
    passes = []
    model.register_forward_hook(lambda *_: passes.append(1))
    full = plain_rows(model, tiny_tokenizer, cap=cap)
    assert len(passes) == 2 * cap
    passes.clear()
    rows = greedy_answers(model, tiny_tokenizer, PROMPTS, cap=cap)
    assert len(passes) < cap
    assert sum(row["repeats"] for row in rows) == endless
    for row, whole in zip(rows, full, strict=True):
        assert row["token_ids"] == whole.token_ids[: len(row["token_ids"])]
        assert row["repeats"] == periodic_since(whole.token_ids, cap)


@pytest.mark.parametrize(("width", "seed"), [(0.08, 1), (0.09, 3), (0.08, 2)])
def test_carried_on_to_a_larger_cap_it_measures_what_it_would_have_from_the_start(
    tiny_tokenizer, width, seed
):
    ensure_template(tiny_tokenizer)
    model = looping_model(width, seed)
    rows = greedy_answers(model, tiny_tokenizer, PROMPTS, cap=40)
    carried = greedy_answers(model, tiny_tokenizer, PROMPTS, cap=80, begun=rows)
    assert carried == greedy_answers(model, tiny_tokenizer, PROMPTS, cap=80)


def test_sampled_answers_are_those_of_plain_sampling_cut_where_no_loop_continues(
    tiny_tokenizer,
):
    ensure_template(tiny_tokenizer)
    model, cap = looping_model(0.09, 3), 72
    options = {"cap": cap, "temperature": 0.02, "seed": 5}
    rows = sampled_answers(model, tiny_tokenizer, PROMPTS, **options)
    full = generate(
        model,
        tiny_tokenizer,
        [row["prompt_ids"] for row in rows],
        GenerationSettings(
            max_new_tokens=2 * cap,
            stop_ids=stop_ids(tiny_tokenizer),
            temperature=0.02,
            seeds=[row["seed"] for row in rows],
        ),
    )
    assert 0 < sum(row["repeats"] for row in rows) < len(rows)
    for row, whole in zip(rows, full, strict=True):
        assert row["token_ids"] == whole.token_ids[: len(row["token_ids"])]
        assert row["repeats"] == (
            whole.finish_reason == "cap" and periodic_since(whole.token_ids, cap)
        )
        assert len(row["token_ids"]) >= cap
    # A prompt's answer hangs on its id and the seed, not on its place.
    assert sampled_answers(model, tiny_tokenizer, PROMPTS[::-1], **options) == rows[::-1]
    other = sampled_answers(model, tiny_tokenizer, PROMPTS, **options | {"temperature": 1.0})
    assert not any(row["repeats"] for row in other)


def test_figures_come_from_the_stored_rows(tiny_tokenizer, tmp_path):
    ensure_template(tiny_tokenizer)
    counts = []
    model = looping_model(0.09, 3)
    rows = greedy_answers(model, tiny_tokenizer, PROMPTS, cap=70, progress=counts.append)
    assert sum(counts) == len(PROMPTS)
    stored = [json.loads(json.dumps(row)) for row in rows]
    summary = summarize(stored)
    assert summary == summarize(rows)
    assert set(summary) == {"rate", "ci", "n", "distinct_loops", "truncated", "cap", "seq_rep_4"}
    endless = sum(row["repeats"] for row in stored)
    assert endless > 0
    assert summary["rate"] == endless / 8 and summary["ci"] == list(wilson(endless, 8))
    for row, prompt in zip(stored, PROMPTS, strict=True):
        assert row["repeats"] == repeats(row)
        assert row["messages"] == prompt["messages"]
        assert row["text"] == tiny_tokenizer.decode(
            row["token_ids"][:-1] if row["finish_reason"] == "stop_id" else row["token_ids"],
            skip_special_tokens=True,
        )
        if row["loop"]:
            part = row["token_ids"][row["loop"]["start"] :]
            period = row["loop"]["period"]
            assert part[period:] == part[:-period]


def test_loops_of_one_passage_count_as_one_wherever_they_enter_it():
    passage, other = list(range(20, 50)), [7, 8, 9, 8]
    rows = [
        stored(passage * 7, "cap"),
        stored([1, 2] + (passage[11:] + passage[:11]) * 7, "cap"),
        stored([3] + passage * 7, "cap"),
        stored(other * 50, "cap"),
        stored(list(range(150)), "stop_id"),
    ]
    for row in rows:
        row["token_ids"] = row["token_ids"][:200]
    summary = summarize(rows)
    assert summary["rate"] == 4 / 5 and summary["distinct_loops"] == 2


def stored(tokens, reason, cap=100):
    return {"token_ids": tokens, "finish_reason": reason, "cap": cap}


def test_summary_counts_each_outcome_once():
    varied = list(range(1000, 1400))
    rows = [
        stored([*varied[:50], 0], "stop_id"),  # ended
        stored(varied[:100], "cap"),  # truncated, no loop
        stored([5] * 200, "cap"),  # endless
        stored([5] * 150, "cap"),  # looped at the cap, then left the loop
        stored(varied[:110] + [5] * 90, "cap"),  # no loop at the cap
        stored([5] * 99 + [0], "stop_id"),  # looped, but ended before the cap
    ]
    summary = summarize(rows)
    assert summary["rate"] == pytest.approx(1 / 6)
    assert summary["truncated"] == pytest.approx(3 / 6)
    one_gram, looping = 1 - 1 / 97, 1 - 1 / 96
    assert summary["seq_rep_4"] == pytest.approx((2 * one_gram + looping) / 6)


def test_a_loop_longer_than_a_quarter_of_the_cap_is_found():
    cap, unit = 100, list(range(1000, 1040))
    assert repeats(stored((unit * 5)[: 2 * cap], "cap"))
    # Two copies by the cap, not one and a half.
    begun = [*range(20), *unit, *unit]
    assert repeats(stored([*begun, *unit * 3][: 2 * cap], "cap"))
    assert not repeats(stored([0, *begun, *unit * 3][: 2 * cap], "cap"))
    assert not repeats(stored((unit * 5)[: 2 * cap - 1], "cap"))


@pytest.mark.parametrize("period", [256, 257, 283, 310, 400, 500])
def test_a_period_has_no_bound_but_the_cap(period):
    cap, unit = 1000, list(range(period))
    head = list(range(5000, 5000 + cap - 2 * period))  # so that two copies end at the cap
    tokens = [*head, *unit * 8][: 2 * cap]
    assert repeats(stored(tokens, "cap", cap=cap))
    assert find_loop(tokens, cap=cap) == Loop(period, (2 * cap - len(head)) // period, len(head))
    assert not repeats(stored([1, *tokens[:-1]], "cap", cap=cap)), "a token later"
    assert not repeats(stored([*tokens[:-1], 1], "cap", cap=cap)), "left at the last token"


def test_from_the_smallest_cap_on_no_loop_is_too_short_to_count():
    """Every loop that has begun twice by the cap and lasts to its double has 64 tokens."""
    with pytest.raises(UserError, match="so a shorter cap would miss some; give at least 64"):
        check_cap(63)
    check_cap(64)
    for cap, found in ((64, True), (60, False)):
        shortest = [*range(100, 98 + cap), *[7] * (cap + 2)]
        assert find_loop(shortest, cap=cap) == Loop(1, cap + 2, cap - 2)
        assert repeats(stored(shortest, "cap", cap=cap)) == found


def test_a_prompt_that_leaves_less_than_the_doubled_cap_is_refused(tiny_tokenizer):
    ensure_template(tiny_tokenizer)
    model = enable_scoring(make_tiny_model(max_position_embeddings=256))
    with pytest.raises(
        UserError, match=r"cap=120: prompt p2 has \d+ tokens .* lower the cap to \d"
    ):
        greedy_answers(model, tiny_tokenizer, PROMPTS, cap=120)
    words = r"4 times the cap \(double_cap\); shorten or drop the prompt"
    with pytest.raises(UserError, match=words):
        check_prompts(tiny_tokenizer, PROMPTS, window=128, cap=25, times=4)
    with pytest.raises(UserError, match="id p0 occurs twice"):
        greedy_answers(model, tiny_tokenizer, [PROMPTS[0], PROMPTS[0]], cap=10)
    with pytest.raises(UserError, match="needs prompts"):
        greedy_answers(model, tiny_tokenizer, [], cap=10)


@pytest.mark.real
def test_a_real_model_loops_and_human_poems_do_not(real_data):
    """poem-zh-750k repeats a cycle of twelve tokens, greedy, where nothing ends its poem."""
    folder = real_data / "models/poem-zh-750k"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    prompt = tokenizer("主题：明月 体裁：五绝\n")["input_ids"]
    (answer,) = generate(
        model, tokenizer, [prompt], GenerationSettings(max_new_tokens=115, stop_ids=[])
    )
    loop = find_loop(answer.token_ids)
    assert loop is not None and loop.period == 12
    with gzip.open(folder / "poetry_corpus.jsonl.gz", "rt") as lines:
        poems = [json.loads(line)["content"] for line in lines]
    texts = [text if isinstance(text, str) else "\n".join(text) for text in poems]
    assert not any(find_loop(ids) for ids in tokenizer(texts)["input_ids"])
