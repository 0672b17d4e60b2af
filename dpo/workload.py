"""Lengths of the preference stage's pairs, known or an upper bound, for the planner."""

from collections.abc import Sequence
from typing import Any

from accelerate import PartialState
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from sft.chat_template.encoding import encode_prompt
from sft.config.sections import Preset
from sft.errors import UserError
from sft.planning.budget import StageWorkload, pairs_workload
from sft.planning.stages import count_steps, step_rows
from sft.training.lr_schedules import long_warmup


def preference_workload(
    preset: Preset,
    tokenizer: PreTrainedTokenizerBase,
    *,
    pairs: Dataset | None,
    prompts: Sequence[dict[str, Any]],
) -> list[StageWorkload]:
    """Return the stage's workload, or none if it is disabled.

    Pairs that are not sampled yet count as one for each prompt, with answers of the largest length.

    Raises:
        UserError: no prompt leaves tokens for an answer.
    """
    if not preset.dpo.enabled:
        return []
    if pairs is not None:
        columns = (pairs[f"{name}_ids"] for name in ("prompt", "chosen", "rejected"))
        lengths = [(len(p), len(c), len(r)) for p, c, r in zip(*columns, strict=True)]
        return [pairs_workload(preset.dpo, lengths)]
    longest = preset.dpo.trl["max_length"]
    lengths = []
    for row in prompts:
        prompt = len(encode_prompt(tokenizer, row["messages"]))
        answer = preset.pairs.max_new_tokens
        answer = answer if longest is None else min(answer, longest - prompt)
        if answer > 0:
            lengths.append((prompt, answer, answer))
    if prompts and not lengths:
        raise UserError(
            f"pairs.prompts: each of {len(prompts)} prompts fills dpo.max_length={longest} tokens, "
            "so that no answer fits after it; raise it, or give shorter prompts"
        )
    return [pairs_workload(preset.dpo, lengths, bound=True)]


def preference_line(workload: StageWorkload) -> str:
    """Return the stage's pairs, batches and steps as a log line."""
    batch = step_rows(workload.section, processes=PartialState().num_processes)
    steps = count_steps(len(workload.spans), batch=batch, options=workload.section.trl)
    most = "at most " if workload.bound else ""
    note = long_warmup(workload.section.trl, total_steps=steps)
    return (
        f"dpo: {most}{len(workload.spans):,} pairs, {most}{workload.tokens:,} tokens an epoch, "
        f"batches of {batch}, {most}{steps:,} steps{'; ' * bool(note)}{note}"
    )
