"""Verification at load time: packed rows score and train exactly as single sequences do.

The checks run on the backend with the model's weights, before the first step.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from sft.distributed.fsdp_forward import eval_mode
from sft.errors import UserError
from sft.packing.document_attention import DOCUMENTS
from sft.packing.flex_attention import FLEX, MAX_COMPILED_VARIANTS
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
from sft.packing.tolerances import TOLERANCES, error_summary, relative_error

log = logging.getLogger(__name__)

# Tokens of a trunk, its two branches and a second document. Flex attention gets lengths that make
# a block in which everything is visible, partly visible blocks, and skipped blocks.
LENGTHS, BLOCK_LENGTHS = (7, 5, 3, 6), (300, 40, 30, 20)

# Log messages for the fallback from this package's own attention.
OWN = {FLEX: "sdpa with masks over rows (flex", DOCUMENTS: "sdpa (document by document"}


def verify_packing(model: Any, *, training: torch.dtype | None = None) -> None:
    """Check that packed rows score as single sequences do, and select a layout that does.

    Flex attention and document attention fall back to sdpa; packed rows fall back to a row for each
    sequence, as for state-space layers. Each fallback is logged.

    Args:
        training: the dtype that the model is trained in, or None for inference.

    Raises:
        UserError: tokens attend to later tokens, or even single rows do not score as the model's
            own forward does.
    """
    name, attention = model.config.model_type, attention_of(model)
    if sees_future(model):
        raise UserError(
            f"a {name!r} model sees the tokens that follow, as its files configure it, so it would "
            "learn to copy them; choose a causal language model"
        )
    own = attention in OWN
    mismatch = attention_mismatch(model, training=training) if own else _run_check(model)
    if mismatch and own:
        log.info("attention: %s, %s: %s)", OWN[attention], name, mismatch)
        model.set_attn_implementation("sdpa")
        mismatch = _run_check(model)
    if mismatch:
        log.info("packing: off, prompts are not shared (%s in packed rows: %s)", name, mismatch)
        disable_packing(model)
        if mismatch := _run_check(model):
            raise UserError(
                f"rows do not score as single sequences do on {name!r} with {attention_of(model)} "
                f"attention ({mismatch}); set model.attn_implementation=sdpa or eager, or choose "
                "another model"
            )


def sees_future(model: Any) -> bool:
    """Return whether a later token changes the logits of earlier ones in the model's forward."""
    weight = next(model.parameters())
    tokens = torch.tensor([Example.draw(model).trunk], device=weight.device)
    changed = tokens.clone()
    changed[0, -1] = 1 - tokens[0, -1].clamp(max=1)  # 0 or 1, and another token than before
    with eval_mode(model), torch.no_grad():
        before, after = (model(input_ids=t).logits[0, :-1].float() for t in (tokens, changed))
    return relative_error(after, before) > TOLERANCES[weight.dtype].causality


@dataclass(frozen=True)
class Example:
    """Token ids of a trunk, its two branches and a second document."""

    trunk: list[int]
    first: list[int]
    second: list[int]
    lone: list[int]

    @classmethod
    def draw(cls, model: Any) -> "Example":
        """Draw token ids for a model, the same ones at each call."""
        generator = torch.Generator().manual_seed(0)
        vocab = min(model.config.get_text_config().vocab_size, 1000)
        lengths = BLOCK_LENGTHS if row_layout(model) == "blocks" else LENGTHS
        return cls(*(torch.randint(vocab, (n,), generator=generator).tolist() for n in lengths))

    def rows(self, model: Any) -> Batch:
        """Return both documents in one row where the model reads packed rows."""
        branches = tuple(Segment(ids, [True] * len(ids)) for ids in (self.first, self.second))
        pair = Document(Segment(self.trunk, [False] * len(self.trunk)), branches)
        lone = Document(Segment(self.lone, [False] + [True] * (len(self.lone) - 1)))
        batch = lay_out([pair, lone], packing=True, rows=row_layout(model))
        return batch.to(next(model.parameters()).device)


