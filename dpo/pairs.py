"""Preference pairs from the model's own samples: several answers a prompt, judged, best and worst.

The sampler and the judge are plain callables that the recipe passes in; all processes of a run
call the sampler, and each judges its share of the answers. The pairs file keeps every
sample with its seed, its verdict and the verdict's reasons.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from sft.distributed.collectives import map_over_ranks

Message = dict[str, Any]


class Answer(Protocol):
    """A sampled answer: what `eval.generation.generate` returns."""

    prompt_ids: list[int]
    token_ids: list[int]
    text: str
    finish_reason: str


class Verdict(Protocol):
    """What a judge says: higher is better."""

    score: float
    reasons: tuple[str, ...]


Sampler = Callable[[Sequence[list[Message]], Sequence[int]], Sequence[Answer]]
Judge = Callable[[Answer, dict[str, Any]], Verdict]


@dataclass(frozen=True)
class PairCounts:
    """What became of the prompts."""

    prompts: int
    pairs: int
    too_close: int  # every answer judged about the same: nothing to prefer


def build_pairs(
    prompts: Sequence[dict[str, Any]],
    *,
    sample: Sampler,
    judge: Judge,
    samples_per_prompt: int,
    min_score_gap: float,
    seed: int,
) -> tuple[list[dict[str, Any]], PairCounts]:
    """Sample, judge, and pair the best answer of each prompt with the worst.

    Args:
        prompts: rows of {"messages": [...], "reference"?: {...}}; messages end with a user turn.
        sample: given conversations and one seed each, returns one answer each, in order.
        judge: given an answer and the row's reference, returns a verdict.
        min_score_gap: best and worst closer than this make no pair.

    Returns:
        Rows of {"prompt", "chosen", "rejected"} as messages, with the token ids that were sampled
        (`prompt_ids`, `chosen_ids`, `rejected_ids`) and every sample with its verdict; and counts.
    """
    conversations = [row["messages"] for row in prompts for _ in range(samples_per_prompt)]
    seeds = [seed * 1_000_003 + i for i in range(len(conversations))]
    answers = sample(conversations, seeds)
    assert len(answers) == len(conversations), "a sampler returns one answer a conversation"
    references = [row.get("reference") or {} for row in prompts for _ in range(samples_per_prompt)]
    verdicts = map_over_ranks(
        list(zip(answers, references, strict=True)),
        lambda own: [judge(answer, reference) for answer, reference in own],
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
                "score": verdict.score,
                "reasons": list(verdict.reasons),
            }
            for seed_, answer, verdict in zip(
                seeds[span], answers[span], verdicts[span], strict=True
            )
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
    # Ties go by lot, not by order or length: neither may become a preference of its own.
    lot = random.Random(seed)
    ranked = sorted(
        (s for s in samples if s["token_ids"]), key=lambda s: (s["score"], lot.random())
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
