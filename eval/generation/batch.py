"""Rows that are decoded together, with a KV cache."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from eval.generation.stopping import CHECK_EVERY, Ended, StopRule
from sft.packing.kv_cache import attends_to_all_tokens, preallocated_cache

# Bytes that the pass over the prompts may hold apart from keys and values: activations of a layer,
# and for rows of different lengths a mask. Prompts that need more are read in pieces.
PREFILL_BYTES = 2**30
MASK_BYTES = 5  # of a pair of tokens: a boolean, and the float32 that attention makes of it

# A common beginning shorter than this is not worth a forward pass of its own.
MIN_SHARED = 32


class DecodingBatch:
    """Rows that decode together. A slot is a row's index in the batch as it was given."""

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
        self.width, self.room = max(len(p) for p in prompts), max(caps)
        self.slots = list(range(len(prompts)))
        length = self.width + self.room
        self.cache = preallocated_cache(model.config, length=length)
        # A gap behind the shared part would lie within a sliding window, so only without one.
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
        self.uniform = None if seeds is None else _uniforms(seeds, self.room).to(device)

    def run(self, rule: StopRule, *, temperature: float, top_p: float) -> Iterator[list[Ended]]:
        """Decode until every row has ended, yielding rows as they end."""
        device = self.tokens.device
        stops = torch.tensor(sorted(rule.stop_ids), dtype=torch.int64, device=device)
        # The step after which a row ended by stop id or cap; 0 while it runs.
        ended = torch.zeros(len(self.slots), dtype=torch.int64, device=device)
        if self.shared:
            self._read_shared()
        logits = self._read_prompts()
        for step in range(1, self.room + 1):
            if self.uniform is None:
                chosen = logits.argmax(-1)
            else:
                draw = self.uniform[:, step - 1]
                chosen = sample(logits, draw, temperature=temperature, top_p=top_p)
            self.tokens[:, self.width + step - 1] = chosen
            stopped = torch.isin(chosen, stops) | (self.caps <= step)
            ended = torch.where((ended == 0) & stopped, step, ended)
            if step % CHECK_EVERY == 0 or step == self.room:
                finished, keep = self._look(rule, step, ended)
                if finished:
                    yield finished
                if not keep:
                    return
                if len(keep) < len(self.slots):
                    ended = ended[self._compact(keep)]
            logits = self.forward(self.width + step - 1, self.width + step)

    def _read_shared(self) -> None:
        """Keys and values of what all rows begin with, from one pass over one row."""
        self.model(
            input_ids=self.tokens[:1, : self.shared],
            position_ids=self.positions[:1, : self.shared],
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        self.cache.batch_repeat_interleave(len(self.slots))

    def _read_prompts(self) -> torch.Tensor:
        """Logits [B, V] after the prompts, which fill the cache, in pieces of bounded memory."""
        # Recurrent states and windows of a cache take a prompt in one piece.
        step = self._piece() if self.global_attention else self.width
        for start in range(self.shared, self.width, step):
            logits = self.forward(start, min(start + step, self.width))
        return logits

    def _piece(self) -> int:
        """How many columns of the prompts `PREFILL_BYTES` hold."""
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
        """Logits [B, V] after column end - 1; columns before `start` are in the cache."""
        logits: torch.Tensor = self.model(
            input_ids=self.tokens[:, start:end],
            attention_mask=self.mask[:, :end] if self.padded else None,
            position_ids=self.positions[:, start:end],
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits
        return logits[:, -1]

    def _look(
        self, rule: StopRule, step: int, ended: torch.Tensor
    ) -> tuple[list[Ended], list[int]]:
        """Rows that have ended, and the indices of those that go on."""
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
        """Move the last running rows into the places of ended ones; returns the new order."""
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
    """Uniform numbers [rows, count], each row from its own seed: batch mates cannot shift them."""
    return torch.stack(
        [torch.rand(count, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    )


def shared_length(prompts: Sequence[Sequence[int]]) -> int:
    """How many first tokens all prompts have in common, leaving each a token of its own."""
    low, high = min(map(list, prompts)), max(map(list, prompts))
    most = min(len(prompt) for prompt in prompts) - 1
    length = 0
    while length < most and low[length] == high[length]:
        length += 1
    return length if length >= MIN_SHARED and len(prompts) > 1 else 0


def sample(
    logits: torch.Tensor, uniform: torch.Tensor, *, temperature: float, top_p: float
) -> torch.Tensor:
    """Inverse-CDF draw [B] from logits [B, V] at `temperature`, one uniform [B] in [0, 1) each.

    Nucleus (Holtzman et al. 2020): the smallest set of likeliest tokens with mass >= top_p.
    """
    probabilities = (logits.float() / temperature).softmax(-1)
    if top_p < 1:
        probabilities, order = probabilities.sort(-1, descending=True)
        before = probabilities.cumsum(-1) - probabilities
        probabilities = probabilities.masked_fill(before >= top_p, 0.0)
    cumulative = probabilities.cumsum(-1)
    total = cumulative[:, -1:]
    # Below the total even where rounding would reach it; right=True: probability zero has no width.
    aim = torch.minimum(uniform[:, None] * total, total * (1 - 2**-23))
    picked = torch.searchsorted(cumulative, aim, right=True)
    return (order.gather(1, picked) if top_p < 1 else picked).squeeze(1)
