"""The vocabulary projection on scored tokens: log-probs without keeping the logits.

Chunks of tokens go through the head, so that the logits alive at once stay within a budget whatever
the vocabulary. A frozen head (LoRA, the reference, measuring) needs nothing again in the backward
pass: the gradient of a log-prob by its state, W[target] - softmax @ W, does not depend on what is
done with the log-prob, so the forward pass computes it while the chunk is at hand. A trained head
keeps its probabilities where they fit, and computes the chunk again where they do not.

On CUDA trl's fused kernel does this, if it agrees: it takes scored tokens alone, gives each its
log-prob and knows caps. Liger's gives one loss, which neither DPO nor measuring can use, and trl
1.16 refuses it.
"""

import logging
import weakref
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint
from transformers.utils import is_triton_available
from trl.kernels.chunked_logprob import ChunkedLogProbFunction

log = logging.getLogger(__name__)

# Logits of one chunk, float32: what caches hold on a CPU, what fills a GPU.
CPU_CHUNK, CHUNK = 2**25, 2**26
# Probabilities that a trained head keeps for its backward pass: a quarter of a GiB.
KEPT = 2**26
# Columns of the vocabulary that the fused kernel takes at once, trl's own number.
FUSED_COLUMNS = 2**15
# Rounding of log-probs and, as a share of their length, of gradients by the states.
FUSED_ROUNDING = {torch.float32: 1e-3, torch.bfloat16: 0.05, torch.float16: 0.01}

_fused: weakref.WeakSet[torch.nn.Module] = weakref.WeakSet()  # heads on which the kernel agrees


@dataclass(frozen=True)
class Scores:
    """What the model gives the scored tokens of a batch, in the batch's order."""

    log_probs: torch.Tensor  # [N] float32 at least, log p(target | its trunk and branch)
    is_argmax: torch.Tensor  # [N] bool, whether greedy decoding would have chosen it


def score_states(
    hidden: torch.Tensor, head: Any, target: torch.Tensor, *, softcap: float | None
) -> Scores:
    """Scores of `target` [N] given final states `hidden` [N, H] and the model's output layer.

    Args:
        softcap: cap * tanh(logits / cap), as Gemma 2 has it.
    """
    bare = type(head) is torch.nn.Linear and not head._forward_hooks and not head._forward_pre_hooks
    if bare and head in _fused:
        return _through_kernel(hidden, head, target, softcap)
    if not bare or head.bias is not None or softcap is not None:
        return _through_module(hidden, head, target, softcap)
    device = hidden.device.type
    weight = head.weight
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        hidden, weight = hidden.to(dtype), weight.to(dtype)
    with torch.autocast(device, enabled=False):
        if weight.requires_grad and torch.is_grad_enabled():
            return Scores(*_TrainedHead.apply(hidden, weight, target))
        return Scores(*_FrozenHead.apply(hidden, weight, target))


def settle_head(model: Any) -> None:
    """Let trl's fused kernel score a model's tokens where the device has it and it agrees with the
    model's own head; what is decided is logged."""
    head = model.get_output_embeddings()
    if type(head) is not torch.nn.Linear or head.weight.device.type != "cuda":
        return
    if not is_triton_available():
        log.info("head: in chunks (trl's fused kernel needs the package triton)")
        return
    softcap = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
    if flaw := kernel_flaw(head, softcap=softcap):
        log.info("head: in chunks (trl's fused kernel: %s)", flaw)
        return
    _fused.add(head)
    log.info("head: trl's fused kernel (agrees with the model's own)")


def kernel_flaw(head: Any, *, softcap: float | None) -> str | None:
    """In what trl's fused kernel differs from a head called as the model calls it, or None."""
    generator = torch.Generator().manual_seed(0)
    weight = head.weight
    drawn = torch.randn(32, weight.shape[1], generator=generator).to(weight)
    target = torch.randint(weight.shape[0], (32,), generator=generator).to(weight.device)
    found = []
    try:
        for score in (_through_kernel, _through_module):
            states = drawn.detach().requires_grad_()
            log_probs = score(states, head, target, softcap).log_probs
            (slope,) = torch.autograd.grad(log_probs.sum(), states)
            found.append((log_probs.detach(), slope.float()))
    except RuntimeError as error:  # a compiler's or a kernel's
        return f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
    (ours, our_slope), (plain, plain_slope) = found
    off = (ours - plain).abs().max().item()
    turned = ((our_slope - plain_slope).norm() / plain_slope.norm()).item()
    if max(off, turned) <= FUSED_ROUNDING[weight.dtype]:
        return None
    return f"log-probs differ by {off:.3g}, gradients by {turned:.3g} of their length"


def _through_kernel(
    hidden: torch.Tensor, head: Any, target: torch.Tensor, softcap: float | None
) -> Scores:
    """trl's kernel: probabilities are computed again in the backward pass, from log-sum-exps."""
    columns = min(FUSED_COLUMNS, len(head.weight))
    log_probs, _, _, _, hits = ChunkedLogProbFunction.apply(
        hidden, head.weight, head.bias, target, 1.0, columns, softcap, 1.0, ("is_top1",)
    )
    return Scores(log_probs, hits)


