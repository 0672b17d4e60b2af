"""Pairs from samples: the best against the worst, by verdict alone, with everything kept."""

from collections import Counter
from dataclasses import dataclass, replace

import pytest
from rich.console import Console
from tiny_models import make_tiny_tokenizer
from tiny_world import build_world
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from dpo.encode import encode_pairs
from dpo.pair_checks import PairFacts, pairs_table
from dpo.pairs import build_pairs
from dpo.stage import sampled_pairs
from sft.chat_template.encoding import encode_prompt
from sft.chat_template.template import ensure_template
from sft.config.preset import load_preset
from sft.context import RunContext
from sft.errors import UserError
from sft.model.placement import choose_placement


@dataclass
class Sampled:
    prompt_ids: list
    token_ids: list
    text: str
    finish_reason: str = "stop_id"


@dataclass
class Ruling:
    score: float
    reasons: tuple = ()


def by_length(answer, reference):
    return Ruling(float(len(answer.token_ids)), ("longer is better here",))


def words(seeds_to_lengths):
    def sample(conversations, seeds):
        return [Sampled([1, 2], list(range(n := seeds_to_lengths(s))), "x" * n) for s in seeds]

    return sample


PROMPTS = [{"messages": [{"role": "user", "content": str(i)}]} for i in range(3)]


def test_the_best_is_chosen_and_the_worst_rejected():
    pairs, counts = build_pairs(
        PROMPTS,
        sample=words(lambda seed: seed % 4 + 1),
        score=by_length,
        samples_per_prompt=4,
        min_score_gap=1,
        seed=0,
    )
    assert (counts.prompts, counts.pairs, counts.too_close) == (3, 3, 0)
    for pair in pairs:
        assert (len(pair["chosen_ids"]), len(pair["rejected_ids"])) == (4, 1)
        assert [s["seed"] % 4 for s in pair["samples"]] == [0, 1, 2, 3]
        assert all(s["reasons"] for s in pair["samples"])


def test_answers_that_are_judged_alike_make_no_pair():
    pairs, counts = build_pairs(
        PROMPTS,
        sample=words(lambda seed: 3),
        score=by_length,
        samples_per_prompt=4,
        min_score_gap=0.5,
        seed=0,
    )
    assert pairs == [] and counts.too_close == 3


def test_ties_are_broken_by_lot_and_not_by_order():
    chosen_places = Counter()
    for seed in range(60):
        (pair,), _ = build_pairs(
            PROMPTS[:1],
            sample=lambda conversations, seeds: [
                Sampled([1], [5] * (1 + (i > 0)), str(i)) for i in range(len(seeds))
            ],
            score=by_length,
            samples_per_prompt=4,
            min_score_gap=1,
            seed=seed,
        )
        chosen_places[pair["chosen"][0]["content"]] += 1
    assert set(chosen_places) == {"1", "2", "3"}
    assert min(chosen_places.values()) >= 8


def test_given_and_sampled_pairs_become_the_same_token_rows(tiny_tokenizer):
    ensure_template(tiny_tokenizer)
    end = tiny_tokenizer.convert_tokens_to_ids("<|im_end|>")
    prompt = [{"role": "user", "content": "hi"}]
    given = {
        "prompt": prompt,
        "chosen": [{"role": "assistant", "content": "yes"}],
        "rejected": [{"role": "assistant", "content": "no"}],
    }
    sampled = given | {
        "prompt_ids": encode_prompt(tiny_tokenizer, prompt),
        "chosen_ids": [*tiny_tokenizer("yes")["input_ids"], end],
        "rejected_ids": [*tiny_tokenizer("no")["input_ids"], end],
    }
    rows, counts = encode_pairs([sampled, given], tiny_tokenizer, max_length=100)
    assert rows[0] == rows[1] | {"origin": "pair 1"}
    assert rows[0]["chosen_scored"] == [True] * 4
    assert counts == PairFacts(2, 0, 0, 0, 4.0, 3.0, 1.0, 0)


def answers(chosen, rejected):
    sides = {"chosen": chosen, "rejected": rejected}
    said = {side: [{"role": "assistant", "content": text}] for side, text in sides.items()}
    return {"prompt": PROMPTS[0]["messages"], "origin": "f.jsonl:1", **said}


def test_a_pair_with_one_long_side_is_left_out_whole_and_counted(tiny_tokenizer):
    ensure_template(tiny_tokenizer)
    given = [answers("a" * 5, "b"), answers("a" * 200, "b"), answers("a" * 200, "b" * 300)]
    rows, facts = encode_pairs(given, tiny_tokenizer, max_length=80)
    assert len(rows) == 1
    assert (facts.pairs, facts.too_long, facts.uneven, facts.equal) == (1, 2, 1, 0)


