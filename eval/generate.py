"""Batched generation with a KV cache, in which a finished row costs nothing.

Prompts are left-padded and sorted by length into batches of a token budget. Every few steps the
finished rows are taken out of the batch, so that one endless row does not hold up the others. What
all prompts of a batch begin with (few-shot examples) is computed once. A row's tokens depend on its
prompt and its seed, never on its batch mates (up to float rounding).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from eval.cache import preallocated_cache, sees_everything
from sft.few_rows import few_rows
from sft.lockstep import reading

# Steps between two looks at the rows: stop strings, loops, compaction, and on GPUs the only sync.
CHECK_EVERY = 8
# A common beginning shorter than this is not worth a forward pass of its own.
MIN_SHARED = 32
# Bytes of keys and values that a batch may hold when the caller gives no token budget. Each batch
# ends with a few long rows, which cost a step nearly as much as many do: few batches are faster.
CACHE_BYTES = 2**30

FinishReason = Literal["stop_id", "stop_string", "cap", "loop"]


@dataclass(frozen=True)
class Generation:
    """What a model wrote after one prompt."""

    prompt_ids: list[int]
    token_ids: list[int]  # with the stop id, where that ended it
    text: str  # without special tokens, and without the stop string
    finish_reason: FinishReason


def generate(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int | Sequence[int],
    stop_ids: Sequence[int],
    stop_strings: Sequence[str] = (),
    temperature: float = 0.0,
    top_p: float = 1.0,
    seeds: Sequence[int] | None = None,
    max_batch_tokens: int | None = None,
    stop_when: Callable[[list[int]], bool] | None = None,
    progress: Callable[[int], object] | None = None,
) -> list[Generation]:
    """Continue each prompt until a stop id, a stop string or its cap, in the order given.

    Args:
        model: a causal LM of transformers (PEFT-wrapped or not), on its device, in its dtype.
        prompts: token ids, at least one each; special tokens are the caller's business.
        max_new_tokens: the cap, for all rows or one for each.
        stop_strings: a row ends at the token that completes one of them; `text` ends before it.
        temperature: 0 is greedy, otherwise `seeds` (one a row) decide the draws.
        max_batch_tokens: rows times (longest prompt + cap) of a batch; by default as many as a
            gibibyte of keys and values holds.
        stop_when: called every few tokens with a running row's tokens; True ends it as "loop".
        progress: called with the number of rows that ended since the last call.

    Raises:
        ValueError: an empty prompt, or sampling without a seed for each row.
    """
    caps = [max_new_tokens] * len(prompts) if isinstance(max_new_tokens, int) else max_new_tokens
    assert len(caps) == len(prompts) and all(cap > 0 for cap in caps), f"caps {caps}"
    for index, prompt in enumerate(prompts):
        if not prompt:
            raise ValueError(f"prompt {index} is empty; a model needs a token to continue from")
    if temperature > 0 and (seeds is None or len(seeds) != len(prompts)):
        raise ValueError(f"sampling at temperature {temperature:g} needs one seed for each prompt")
    budget = max_batch_tokens or _token_budget(model)
    results: list[Generation | None] = [None] * len(prompts)
    was_training = model.training
    model.eval()
    try:
        with few_rows(model), reading(model):
            for rows in _batches([len(p) for p in prompts], caps, budget=budget):
                batch = _Batch(
                    model,
                    [prompts[r] for r in rows],
                    [caps[r] for r in rows],
                    seeds=[seeds[r] for r in rows] if seeds and temperature > 0 else None,
                )
                rule = StopRule(tokenizer, frozenset(stop_ids), tuple(stop_strings), stop_when)
                for ended in batch.run(rule, temperature=temperature, top_p=top_p):
                    for slot, token_ids, text, reason in ended:
                        row = rows[slot]
                        results[row] = Generation(list(prompts[row]), token_ids, text, reason)
                    if progress is not None:
                        progress(len(ended))
    finally:
        model.train(was_training)
    return [result for result in results if result is not None]


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


_Verdict = tuple[list[int], str, FinishReason]
_Ended = tuple[int, list[int], str, FinishReason]


@dataclass(frozen=True)
class StopRule:
    """When a row ends, judged on its token ids."""

    tokenizer: Any
    stop_ids: frozenset[int]
    stop_strings: tuple[str, ...]
    stop_when: Callable[[list[int]], bool] | None

    def verdict(self, tokens: list[int], *, ended: bool, suspect: bool) -> _Verdict | None:
        """Tokens, text and reason of a row that is over, or None for one that goes on.

        Args:
            ended: the last token is a stop id or the last that the cap allows.
            suspect: see `suspects`.
        """
        if suspect and (cut := self.cut(tokens)) is not None:
            return *cut, "stop_string"
        if ended:
            reason: FinishReason = "stop_id" if tokens[-1] in self.stop_ids else "cap"
            return tokens, self.text(tokens), reason
        if self.stop_when is not None and self.stop_when(tokens):
            return tokens, self.text(tokens), "loop"
        return None

    def replay(self, tokens: list[int], *, ended: bool) -> _Verdict | None:
        """The verdict on tokens that were decoded elsewhere: looked at as `generate` would have
        looked, every few of them."""
        for step in range(CHECK_EVERY, len(tokens) + CHECK_EVERY, CHECK_EVERY):
            seen = tokens[:step]
            (suspect,) = self.suspects([seen])
            found = self.verdict(seen, ended=ended and step >= len(tokens), suspect=suspect)
            if found is not None:
                return found
        return None

    def suspects(self, rows: Sequence[list[int]]) -> list[bool]:
        """Which rows show a stop string in what the last steps may have completed."""
        if not self.stop_strings or not rows:
            return [False] * len(rows)
        # A token holds at least a byte, so this tail covers every stop string that ends in it.
        reach = max(len(s.encode()) for s in self.stop_strings) + CHECK_EVERY + 4
        tails = self.tokenizer.batch_decode(
            [row[-reach:] for row in rows], skip_special_tokens=True
        )
        return [any(s in tail for s in self.stop_strings) for tail in tails]

    def cut(self, tokens: list[int]) -> tuple[list[int], str] | None:
        """Tokens up to the one that completes the first stop string, and the text before it."""
        for end in range(max(1, len(tokens) - CHECK_EVERY), len(tokens) + 1):
            text = self.text(tokens[:end])
            found = [at for s in self.stop_strings if (at := text.find(s)) >= 0]
            if found:
                return tokens[:end], text[: min(found)]
        return None

    def text(self, tokens: list[int]) -> str:
        """Decoded text without special tokens, a final stop id among them."""
        if tokens and tokens[-1] in self.stop_ids:
            tokens = tokens[:-1]
        return self.tokenizer.decode(tokens, skip_special_tokens=True)


class _Batch:
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
        self.shared = shared_length(prompts) if sees_everything(self.cache) else 0
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

    def run(self, rule: StopRule, *, temperature: float, top_p: float) -> Iterator[list[_Ended]]:
        """Decode until every row has ended, yielding rows as they end."""
        device = self.tokens.device
        stops = torch.tensor(sorted(rule.stop_ids), dtype=torch.int64, device=device)
        # The step after which a row ended by stop id or cap; 0 while it runs.
        ended = torch.zeros(len(self.slots), dtype=torch.int64, device=device)
        if self.shared:
            self._read_shared()
        logits = self._forward(self.shared, self.width)
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
            logits = self._forward(self.width + step - 1, self.width + step)

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

    def _forward(self, start: int, end: int) -> torch.Tensor:
        """Logits [B, V] after column end - 1; columns before `start` are in the cache."""
        return self.model(
            input_ids=self.tokens[:, start:end],
            attention_mask=self.mask[:, :end] if self.padded else None,
            position_ids=self.positions[:, start:end],
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]

    def _look(
        self, rule: StopRule, step: int, ended: torch.Tensor
    ) -> tuple[list[_Ended], list[int]]:
        """Rows that have ended, and the indices of those that go on."""
        written = self.tokens[:, self.width : self.width + step].tolist()
        ends = ended.tolist()
        rows = [row[: end or step] for row, end in zip(written, ends, strict=True)]
        finished: list[_Ended] = []
        keep: list[int] = []
        for index, suspect in enumerate(rule.suspects(rows)):
            over = rule.verdict(rows[index], ended=bool(ends[index]), suspect=suspect)
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


def _batches(lengths: Sequence[int], caps: Sequence[int], *, budget: int) -> Iterator[list[int]]:
    """Row indices, longest first, so that rows times the widest row stays within `budget`."""
    batch: list[int] = []
    prompt = cap = 0
    for row in sorted(range(len(lengths)), key=lambda r: (-lengths[r], -caps[r], r)):
        prompt, cap = max(prompt, lengths[row]), max(cap, caps[row])
        if batch and (len(batch) + 1) * (prompt + cap) > budget:
            yield batch
            batch, prompt, cap = [], lengths[row], caps[row]
        batch.append(row)
    if batch:
        yield batch


def _token_budget(model: Any) -> int:
    config = model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    weight = next(model.parameters())
    return max(
        1, CACHE_BYTES // (2 * config.num_hidden_layers * heads * size * weight.element_size())
    )
