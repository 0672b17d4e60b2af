"""The vocabulary projection on scored tokens: log-probs without keeping the logits.

Some tokens meet some columns of the vocabulary at a time, so that the logits alive at once stay
within a budget whatever the vocabulary, on a CPU within its caches. Sums over the vocabulary grow
from slice to slice beside the largest logit so far, as in flash attention (arXiv 2205.14135,
section 3.1). A frozen head (LoRA, the reference, measuring) needs nothing again in the backward
pass: the gradient of a log-prob by its state, W[target] - softmax @ W, does not depend on what is
done with the log-prob, so the forward pass computes it while the slice is at hand. A trained head
keeps its powers where they fit, and computes the slice again where they do not.

On CUDA trl's fused kernel does this, if it agrees: it takes scored tokens alone, gives each its
log-prob and knows caps. Liger's gives one loss, which neither DPO nor measuring can use, and trl
1.16 refuses it.
"""

import logging
import math
import weakref
from dataclasses import dataclass
from typing import Any

import torch
from torch.distributed.tensor import DTensor
from torch.utils.checkpoint import checkpoint
from transformers.utils import is_triton_available
from trl.kernels.chunked_logprob import ChunkedLogProbFunction

log = logging.getLogger(__name__)

# Logits alive at once where a module makes them, float32.
CPU_CHUNK, CHUNK = 2**25, 2**26
# Logits of one slice: what caches hold on a CPU, what fills a GPU; and the tokens in it at most.
CPU_SLICE, SLICE, ROWS = 2**21, 2**24, 1024
# Powers that a trained head keeps for its backward pass: a quarter of a GiB.
KEPT = 2**26
# exp(x) = exp2(x * LOG2_E), which takes a third of the time on a CPU.
LOG2_E = 1 / math.log(2)
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


def select_logprob_head(model: Any) -> None:
    """Let trl's fused kernel score a model's tokens where the device has it and it agrees with the
    model's own head; what is decided is logged."""
    head = model.get_output_embeddings()
    if type(head) is not torch.nn.Linear or head.weight.device.type != "cuda":
        return
    if isinstance(head.weight, DTensor):
        log.info("head: in chunks (its weights are spread over processes)")
        return
    if not is_triton_available():
        log.info("head: in chunks (trl's fused kernel needs the package triton)")
        return
    softcap = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
    if flaw := fused_kernel_mismatch(head, softcap=softcap):
        log.info("head: in chunks (trl's fused kernel: %s)", flaw)
        return
    _fused.add(head)
    log.info("head: trl's fused kernel (agrees with the model's own)")


def fused_kernel_mismatch(head: Any, *, softcap: float | None) -> str | None:
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


class _FrozenHead(torch.autograd.Function):
    """log-probs [N], is_argmax [N]; keeps the gradient of each log-prob by its state [N, H]."""

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, target: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        sums = _Sums(hidden, target)
        slope = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        room = _Room(hidden, weight)
        for part in room.parts:
            mean = _zeros(hidden[part])  # powers @ W
            for columns in room.slices:
                powers, shrunk = sums.add(room.logits(hidden[part], columns), part, columns)
                if slope is not None:
                    _add_product(mean.mul_(shrunk), room.low(powers), weight[columns])
            if slope is not None:
                slope[part] = weight[target[part]] - (mean / sums.total[part]).to(weight.dtype)
        ctx.slope = slope
        hits = sums.hits()
        ctx.mark_non_differentiable(hits)
        return sums.log_probs(), hits

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor, _: Any) -> tuple[torch.Tensor, None, None]:
        return (ctx.slope * grad[:, None]).to(ctx.slope.dtype), None, None


class _TrainedHead(torch.autograd.Function):
    """The same with a gradient for the weight [V, H] too."""

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, target: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        sums = _Sums(hidden, target)
        keep = len(target) * len(weight) <= KEPT
        room = _Room(hidden, weight, fresh=keep)
        ctx.kept = []
        for part in room.parts:
            for columns in room.slices:
                powers, _ = sums.add(room.logits(hidden[part], columns), part, columns)
                if keep:
                    ctx.kept.append((powers, sums.best[part].clone()))
        ctx.save_for_backward(hidden, weight, target, sums.best, sums.total)
        hits = sums.hits()
        ctx.mark_non_differentiable(hits)
        return sums.log_probs(), hits

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor, _: Any) -> tuple[torch.Tensor, torch.Tensor, None]:
        hidden, weight, target, best, total = ctx.saved_tensors
        by_state, by_weight = _zeros(hidden), _zeros(weight)
        room, kept = _Room(hidden, weight), iter(ctx.kept)
        for part in room.parts:
            own = grad[part, None]
            share = -own / total[part]  # of a power in the gradient by its logit
            for columns in room.slices:
                if ctx.kept:
                    powers, beside = next(kept)
                else:
                    beside = best[part]
                    powers = _powers(room.logits(hidden[part], columns), beside)
                factor = share * torch.exp(beside - best[part])
                slope = torch.mul(powers, factor, out=room.cells(powers.shape))
                place, inside = _within(target[part, None], columns)
                slope.scatter_add_(1, place, own * inside)
                slope = room.low(slope)
                _add_product(by_state[part], slope, weight[columns])
                _add_product(by_weight[columns], slope.T, hidden[part])
        return by_state.to(hidden.dtype), by_weight.to(weight.dtype), None


