"""The proof at the start of a run: rows score, and where trained learn, as single sequences do.

On the live backend and with the model's own weights, before the first step; what fails it is
replaced by something slower that does not, aloud.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from sft.distributed.fsdp_forward import evaluating
from sft.errors import UserError
from sft.packing.document_attention import DOCUMENTS
from sft.packing.flex_attention import FLEX, VARIANTS
from sft.packing.layout import Batch, Document, RowKind, Segment, lay_out
from sft.packing.logprobs import (
    ROW_ERRORS,
    attention_inputs,
    attention_of,
    decoder_of,
    disable_packing,
    log_probs,
    row_layout,
    sequence_sums,
)

log = logging.getLogger(__name__)

# Rounding per token between packed and single rows, by the dtype of the weights.
ROUNDING = {
    torch.float64: 1e-6,
    torch.float32: 1e-3,
    torch.bfloat16: 0.1,
    torch.float16: 0.05,
}
# Rounding of logits, as a share of their length: mixtures of experts group tokens anew.
AHEAD = {
    torch.float64: 1e-6,
    torch.float32: 1e-3,
    torch.bfloat16: 0.05,
    torch.float16: 0.01,
}
# Rounding of a gradient, as a share of its length, by the dtype of matrix products.
SLOPE_ROUNDING = {torch.float32: 0.01, torch.bfloat16: 0.2, torch.float16: 0.05}

# Tokens of a trunk, its two branches and a neighbour: for blocks as many as make a block that is
# seen whole, blocks seen in part, and blocks that are skipped.
LENGTHS, BLOCK_LENGTHS = (7, 5, 3, 6), (300, 40, 30, 20)

# Attention of ours, and how its fallback is told.
OWN = {FLEX: "sdpa with masks over rows (flex", DOCUMENTS: "sdpa (document by document"}


def verify_packing(model: Any, *, training: torch.dtype | None = None) -> None:
    """Prove on the live backend that rows score as single sequences do, or find rows that do.

    Flex attention and document by document fall back to sdpa, and packed rows to a row for each
    sequence (layers with convolutions or states carry over what stands before); each is logged.

    Args:
        training: the dtype that the model is going to be trained in, if it is.

    Raises:
        UserError: a token sees what follows it, or not even single rows score as the model's own
            forward does.
    """
    name, attention = model.config.model_type, attention_of(model)
    if looks_ahead(model):
        raise UserError(
            f"a {name!r} model sees the tokens that follow, as its files configure it, so it would "
            "learn to copy them; choose a causal language model"
        )
    flaw = attention_mismatch(model, training=training) if attention in OWN else _tried(model)
    if flaw and attention in OWN:
        log.info("attention: %s, %s: %s)", OWN[attention], name, flaw)
        model.set_attn_implementation("sdpa")
        flaw = _tried(model)
    if flaw:
        log.info("packing: off, prompts are not shared (%s in packed rows: %s)", name, flaw)
        disable_packing(model)
        if flaw := _tried(model):
            raise UserError(
                f"rows do not score as single sequences do on {name!r} with {attention_of(model)} "
                f"attention ({flaw}); set model.attn_implementation=sdpa or eager, or choose "
                "another model"
            )


def looks_ahead(model: Any) -> bool:
    """Whether the model's own forward lets a token see the one behind it."""
    weight = next(model.parameters())
    tokens = torch.tensor([Example.draw(model).trunk], device=weight.device)
    other = tokens.clone()
    other[0, -1] = 1 - tokens[0, -1].clamp(max=1)  # 0 or 1, and another
    with evaluating(model), torch.no_grad():
        before, after = (model(input_ids=t).logits[0, :-1].float() for t in (tokens, other))
    return ((before - after).norm() / before.norm()).item() > AHEAD[weight.dtype]


@dataclass(frozen=True)
class Example:
    """Token ids of a trunk, two branches and a neighbour."""

    trunk: list[int]
    first: list[int]
    second: list[int]
    lone: list[int]

    @classmethod
    def draw(cls, model: Any) -> "Example":
        """The same at each call."""
        generator = torch.Generator().manual_seed(0)
        vocab = min(model.config.get_text_config().vocab_size, 1000)
        lengths = BLOCK_LENGTHS if row_layout(model) == "blocks" else LENGTHS
        return cls(*(torch.randint(vocab, (n,), generator=generator).tolist() for n in lengths))

    def rows(self, model: Any) -> Batch:
        """All in one row, where the model reads such rows."""
        branches = tuple(Segment(ids, [True] * len(ids)) for ids in (self.first, self.second))
        pair = Document(Segment(self.trunk, [False] * len(self.trunk)), branches)
        lone = Document(Segment(self.lone, [False] + [True] * (len(self.lone) - 1)))
        batch = lay_out([pair, lone], packing=True, rows=row_layout(model))
        return batch.to(next(model.parameters()).device)


