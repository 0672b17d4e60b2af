"""Batched generation with a KV cache, in which a finished row costs nothing.

Prompts are sorted by length, batched within a token budget and left-padded. Every few steps,
finished rows are removed from the batch. The shared prefix of a batch (few-shot examples) is
computed once. The tokens of a row depend on its prompt and seed, not on the batch (up to float
rounding).
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

# Bytes of keys and values of a batch without a token budget. A step of the few long rows at the
# end of a batch costs nearly as much as a step of many, so few large batches are faster.
CACHE_BYTES = 2**30


@dataclass(frozen=True)
class Generation:
    """The continuation of one prompt."""

    prompt_ids: list[int]
    token_ids: list[int]  # with the stop id, if that ended it
    text: str  # without special tokens, and without the stop string
    finish_reason: FinishReason


@dataclass(frozen=True)
class GenerationSettings:
    """How rows of token ids are continued, and when they end.

    Attributes:
        max_new_tokens: the cap, of all rows or of each.
        stop_ids: token ids that end a row.
        stop_strings: a row ends at the token that completes one after any thinking
            (`eval.generation.thinking`); its text ends before the string.
        temperature: 0 is greedy decoding; otherwise `seeds` decide the draws.
        top_p: probability mass of the nucleus.
        seeds: of each row.
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
    """Continue each prompt until a stop id, a stop string or its cap.

    Args:
        model: a causal LM of transformers, PEFT-wrapped or not.
        prompts: token ids, at least one each; the caller adds special tokens.
        max_batch_tokens: maximum of rows * (longest prompt + cap); by default CACHE_BYTES.
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
    """Yield batches of row indices, longest first, within `budget` tokens.

    Without `padded`, the prompts of a batch have the same length.
    """
    batch: list[int] = []
    prompt = cap = 0
    for row in sorted(range(len(lengths)), key=lambda r: (-lengths[r], -caps[r], r)):
        other_length = not padded and lengths[row] != prompt
        prompt, cap = max(prompt, lengths[row]), max(cap, caps[row])
        if batch and (other_length or (len(batch) + 1) * (prompt + cap) > budget):
            yield batch
            batch, prompt, cap = [], lengths[row], caps[row]
        batch.append(row)
    if batch:
        yield batch


def _token_budget(model: Any) -> int:
    config = model.config.get_text_config()
    heads = getattr(config, "num_attention_heads", 1)
    size = config.hidden_size // heads
    # transformers raises RuntimeError for values that differ between layers (Gemma 4).
    with suppress(RuntimeError):
        heads = getattr(config, "num_key_value_heads", None) or heads
        size = getattr(config, "head_dim", None) or size
    weight = next(model.parameters())
    token_bytes = 2 * config.num_hidden_layers * heads * size * weight.element_size()
    return max(1, int(CACHE_BYTES // token_bytes))