class _Sums:
    """What log-softmax needs to know of each token's logits, slice by slice.

    Where the largest logit grows, what was summed up beside the old one shrinks.
    """

    def __init__(self, hidden: torch.Tensor, target: torch.Tensor) -> None:
        self.target = target[:, None]
        self.total = hidden.new_zeros(self.target.shape, dtype=_exact(hidden))
        self.best = torch.full_like(self.total, -torch.inf)
        self.picked = torch.zeros_like(self.total)
        self.hit = torch.zeros_like(self.target, dtype=torch.bool)

    def add(
        self, logits: torch.Tensor, part: slice, columns: slice
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """exp(logits - their largest so far) [n, columns], in their place, and by how much sums
        of earlier slices shrink [n, 1]."""
        top = logits.amax(1, keepdim=True)
        before, (place, own) = self.best[part], _within(self.target[part], columns)
        self.picked[part] = torch.where(own, logits.gather(1, place), self.picked[part])
        largest, leads = _is_largest(logits, place, own), top > before
        self.hit[part] = torch.where(own, largest & leads, self.hit[part] & ~leads)
        best = torch.maximum(before, top)
        shrunk = torch.exp(before - best)
        powers = _powers(logits, best)
        self.best[part] = best
        self.total[part] = self.total[part] * shrunk + powers.sum(1, keepdim=True)
        return powers, shrunk

    def log_probs(self) -> torch.Tensor:
        return (self.picked - self.best - self.total.log()).squeeze(1)

    def hits(self) -> torch.Tensor:
        """Whether the target's logit is the largest, of equal ones the first, as argmax has it."""
        return self.hit.squeeze(1)


class _Room:
    """Memory for the logits of one slice, used again for each (`fresh`: new each time)."""

    def __init__(self, hidden: torch.Tensor, weight: torch.Tensor, *, fresh: bool = False) -> None:
        budget = CPU_SLICE if hidden.device.type == "cpu" else SLICE
        rows = max(1, min(ROWS, len(hidden)))
        width = max(1, min(budget // rows, len(weight)))
        self.weight, self.fresh = weight, fresh
        self.parts, self.slices = _parts(len(hidden), rows), _parts(len(weight), width)
        size = 0 if fresh else rows * width
        self.exact = hidden.new_empty(size, dtype=_exact(hidden))
        self.short = hidden.new_empty(0 if hidden.dtype == self.exact.dtype else rows * width)

    def cells(self, shape: torch.Size) -> torch.Tensor:
        """Room for so many logits."""
        if self.fresh:
            return self.exact.new_empty(shape)
        return self.exact[: shape.numel()].view(shape)

    def logits(self, hidden: torch.Tensor, columns: slice) -> torch.Tensor:
        """Of some tokens [n, H] for some columns, [n, columns]."""
        weight = self.weight[columns]
        room = self.cells(torch.Size((len(hidden), len(weight))))
        if hidden.dtype == room.dtype:
            return torch.mm(hidden, weight.T, out=room)
        return room.copy_(torch.mm(hidden, weight.T, out=self._short(room)))

    def low(self, values: torch.Tensor) -> torch.Tensor:
        """Values in the dtype that matrix products are done in."""
        if values.dtype == self.weight.dtype:
            return values
        return self._short(values).copy_(values)

    def _short(self, values: torch.Tensor) -> torch.Tensor:
        return self.short[: values.numel()].view(values.shape)


def _powers(logits: torch.Tensor, best: torch.Tensor) -> torch.Tensor:
    """exp(logits - best) in place of the logits."""
    return logits.sub_(best).mul_(LOG2_E).exp2_()


def _within(target: torch.Tensor, columns: slice) -> tuple[torch.Tensor, torch.Tensor]:
    """Where targets [n, 1] stand among the columns, and whether they do."""
    place = target - columns.start
    last = columns.stop - columns.start - 1
    return place.clamp(0, last), (place >= 0) & (place <= last)


def _is_largest(logits: torch.Tensor, place: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
    """Whether the logit at `place` is its row's first largest [n, 1], where `own`; else anything.

    A CPU takes ten times as long to find where a maximum is as to find the maximum, so it looks at
    no other rows; a GPU would wait for their number, and the tensors of a plan have none.
    """
    if logits.device.type != "cpu" or type(logits) is not torch.Tensor:
        return logits.argmax(1, keepdim=True) == place
    found, rows = torch.zeros_like(own), own.squeeze(1)
    found[rows] = logits[rows].argmax(1, keepdim=True) == place[rows]
    return found


def _add_product(total: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
    """total += left @ right, also where the total is kept more exactly than they are."""
    if total.dtype == left.dtype:
        total.addmm_(left, right)
    else:
        total.add_(left @ right)


def _zeros(values: torch.Tensor) -> torch.Tensor:
    return torch.zeros_like(values, dtype=_exact(values))


def _exact(values: torch.Tensor) -> torch.dtype:
    """float32, or float64 where the model computes in it."""
    return torch.promote_types(values.dtype, torch.float32)


def _parts(count: int, size: int) -> list[slice]:
    return [slice(at, min(at + size, count)) for at in range(0, count, size)]


def _through_module(
    hidden: torch.Tensor, head: Any, target: torch.Tensor, softcap: float | None
) -> Scores:
    """Any output layer, called as the model calls it; more than one chunk is computed again in the
    backward pass."""
    budget = CPU_CHUNK if hidden.device.type == "cpu" else CHUNK
    step = max(1, budget // head.weight.shape[0])
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
