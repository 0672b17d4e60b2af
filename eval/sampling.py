"""Answers to conversations from a model on disk: what pairs are built from."""

from collections.abc import Callable, Sequence
from typing import Any

from accelerate import PartialState
from tqdm import tqdm

from eval.generate import Generation, generate
from sft.chat import encode_prompt, stop_ids
from sft.config import PairsSection
from sft.model import load_model
from sft.setting import Setting
from sft.shares import own_share, split


def sampler(
    path: str, setting: Setting, *, section: PairsSection
) -> Callable[[Sequence[list[dict[str, Any]]], Sequence[int]], list[Generation]]:
    """A function of conversations and seeds that samples one answer each.

    Processes share the conversations: all call it. The model is loaded when the function is called,
    so that nothing is where nothing is sampled.
    """

    def sample(
        conversations: Sequence[list[dict[str, Any]]], seeds: Sequence[int]
    ) -> list[Generation]:
        model = load_model(
            path,
            setting.placement,
            dtype=setting.placement.inference,
            trust_remote_code=setting.trust_remote_code,
        )
        bar = tqdm(
            total=len(own_share(conversations)),
            desc="sampling answers",
            unit="answer",
            disable=not PartialState().is_main_process,
        )

        def answers(asked: list[tuple[list[dict[str, Any]], int]]) -> list[Generation]:
            return generate(
                model,
                setting.tokenizer,
                [encode_prompt(setting.tokenizer, messages) for messages, _ in asked],
                max_new_tokens=section.max_new_tokens,
                stop_ids=stop_ids(setting.tokenizer),
                temperature=section.temperature,
                top_p=section.top_p,
                seeds=[seed for _, seed in asked],
                progress=bar.update,
            )

        with bar:
            return split(list(zip(conversations, seeds, strict=True)), answers)

    return sample
