"""The lengths of the preference stage's pairs, known or at most, for the plan."""

from collections.abc import Sequence
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from sft.budget import Work, pairs_work
from sft.chat import encode_prompt
from sft.config import Preset


def preference_work(
    preset: Preset,
    tokenizer: PreTrainedTokenizerBase,
    *,
    pairs: Dataset | None,
    prompts: Sequence[dict[str, Any]],
) -> list[Work]:
    """The stage's work, or none where it is off.

    Of pairs that are still to be sampled the most that can come: one for each prompt, with answers
    as long as they may be.
    """
    if not preset.dpo.enabled:
        return []
    if pairs is not None:
        columns = (pairs[f"{name}_ids"] for name in ("prompt", "chosen", "rejected"))
        lengths = [(len(p), len(c), len(r)) for p, c, r in zip(*columns, strict=True)]
        return [pairs_work(preset.dpo, lengths)]
    longest = preset.dpo.trl["max_length"]
    lengths = []
    for row in prompts:
        prompt = len(encode_prompt(tokenizer, row["messages"]))
        answer = preset.pairs.max_new_tokens
        answer = answer if longest is None else min(answer, longest - prompt)
        if answer > 0:
            lengths.append((prompt, answer, answer))
    return [pairs_work(preset.dpo, lengths, name="dpo, at most")]