def test_a_prompt_that_is_too_long_alone_is_left_out_counted_and_refused_where_all_are(
    tiny_tokenizer,
):
    ensure_template(tiny_tokenizer)
    long = answers("a", "b") | {"prompt": [{"role": "user", "content": "q" * 200}]}
    rows, facts = encode_pairs([long, answers("a", "b")], tiny_tokenizer, max_length=80)
    assert len(rows) == 1
    assert (facts.pairs, facts.too_long, facts.uneven) == (1, 1, 0)
    with pytest.raises(UserError, match=r"is left of 1 \(1 longer than dpo\.max_length=80"):
        encode_pairs([long], tiny_tokenizer, max_length=80)


def test_the_lengths_of_both_sides_are_told(tiny_tokenizer):
    ensure_template(tiny_tokenizer)
    given = [answers("aaa", "b"), answers("aaa", "b" * 9), answers("aa", "bb"), answers("aaa", "b")]
    _, facts = encode_pairs(given, tiny_tokenizer, max_length=None)
    assert (facts.chosen_tokens, facts.rejected_tokens) == (3.75, 4.25)  # with the end-of-turn
    assert facts.chosen_longer == 2.5 / 4
    console = Console(width=80)
    with console.capture() as capture:
        console.print(pairs_table(facts))
    assert "62.5%" in capture.get()


def test_a_sampled_answer_may_lack_its_ending_and_a_wrong_beginning_stops(tiny_tokenizer):
    ensure_template(tiny_tokenizer)
    end = tiny_tokenizer.convert_tokens_to_ids("<|im_end|>")
    sampled = {
        "prompt_ids": encode_prompt(tiny_tokenizer, PROMPTS[0]["messages"]),
        "chosen_ids": [70, 71, end],
        "rejected_ids": [70, 71, 72],
        "samples": [
            {"token_ids": [70, 71, end], "finish_reason": "stop_id"},
            {"token_ids": [70, 71, 72], "finish_reason": "cap"},
        ],
    }
    assert encode_pairs([sampled], tiny_tokenizer, max_length=None)[1].unfinished == 1
    # 72 may be an eos id of the model alone, on which the sampler stops.
    sampled["samples"][1]["finish_reason"] = "stop_id"
    assert encode_pairs([sampled], tiny_tokenizer, max_length=None)[1].unfinished == 0
    nothing = sampled | {"rejected_ids": []}
    with pytest.raises(UserError, match=r"1 .*pair 1"):
        encode_pairs([nothing], tiny_tokenizer, max_length=None)
    tiny_tokenizer.bos_token = "<|pad|>"
    sampled["prompt_ids"] = [tiny_tokenizer.bos_token_id, *sampled["prompt_ids"]]
    with pytest.raises(UserError, match=r"2 where it does not begin with 0 BOS .*pair 1"):
        encode_pairs([sampled], tiny_tokenizer, max_length=None)


def test_answers_with_many_unknown_tokens_make_no_pairs(tmp_path):
    """Of 10 tokens of each answer one is unknown, which the answer's text leaves out."""
    unknown, letters = 0, "abcdefghijklmnop"
    vocabulary = {"<unk>": unknown} | {c: i for i, c in enumerate(letters, 1)}
    core = Tokenizer(models.WordLevel(vocabulary, "<unk>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", eos_token="p")
    ensure_template(tokenizer)
    build_world(tmp_path, make_tiny_tokenizer())
    preset = load_preset(str(tmp_path / "preset.yaml"))
    placement = choose_placement(preset.model)
    context = RunContext(tmp_path / "run", tokenizer, placement, None, 0, False)

    def sample(conversations, seeds):
        return [Sampled([1], [*range(1, 10), unknown], "abcdefghi") for _ in seeds]

    given = {"start": str(tmp_path / "base"), "sampled_by": {}, "score": by_length}
    words = r"pairs.prompts: 10.0% of the tokens in the model's own answers \(3 of 30\) are the unk"
    with pytest.raises(UserError, match=words):
        sampled_pairs(preset, context, prompts=PROMPTS[:1], sample=sample, **given)
    allowed = replace(context, max_unknown=0.1)
    with pytest.raises(UserError, match="no pair could be built from 1 prompts"):
        sampled_pairs(preset, allowed, prompts=PROMPTS[:1], sample=sample, **given)
