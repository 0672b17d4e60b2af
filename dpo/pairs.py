"""Preference pairs from the model's own samples: the best and the worst answer to each prompt.

All processes of a run call the sampler, and each scores its share of the answers.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from sft.distributed.collectives import map_over_ranks

Message = dict[str, Any]


class SampledAnswer(Protocol):
    """An answer as `eval.generation.generate` returns it."""

    prompt_ids: list[int]
    token_ids: list[int]
    text: str
    finish_reason: str


class AnswerScore(Protocol):
    """A score, higher is better, with its reasons."""

    score: float
    reasons: tuple[str, ...]


Sampler = Callable[[Sequence[list[Message]], Sequence[int]], Sequence[SampledAnswer]]
Scorer = Callable[[SampledAnswer, dict[str, Any]], AnswerScore]


@dataclass(frozen=True)
class PairCounts:
    """Numbers of prompts and of the pairs built from them."""

    prompts: int
    pairs: int
    too_close: int  # prompts whose answers have about the same score


def build_pairs(
    prompts: Sequence[dict[str, Any]],
    *,
    sample: Sampler,
    score: Scorer,
    samples_per_prompt: int,
    min_score_gap: float,
    seed: int,
) -> tuple[list[dict[str, Any]], PairCounts]:
    """Sample, score, and pair the best answer to each prompt with the worst.

    Args:
        prompts: rows of {"messages": [...], "reference"?: {...}}; messages end with a user turn.
        sample: returns one answer for each conversation and its seed, in order.
        score: returns the score of an answer, given the reference of its row.
        min_score_gap: smallest difference of the scores of a pair.

    Returns:
        Rows of {"prompt", "chosen", "rejected"} as messages, with the sampled token ids
        (`prompt_ids`, `chosen_ids`, `rejected_ids`) and every sample with its score; and counts.
    """
    conversations = [row["messages"] for row in prompts for _ in range(samples_per_prompt)]
    # Runs with different seeds share no sampling seed below a million samples.
    seeds = [seed * 1_000_003 + i for i in range(len(conversations))]
    answers = sample(conversations, seeds)
    assert len(answers) == len(conversations), "a sampler returns one answer for each conversation"
    references = [row.get("reference") or {} for row in prompts for _ in range(samples_per_prompt)]
    scores = map_over_ranks(
        list(zip(answers, references, strict=True)),
        lambda own: [score(answer, reference) for answer, reference in own],
    )
    pairs = []
    for i, row in enumerate(prompts):
        span = slice(i * samples_per_prompt, (i + 1) * samples_per_prompt)
        samples = [
            {
                "seed": seed_,
                "text": answer.text,
                "token_ids": list(answer.token_ids),
                "finish_reason": answer.finish_reason,
                "score": found.score,
                "reasons": list(found.reasons),
            }
            for seed_, answer, found in zip(seeds[span], answers[span], scores[span], strict=True)
        ]
        pair = _pair(row, samples, list(answers[span][0].prompt_ids), min_score_gap, seed + i)
        if pair is not None:
            pairs.append(pair)
    return pairs, PairCounts(len(prompts), len(pairs), len(prompts) - len(pairs))


def _pair(
    row: dict[str, Any],
    samples: list[dict[str, Any]],
    prompt_ids: list[int],
    min_score_gap: float,
    seed: int,
) -> dict[str, Any] | None:
    # Ties are broken at random: by order or length they would teach a preference for either.
    rng = random.Random(seed)
    ranked = sorted(
        (s for s in samples if s["token_ids"]), key=lambda s: (s["score"], rng.random())
    )
    if len(ranked) < 2 or ranked[-1]["score"] - ranked[0]["score"] < min_score_gap:
        return None
    chosen, rejected = ranked[-1], ranked[0]
    return {
        "prompt": row["messages"],
        "chosen": [{"role": "assistant", "content": chosen["text"]}],
        "rejected": [{"role": "assistant", "content": rejected["text"]}],
        "prompt_ids": prompt_ids,
        "chosen_ids": chosen["token_ids"],
        "rejected_ids": rejected["token_ids"],
        "reference": row.get("reference"),
        "samples": samples,
    }
