"""Batched generation with a KV cache, in which a finished row costs nothing.

Prompts are left-padded and sorted by length into batches of a token budget. Every few steps the
finished rows are taken out of the batch, so that one endless row does not hold up the others. What
all prompts of a batch begin with (few-shot examples) is computed once. A row's tokens depend on its
prompt and its seed, never on its batch mates (up to float rounding).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from eval.generation.batch import DecodingBatch
from eval.generation.padding_check import supports_padding
from eval.generation.stopping import FinishReason, StopRule
from sft.distributed.fsdp_forward import eval_without_grad
from sft.model.cpu_linear import weight_first_layers

# Bytes of keys and values that a batch may hold when the caller gives no token budget. Each batch
# ends with a few long rows, which cost a step nearly as much as many do: few batches are faster.
CACHE_BYTES = 2**30


@dataclass(frozen=True)
class Generation:
    """What a model wrote after one prompt."""

    prompt_ids: list[int]
    token_ids: list[int]  # with the stop id, where that ended it
    text: str  # without special tokens, and without the stop string
    finish_reason: FinishReason


@dataclass(frozen=True)
class GenerationSettings:
    """How rows of token ids are continued, and when they end.

    Attributes:
        max_new_tokens: the cap, for all rows or one for each.
        stop_ids: token ids that end a row.
        stop_strings: a row ends at the token that completes one of them, after its thinking where
            it thinks (`eval.generation.thinking`); its text ends before the string.
        temperature: 0 is greedy decoding; otherwise `seeds` decide the draws.
        top_p: probability mass of the nucleus that is sampled from.
        seeds: one for each row.
        stop_when: called every few tokens with a running row's tokens; True ends it as "loop".
    """

    max_new_tokens: int | Sequence[int]
    stop_ids: Sequence[int]
    stop_strings: Sequence[str] = ()
    temperature: float = 0.0
    top_p: float = 1.0
    seeds: Sequence[int] | None = None
    stop_when: Callable[[list[int]], bool] | None = None

    def caps(self, rows: int) -> Sequence[int]:
        """Return the cap of each row."""
        cap = self.max_new_tokens
        return [cap] * rows if isinstance(cap, int) else cap

    def stop_rule(
        self, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Sequence[int]]
    ) -> StopRule:
        """Return the rule that ends the rows of `prompts`."""
        return StopRule(
            tokenizer, prompts, frozenset(self.stop_ids), tuple(self.stop_strings), self.stop_when
        )


def generate(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    settings: GenerationSettings,
    *,
    max_batch_tokens: int | None = None,
    progress: Callable[[int], object] | None = None,
) -> list[Generation]:
    """Continue each prompt until a stop id, a stop string or its cap, in the order given.

    Args:
        model: a causal LM of transformers (PEFT-wrapped or not), on its device, in its dtype.
        prompts: token ids, at least one each; the caller adds special tokens.
        max_batch_tokens: rows times (longest prompt + cap) of a batch; by default as many as a
            gibibyte of keys and values holds.
        progress: called with the number of rows that ended since the last call.

    Raises:
        ValueError: an empty prompt, or sampling without a seed for each row.
    """
    caps, seeds, temperature = settings.caps(len(prompts)), settings.seeds, settings.temperature
    assert len(caps) == len(prompts) and all(cap > 0 for cap in caps), f"caps {caps}"
    for index, prompt in enumerate(prompts):
        if not prompt:
            raise ValueError(f"prompt {index} is empty; a model needs a token to continue from")
    if temperature > 0 and (seeds is None or len(seeds) != len(prompts)):
        raise ValueError(f"sampling at temperature {temperature:g} needs one seed for each prompt")
    budget = max_batch_tokens or _token_budget(model)
    results: list[Generation | None] = [None] * len(prompts)
    with weight_first_layers(model), eval_without_grad(model):
        padded = supports_padding(model)
        for rows in _batches([len(p) for p in prompts], caps, budget=budget, padded=padded):
            own = [prompts[r] for r in rows]
            batch = DecodingBatch(
                model,
                own,
                [caps[r] for r in rows],
                seeds=[seeds[r] for r in rows] if seeds and temperature > 0 else None,
            )
            rule = settings.stop_rule(tokenizer, own)
            for ended in batch.run(rule, temperature=temperature, top_p=settings.top_p):
                for slot, token_ids, text, reason in ended:
                    row = rows[slot]
                    results[row] = Generation(list(prompts[row]), token_ids, text, reason)
                if progress is not None:
                    progress(len(ended))
    return [result for result in results if result is not None]


def _batches(
    lengths: Sequence[int], caps: Sequence[int], *, budget: int, padded: bool
) -> Iterator[list[int]]:
    """Row indices, longest first, so that rows times the widest row stays within `budget`; rows of
    one length alone unless they can be `padded`."""
    batch: list[int] = []
    prompt = cap = 0
    for row in sorted(range(len(lengths)), key=lambda r: (-lengths[r], -caps[r], r)):
        apart = not padded and lengths[row] != prompt
        prompt, cap = max(prompt, lengths[row]), max(cap, caps[row])
        if batch and (apart or (len(batch) + 1) * (prompt + cap) > budget):
            yield batch
            batch, prompt, cap = [], lengths[row], caps[row]
        batch.append(row)
    if batch:
        yield batch


def _token_budget(model: Any) -> int:
    config = model.config.get_text_config()
    heads = getattr(config, "num_attention_heads", 1)
    size = config.hidden_size // heads
    with suppress(RuntimeError):  # upstream's, of what differs from layer to layer (Gemma 4)
        heads = getattr(config, "num_key_value_heads", None) or heads
        size = getattr(config, "head_dim", None) or size
    weight = next(model.parameters())
    token_bytes = 2 * config.num_hidden_layers * heads * size * weight.element_size()
    return max(1, int(CACHE_BYTES // token_bytes))
