"""Decode a batch of rows with a KV cache."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from eval.generation.stopping import CHECK_EVERY, Ended, StopRule
from sft.packing.kv_cache import attends_to_all_tokens, preallocated_cache

# Bytes of activations of a layer, and of the mask of padded rows, in the pass over the prompts.
# Prompts that need more are read in chunks.
PREFILL_BYTES = 2**30
MASK_BYTES = 5  # per pair of tokens: a boolean, and the float32 that attention makes of it

MIN_SHARED = 32  # tokens; a shorter shared prefix is not worth a forward pass


class DecodingBatch:
    """Rows that decode together. A slot is the index of a row in the original batch."""

    def __init__(
        self,
        model: Any,
        prompts: Sequence[Sequence[int]],
        caps: Sequence[int],
        *,
        seeds: Sequence[int] | None,
    ) -> None:
        self.model = model
        device = next(model.parameters()).device
        self.width, self.max_new = max(len(p) for p in prompts), max(caps)
        self.slots = list(range(len(prompts)))
        length = self.width + self.max_new
        self.cache = preallocated_cache(model.config, length=length)
        # The gap after the shared prefix would count in a sliding window.
        self.global_attention = attends_to_all_tokens(model.config)
        self.shared = shared_length(prompts) if self.global_attention else 0
        shape = (len(prompts), length)
        self.tokens = torch.zeros(shape, dtype=torch.int64)
        self.mask = torch.ones(shape, dtype=torch.int64)
        for row, prompt in enumerate(prompts):
            # shared part, gap, own part: positions skip the gap
            start = self.width - len(prompt) + self.shared
            self.tokens[row, : self.shared] = torch.tensor(prompt[: self.shared])
            self.tokens[row, start : self.width] = torch.tensor(prompt[self.shared :])
            self.mask[row, self.shared : start] = 0
        self.padded = bool((self.mask == 0).any())
        self.positions = (self.mask.cumsum(1) - 1).clamp(min=0).to(device)
        self.tokens, self.mask = self.tokens.to(device), self.mask.to(device)
        self.caps = torch.tensor(caps, device=device)
        self.uniform = None if seeds is None else _uniforms(seeds, self.max_new).to(device)

    def run(self, rule: StopRule, *, temperature: float, top_p: float) -> Iterator[list[Ended]]:
        """Decode until every row has ended, yielding rows as they end."""
        device = self.tokens.device
        stops = torch.tensor(sorted(rule.stop_ids), dtype=torch.int64, device=device)
        # The step after which a row ended by stop id or cap; 0 while it runs.
        ended = torch.zeros(len(self.slots), dtype=torch.int64, device=device)
        if self.shared:
            self._read_shared()
        logits = self._read_prompts()
        for step in range(1, self.max_new + 1):
            if self.uniform is None:
                chosen = logits.argmax(-1)
            else:
                draw = self.uniform[:, step - 1]
                chosen = sample(logits, draw, temperature=temperature, top_p=top_p)
            self.tokens[:, self.width + step - 1] = chosen
            stopped = torch.isin(chosen, stops) | (self.caps <= step)
            ended = torch.where((ended == 0) & stopped, step, ended)
            if step % CHECK_EVERY == 0 or step == self.max_new:
                finished, keep = self._check_rows(rule, step, ended)
                if finished:
                    yield finished
                if not keep:
                    return
                if len(keep) < len(self.slots):
                    ended = ended[self._compact(keep)]
            logits = self.forward(self.width + step - 1, self.width + step)

    def _read_shared(self) -> None:
        """Compute keys and values of the shared prefix once, and repeat them for all rows."""
        self.model(
            input_ids=self.tokens[:1, : self.shared],
            position_ids=self.positions[:1, : self.shared],
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        self.cache.batch_repeat_interleave(len(self.slots))

    def _read_prompts(self) -> torch.Tensor:
        """Return logits [B, V] after the prompts, read into the cache in chunks."""
        # Recurrent states and sliding windows need a prompt in one chunk.
        step = self._chunk_size() if self.global_attention else self.width
        for start in range(self.shared, self.width, step):
            logits = self.forward(start, min(start + step, self.width))
        return logits

    def _chunk_size(self) -> int:
        """Return how many columns of the prompts fit in `PREFILL_BYTES`."""
        config = self.model.config.get_text_config()
        wide = getattr(config, "intermediate_size", None)
        wide = wide if isinstance(wide, int) else 4 * config.hidden_size  # a list in Gemma 3n
        # Of one layer: the residual stream, its norm, queries and output; gate, up and product.
        number = next(self.model.parameters()).element_size()
        column = (
            4 * config.hidden_size + 3 * wide
        ) * number + self.padded * MASK_BYTES * self.width
        return int(max(MIN_SHARED, PREFILL_BYTES // (len(self.slots) * column)))

    def forward(self, start: int, end: int) -> torch.Tensor:
        """Return logits [B, V] after column end - 1; columns before `start` are in the cache."""
        logits: torch.Tensor = self.model(
            input_ids=self.tokens[:, start:end],
            attention_mask=self.mask[:, :end] if self.padded else None,
            position_ids=self.positions[:, start:end],
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits
        return logits[:, -1]

    def _check_rows(
        self, rule: StopRule, step: int, ended: torch.Tensor
    ) -> tuple[list[Ended], list[int]]:
        """Return the rows that have ended and the indices of the others."""
        written = self.tokens[:, self.width : self.width + step].tolist()
        ends = ended.tolist()
        rows = [row[: end or step] for row, end in zip(written, ends, strict=True)]
        finished: list[Ended] = []
        keep: list[int] = []
        for index, suspect in enumerate(rule.suspects(rows)):
            slot, last = self.slots[index], bool(ends[index])
            over = rule.verdict(rows[index], slot=slot, ended=last, suspect=suspect)
            if over is None:
                keep.append(index)
            else:
                finished.append((self.slots[index], *over))
        return finished, keep

    def _compact(self, keep: list[int]) -> torch.Tensor:
        """Move the last running rows into the slots of ended ones; return the new order."""
        size = len(keep)
        stay = set(keep)
        movers = iter(index for index in keep if index >= size)
        order = [index if index in stay else next(movers) for index in range(size)]
        self.slots = [self.slots[index] for index in order]
        picked = torch.tensor(order, device=self.tokens.device)
        self.tokens, self.mask = self.tokens[picked], self.mask[picked]
        self.positions, self.caps = self.positions[picked], self.caps[picked]
        if self.uniform is not None:
            self.uniform = self.uniform[picked]
        self.cache.batch_select_indices(picked)
        return picked


def _uniforms(seeds: Sequence[int], count: int) -> torch.Tensor:
    """Draw uniform numbers [rows, count], each row from its seed, independent of the batch."""
    return torch.stack(
        [torch.rand(count, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    )


def shared_length(prompts: Sequence[Sequence[int]]) -> int:
    """Return the length of the prompts' common prefix; each prompt keeps at least one token."""
    low, high = min(map(list, prompts)), max(map(list, prompts))
    most = min(len(prompt) for prompt in prompts) - 1
    length = 0
    while length < most and low[length] == high[length]:
        length += 1
    return length if length >= MIN_SHARED and len(prompts) > 1 else 0


def sample(
    logits: torch.Tensor, uniform: torch.Tensor, *, temperature: float, top_p: float
) -> torch.Tensor:
    """Sample [B] from logits [B, V] by inverse CDF, with uniform numbers [B] in [0, 1).

    The nucleus is the smallest set of likeliest tokens with mass >= top_p (Holtzman et al. 2020).
    """
    probabilities = (logits.float() / temperature).softmax(-1)
    if top_p < 1:
        probabilities, order = probabilities.sort(-1, descending=True)
        before = probabilities.cumsum(-1) - probabilities
        probabilities = probabilities.masked_fill(before >= top_p, 0.0)
    cumulative = probabilities.cumsum(-1)
    total = cumulative[:, -1:]
    # Rounding must not reach the total; right=True never picks a token of probability zero.
    aim = torch.minimum(uniform[:, None] * total, total * (1 - 2**-23))
    picked = torch.searchsorted(cumulative, aim, right=True)
    return (order.gather(1, picked) if top_p < 1 else picked).squeeze(1)