def packing_mismatch(model: Any) -> str | None:
    """Return how log-probs of packed rows differ from those of single sequences, or None.

    Each log-prob must equal that of the model's own forward on the single sequence, within
    rounding. Changing a branch or another document must leave log-probs of the row exactly equal.
    """
    example = Example.draw(model)
    other = Example(example.trunk, example.first[::-1], example.second, example.lone[::-1])
    weight = next(model.parameters())

    def packed(example: Example) -> tuple[torch.Tensor, torch.Tensor]:
        batch = example.rows(model)
        values = log_probs(model, batch)
        return sequence_sums(values, batch), values[batch.sequence == 1]

    with eval_mode(model), torch.no_grad():
        (sums, second), (_, unchanged) = packed(example), packed(other)
        pairs = [
            (example.trunk, example.first),
            (example.trunk, example.second),
            (example.lone[:1], example.lone[1:]),
        ]
        single = torch.stack([plain_log_prob(model, *pair) for pair in pairs])
    lengths = torch.tensor([len(completion) for _, completion in pairs], device=weight.device)
    worst = ((sums - single).abs() / lengths).max().item()
    leak = (unchanged - second).abs().max().item()
    tolerance = TOLERANCES[weight.dtype].log_prob
    # In separate rows, experts that multiply all their tokens at once may round differently.
    if worst <= tolerance and leak <= (tolerance if row_layout(model) == "separate" else 0):
        return None
    return f"log-probs differ by {worst:.3g} nats per token, {leak:.3g} across branches"


def plain_log_prob(model: Any, prompt: list[int], completion: list[int]) -> torch.Tensor:
    """Return the log-probability of a completion by the model's own forward."""
    tokens = torch.tensor([[*prompt, *completion]], device=next(model.parameters()).device)
    logits = model(input_ids=tokens).logits[0, len(prompt) - 1 : -1].float()
    picked = logits.log_softmax(-1).gather(1, tokens[0, len(prompt) :, None])
    return torch.sum(picked)


def attention_mismatch(model: Any, *, training: torch.dtype | None) -> str | None:
    """Return how this package's attention differs from the model's own in scores and, if `training`
    is a dtype, in gradients; or None. Flex attention compiles here."""
    if attention_of(model) == FLEX:
        limits = torch._dynamo.config
        limits.recompile_limit = max(MAX_COMPILED_VARIANTS, limits.recompile_limit)
    mismatch = _run_check(model)
    if mismatch is None and training is not None:
        mismatch = _run_check(model, partial(_gradient_mismatch, compute=training))
    return mismatch


def _run_check(model: Any, check: Callable[[Any], str | None] = packing_mismatch) -> str | None:
    """Return the mismatch that a check finds, or the error that it raises."""
    try:
        with eval_mode(model):
            return check(model)
    except ROW_ERRORS as error:
        return error_summary(error)


def _gradient_mismatch(model: Any, compute: torch.dtype) -> str | None:
    """Return how gradients over packed rows differ from those over a dense mask, or None."""
    batch = Example.draw(model).rows(model)
    with torch.no_grad():
        model.train()
        log_probs(model, batch)  # flex attention raises an error for dropout, active here only
        model.eval()
    packed = _embedding_gradient(model, batch, row_layout(model), compute)
    dense = _embedding_gradient(model, batch, "masked", compute)
    visible = (batch.document == 0) & ((batch.branch == 0) | (batch.branch == 2))
    # The gradient of a branch must be exactly zero at tokens that it does not attend to.
    leak = packed[~visible].abs().max().item()
    error = relative_error(packed, dense)
    if leak == 0 and error <= TOLERANCES[compute].gradient:
        return None
    return f"gradients differ by {error:.3g} of their length, {leak:.3g} across branches"


@contextmanager
def embedding_outputs(model: Any) -> Iterator[list[torch.Tensor]]:
    """Collect the embeddings' outputs in forward passes, as leaves that gradients are taken by."""
    outputs: list[torch.Tensor] = []

    def detach(module: Any, args: Any, output: torch.Tensor) -> torch.Tensor:
        outputs.append(output.detach().requires_grad_())
        return outputs[-1]

    with model.get_input_embeddings().register_forward_hook(detach):
        yield outputs


def _embedding_gradient(
    model: Any, batch: Batch, rows: RowKind, compute: torch.dtype
) -> torch.Tensor:
    """Return the gradient of the second branch's final states by the embeddings."""
    device = batch.input_ids.device
    with (
        embedding_outputs(model) as embeddings,
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