def packing_mismatch(model: Any) -> str | None:
    """What is wrong with rows on the live backend, or None where they are as they must be.

    A trunk with two branches and a neighbour share one row. Each sequence's log-prob must equal
    that of the model's own forward on the sequence alone, within the rounding of its weights, and
    changing a branch or the neighbour must leave the others exactly as they were where they share a
    row. Takes milliseconds on small models.
    """
    example = Example.draw(model)
    other = Example(example.trunk, example.first[::-1], example.second, example.lone[::-1])
    weight = next(model.parameters())

    def packed(example: Example) -> tuple[torch.Tensor, torch.Tensor]:
        batch = example.rows(model)
        values = log_probs(model, batch)
        return sequence_sums(values, batch), values[batch.sequence == 1]

    with evaluating(model), torch.no_grad():
        (sums, second), (_, unchanged) = packed(example), packed(other)
        pairs = [
            (example.trunk, example.first),
            (example.trunk, example.second),
            (example.lone[:1], example.lone[1:]),
        ]
        alone = torch.stack([plain_sum(model, *pair, weight.device) for pair in pairs])
    lengths = torch.tensor([len(completion) for _, completion in pairs], device=weight.device)
    worst = ((sums - alone).abs() / lengths).max().item()
    leak = (unchanged - second).abs().max().item()
    # Experts that multiply all their tokens at once round anew where a row of its own changes.
    allowed = ROUNDING[weight.dtype] if row_layout(model) == "apart" else 0
    if worst <= ROUNDING[weight.dtype] and leak <= allowed:
        return None
    return f"log-probs differ by {worst:.3g} nats per token, {leak:.3g} across branches"


def plain_sum(model: Any, prompt: Any, completion: Any, device: torch.device) -> torch.Tensor:
    """The log-probability of a completion by the model's own forward."""
    tokens = torch.tensor([[*prompt, *completion]], device=device)
    logits = model(input_ids=tokens).logits[0, len(prompt) - 1 : -1].float()
    picked = logits.log_softmax(-1).gather(1, tokens[0, len(prompt) :, None])
    return picked.sum()


def attention_mismatch(model: Any, *, training: torch.dtype | None) -> str | None:
    """What is wrong with attention of ours, or None: it runs (flex attention: compiles) here for
    scoring and for training, and both give what they must."""
    if attention_of(model) == FLEX:
        # What is compiled differs in more ways than torch allows for by itself.
        limits = torch._dynamo.config
        limits.recompile_limit = max(VARIANTS, limits.recompile_limit)
    flaw = _tried(model)
    if flaw is None and training is not None:
        flaw = _tried(model, partial(_gradient_mismatch, compute=training))
    return flaw


def _tried(model: Any, proof: Callable[[Any], str | None] = packing_mismatch) -> str | None:
    """What a proof finds, or what is raised in it."""
    try:
        with evaluating(model):
            return proof(model)
    except ROW_ERRORS as error:
        return f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"


def _gradient_mismatch(model: Any, compute: torch.dtype) -> str | None:
    """What is wrong with gradients over packed rows.

    That of a branch's final states by the embeddings must be zero at each token which the branch
    does not see, and elsewhere what it is over a dense mask.
    """
    batch = Example.draw(model).rows(model)
    with torch.no_grad():
        model.train()
        log_probs(model, batch)  # upstream refuses dropout, which is there in training alone
        model.eval()
    ours, dense = (_slopes(model, batch, rows, compute) for rows in (row_layout(model), "masked"))
    sees = (batch.document == 0) & ((batch.branch == 0) | (batch.branch == 2))
    leak = ours[~sees].abs().max().item()
    off = ((ours - dense).norm() / dense.norm()).item()
    if leak == 0 and off <= SLOPE_ROUNDING[compute]:
        return None
    return f"gradients differ by {off:.3g} of their length, {leak:.3g} across branches"


@contextmanager
def caught_embeddings(model: Any) -> Iterator[list[torch.Tensor]]:
    """What the embeddings give in a forward pass within, as leaves to take gradients by."""
    caught: list[torch.Tensor] = []

    def catch(module: Any, args: Any, output: torch.Tensor) -> torch.Tensor:
        caught.append(output.detach().requires_grad_())
        return caught[-1]

    with model.get_input_embeddings().register_forward_hook(catch):
        yield caught


def _slopes(model: Any, batch: Batch, rows: RowKind, compute: torch.dtype) -> torch.Tensor:
    """The gradient of the second branch's final states, in one direction, by the embeddings."""
    device = batch.input_ids.device
    with (
        caught_embeddings(model) as embeddings,
        torch.autocast(device.type, dtype=compute, enabled=compute != torch.float32),
    ):
        states = decoder_of(model)(
            input_ids=batch.input_ids,
            position_ids=batch.position_ids,
            use_cache=False,
            **attention_inputs(model, batch, rows=rows),
        ).last_hidden_state
    branch = states[(batch.document == 0) & (batch.branch == 2)].float()
    direction = torch.randn(branch.shape, generator=torch.Generator().manual_seed(0)).to(device)
    return torch.autograd.grad((branch * direction).sum(), embeddings)[0].float()
