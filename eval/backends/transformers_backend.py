"""The default backend: a model of transformers in this process.

Shared contexts and shared prefixes of contexts are computed once. Log-probabilities are computed
for scored tokens only, with log-sum-exp in float32.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from eval.backends.base import Backend, Scored, ScoreRequest
from eval.generation.batch import MIN_SHARED, shared_length
from eval.generation.generate import Generation, GenerationSettings, generate
from sft.chat_template.encoding import ids_of
from sft.distributed.fsdp_forward import eval_without_grad
from sft.model.architecture import window_of
from sft.packing.kv_cache import Prefix, attends_to_all_tokens, read_prefix
from sft.packing.layout import Document, Segment
from sft.packing.logprobs import batch_tokens, row_layout, score, scoring_batch, sequence_sums


def backend_of(model: Any, tokenizer: PreTrainedTokenizerBase) -> Backend:
    """Return a backend unchanged, or wrap a causal LM prepared by `enable_scoring`."""
    return model if isinstance(model, Backend) else TransformersBackend(model, tokenizer)


@dataclass(frozen=True)
class _Numbered:
    """A question and its index."""

    place: int
    question: ScoreRequest


_Group = list[_Numbered]  # of one context


class TransformersBackend(Backend):
    """A causal LM prepared by `sft.packing.logprobs.enable_scoring`, PEFT-wrapped or not."""

    def __init__(self, model: Any, tokenizer: PreTrainedTokenizerBase) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.window = window_of(model.config)
        self._budget = batch_tokens(next(model.parameters()).device)

    @property
    def eos_ids(self) -> tuple[int, ...]:  # type: ignore[override]
        """Return the current stop ids: `generation_config` can be set after loading."""
        return ids_of(self.model.generation_config.eos_token_id)

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        settings: GenerationSettings,
        *,
        progress: Callable[[int], object] | None = None,
    ) -> list[Generation]:
        return generate(self.model, self.tokenizer, prompts, settings, progress=progress)

    def score(
        self, questions: Sequence[ScoreRequest], *, progress: Callable[[int], object] | None = None
    ) -> list[Scored]:
        with eval_without_grad(self.model):
            return self._score(questions, progress)

    def _score(
        self, questions: Sequence[ScoreRequest], progress: Callable[[int], object] | None
    ) -> list[Scored]:
        contexts: dict[tuple[int, ...], _Group] = {}
        for place, question in enumerate(questions):
            contexts.setdefault(question.context, []).append(_Numbered(place, question))
        found: dict[int, Scored] = {}
        packed = row_layout(self.model) != "separate"
        shares = packed and attends_to_all_tokens(self.model.config)
        for shared, groups in _families(list(contexts.values()), shares=shares):
            prefix = None
            if shared:
                prefix = read_prefix(self.model, _context(groups[0])[:shared])
            groups.sort(key=_size, reverse=True)
            for batch in _batches(groups, budget=self._budget, shared=shared):
                places = [one.place for group in batch for one in group]
                found |= zip(places, self._forward(batch, prefix=prefix), strict=True)
                if progress is not None:
                    progress(len(places))
        return [found[place] for place in range(len(questions))]

    def _forward(self, groups: Sequence[_Group], *, prefix: Prefix | None) -> list[Scored]:
        """Run one packed forward pass with a row for each group."""
        documents = []
        before = prefix.length if prefix else 0
        for group in groups:
            context = _context(group)[before:]
            tails = [one.question.continuation for one in group]
            branches = tuple(Segment(tail, [True] * len(tail)) for tail in tails)
            documents.append(Document(Segment(context, [False] * len(context)), branches))
        batch = scoring_batch(self.model, documents)
        if self.window is not None:
            # The last token of a full window is scored but predicts nothing: any position is fine.
            batch.position_ids.clamp_(max=self.window - 1 - before)
        scores = score(self.model, batch, prefix=prefix)
        totals = sequence_sums(scores.log_probs, batch)
        parts = (totals.float(), batch.sequence.float(), scores.is_argmax.float())
        flat = torch.cat(parts).tolist()  # the batch's only sync
        count, tokens = len(totals), len(scores.log_probs)
        agreed, agrees = [0] * count, [True] * count
        # The tokens of a sequence are in order, but other sequences may be between them.
        for owner, hit in zip(
            map(int, flat[count : count + tokens]), flat[count + tokens :], strict=True
        ):
            agrees[owner] &= hit == 1
            agreed[owner] += agrees[owner]
        return [Scored(*one) for one in zip(flat[:count], agreed, strict=True)]


def _size(group: _Group) -> int:
    return len(_context(group)) + sum(len(one.question.continuation) for one in group)


def _families(groups: Sequence[_Group], *, shares: bool) -> list[tuple[int, list[_Group]]]:
    """Return families of groups with the length of their shared prefix, 0 without one."""
    if not shares or not groups:
        return [(0, list(groups))]
    found = list(_parts(groups, shared=_shared(groups)))
    alone = [group for shared, family in found if not shared for group in family]
    return [family for family in found if family[0]] + ([(0, alone)] if alone else [])


def _parts(groups: Sequence[_Group], *, shared: int) -> Iterator[tuple[int, list[_Group]]]:
    """Split a family of groups further if longer shared prefixes save tokens.

    Few-shot examples leave out the question itself, so a few questions have other examples, which
    would shorten the prefix of all.
    """
    starts: dict[tuple[int, ...], list[_Group]] = {}
    for group in groups:
        starts.setdefault(_context(group)[shared : shared + MIN_SHARED], []).append(group)
    rest = []
    for part in starts.values():
        more = _shared(part)
        if len(part) < len(groups) and len(part) * (more - shared) > more:
            yield from _parts(part, shared=more)
        else:
            rest += part
    if rest:
        yield _shared(rest), rest


def _context(group: _Group) -> tuple[int, ...]:
    return group[0].question.context


def _shared(groups: Sequence[_Group]) -> int:
    return shared_length([_context(group) for group in groups])


def _batches(groups: Sequence[_Group], *, budget: int, shared: int) -> Iterable[list[_Group]]:
    """Yield batches of groups, longest first, whose padded size is at most `budget` tokens."""
    batch: list[_Group] = []
    for group in groups:
        if batch and (len(batch) + 1) * (_size(batch[0]) - shared) > budget:
            yield batch
            batch = []
        batch.append(group)
    if batch:
        yield batch