def _chunk(states: torch.Tensor, vocabulary: int) -> int:
    budget = CPU_CHUNK if states.device.type == "cpu" else CHUNK
    return max(1, budget // vocabulary)


class _FrozenHead(torch.autograd.Function):
    """log-probs [N], is_argmax [N]; keeps the gradient of each log-prob by its state [N, H]."""

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, target: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        log_probs = hidden.new_empty(target.shape, dtype=_exact(hidden))
        hits = hidden.new_empty(target.shape, dtype=torch.bool)
        slope = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        room = _Room(hidden, weight)
        for part in _parts(len(target), room.rows):
            powers, total, log_probs[part], hits[part] = room.read(hidden[part], target[part])
            if slope is not None:
                mean = room.low(powers) @ weight
                slope[part] = weight[target[part]] - mean / total.to(mean.dtype)
        ctx.slope = slope
        ctx.mark_non_differentiable(hits)
        return log_probs, hits

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor, _: Any) -> tuple[torch.Tensor, None, None]:
        return (ctx.slope * grad[:, None]).to(ctx.slope.dtype), None, None


class _TrainedHead(torch.autograd.Function):
    """The same with a gradient for the weight [V, H] too."""

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, target: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        log_probs = hidden.new_empty(target.shape, dtype=_exact(hidden))
        hits = hidden.new_empty(target.shape, dtype=torch.bool)
        ctx.kept = []
        keep = len(target) * len(weight) <= KEPT
        room = _Room(hidden, weight, fresh=keep)
        for part in _parts(len(target), room.rows):
            powers, total, log_probs[part], hits[part] = room.read(hidden[part], target[part])
            if keep:
                ctx.kept.append((powers, total))
        ctx.save_for_backward(hidden, weight, target)
        ctx.mark_non_differentiable(hits)
        return log_probs, hits

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor, _: Any) -> tuple[torch.Tensor, torch.Tensor, None]:
        hidden, weight, target = ctx.saved_tensors
        by_state = torch.empty_like(hidden)
        by_weight = torch.zeros_like(weight, dtype=_exact(weight))
        room = _Room(hidden, weight)
        for i, part in enumerate(_parts(len(target), room.rows)):
            if ctx.kept:
                powers, total = ctx.kept[i]
            else:
                powers, total, _, _ = room.read(hidden[part], target[part])
            slope = torch.mul(powers, -grad[part, None] / total, out=room.logits[: len(powers)])
            slope.scatter_add_(1, target[part, None], grad[part, None])
            slope = room.low(slope)
            by_state[part] = slope @ weight
            if weight.dtype == by_weight.dtype:
                by_weight.addmm_(slope.T, hidden[part])
            else:
                by_weight += slope.T @ hidden[part]
        return by_state, by_weight.to(weight.dtype), None


class _Room:
    """Memory for one chunk's logits, used again for each (`fresh`: new each time)."""

    def __init__(self, hidden: torch.Tensor, weight: torch.Tensor, *, fresh: bool = False) -> None:
        self.weight, self.fresh = weight, fresh
        self.rows = _chunk(hidden, len(weight))
        self.shape = (min(self.rows, len(hidden)), len(weight))
        self.logits = hidden.new_empty((0,) if fresh else self.shape, dtype=_exact(hidden))

    def read(
        self, hidden: torch.Tensor, target: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """exp(logits - their maximum) [n, V] and its sum [n, 1], log-probs [n], hits [n]."""
        logits = self.logits[: len(hidden)]
        if self.fresh:
            logits = hidden.new_empty((len(hidden), self.shape[1]), dtype=_exact(hidden))
        if hidden.dtype == logits.dtype:
            torch.mm(hidden, self.weight.T, out=logits)
        else:
            logits.copy_(hidden @ self.weight.T)
        best = logits.argmax(1)
        logits.sub_(logits.gather(1, best[:, None]))
        picked = logits.gather(1, target[:, None]).squeeze(1)
        powers = logits.exp_()
        total = powers.sum(1, keepdim=True)
        return powers, total, picked - total.squeeze(1).log(), best == target

    def low(self, values: torch.Tensor) -> torch.Tensor:
        """Values in the dtype that matrix products are done in."""
        return values.to(self.weight.dtype)


def _exact(values: torch.Tensor) -> torch.dtype:
    """float32, or float64 where the model computes in it."""
    return torch.promote_types(values.dtype, torch.float32)


def _parts(count: int, rows: int) -> list[slice]:
    return [slice(at, min(at + rows, count)) for at in range(0, count, rows)]


def _through_module(
    hidden: torch.Tensor, head: Any, target: torch.Tensor, softcap: float | None
) -> Scores:
    """Any output layer, called as the model calls it; more than one chunk is computed again in the
    backward pass."""
    step = _chunk(hidden, head.weight.shape[0])
    chunks = list(zip(hidden.split(step), target.split(step), strict=True))
    recompute = len(chunks) > 1 and torch.is_grad_enabled()
    parts = [
        checkpoint(_module_chunk, h, head, t, softcap, use_reentrant=False)
        if recompute
        else _module_chunk(h, head, t, softcap)
        for h, t in chunks
    ]
    return Scores(torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts]))


def _module_chunk(
    hidden: torch.Tensor, head: Any, target: torch.Tensor, softcap: float | None
) -> tuple[torch.Tensor, torch.Tensor]:
    logits = head(hidden)
    if logits.dtype in (torch.bfloat16, torch.float16):
        logits = logits.float()
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    picked = logits.gather(1, target[:, None]).squeeze(1)
    return picked - logits.logsumexp(1), logits.detach().argmax(1) == target
