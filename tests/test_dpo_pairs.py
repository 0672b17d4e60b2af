"""Pairs from samples: the best against the worst, by verdict alone, with everything kept."""

from collections import Counter
from dataclasses import dataclass

from dpo.encode import encode_pairs
from dpo.pairs import build_pairs
from sft.chat import encode_prompt, ensure_template


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
        judge=by_length,
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
        judge=by_length,
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
            judge=by_length,
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
    assert rows[0] == rows[1]
    assert rows[0]["chosen_scored"] == [True] * 4
    assert counts == {"pairs": 2, "too_long": 0, "equal": 0}


def test_a_pair_with_one_long_side_is_left_out_whole(tiny_tokenizer):
    ensure_template(tiny_tokenizer)
    row = {"prompt": PROMPTS[0]["messages"]}
    pair = [
        row
        | {
            "chosen": [{"role": "assistant", "content": "a" * n}],
            "rejected": [{"role": "assistant", "content": "b"}],
        }
        for n in (5, 200)
    ]
    rows, counts = encode_pairs(pair, tiny_tokenizer, max_length=80)
    assert len(rows) == 1 and counts["too_long"] == 1
