"""Sample answers to conversations from a model on disk, to build preference pairs."""

from collections.abc import Callable, Sequence
from typing import Any

from accelerate import PartialState
from tqdm import tqdm

from eval.backends.loading import loaded
from eval.generation.generate import Generation, GenerationSettings
from sft.chat_template.encoding import encode_prompt, stop_ids
from sft.config.sections import EvalSection, PairsSection
from sft.context import RunContext
from sft.distributed.collectives import map_over_ranks, own_share


def sampler(
    path: str, context: RunContext, *, section: PairsSection, engine: EvalSection
) -> Callable[[Sequence[list[dict[str, Any]]], Sequence[int]], list[Generation]]:
    """Return a function of conversations and seeds that samples one answer each.

    All processes call that function and divide the conversations; it loads the model.
    """

    def sample(
        conversations: Sequence[list[dict[str, Any]]], seeds: Sequence[int]
    ) -> list[Generation]:
        with (
            loaded(path, context, engine) as backend,
            tqdm(
                total=len(own_share(conversations)),
                desc="sampling answers",
                unit="answer",
                disable=not PartialState().is_main_process,
            ) as bar,
        ):

            def answers(rows: list[tuple[list[dict[str, Any]], int]]) -> list[Generation]:
                settings = GenerationSettings(
                    max_new_tokens=section.max_new_tokens,
                    stop_ids=stop_ids(context.tokenizer, also=backend.eos_ids),
                    temperature=section.temperature,
                    top_p=section.top_p,
                    seeds=[seed for _, seed in rows],
                )
                prompts = [encode_prompt(context.tokenizer, messages) for messages, _ in rows]
                return backend.generate(prompts, settings, progress=bar.update)

            return map_over_ranks(list(zip(conversations, seeds, strict=True)), answers)

    return sample
