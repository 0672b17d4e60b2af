"""The vocabulary projection on scored tokens: log-probs without storing the logits.

Logits are computed for a slice of tokens and a slice of the vocabulary at a time, in a fixed amount
of memory. Sums over the vocabulary are relative to the largest logit so far, as in flash attention
(arXiv 2205.14135, section 3.1). For a frozen head (LoRA, the reference, evaluation) the forward
pass also computes the gradient of each log-prob by its state, W[target] - softmax @ W, so the
backward pass recomputes nothing. A trained head stores the exponentials of its logits if they fit,
and recomputes them otherwise.

On CUDA trl's fused kernel is used if it agrees. Liger's returns one loss, but DPO and evaluation
need a log-prob for each token.
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

from sft.packing.tolerances import TOLERANCES, error_summary, score_mismatch

log = logging.getLogger(__name__)

# float32 logits of a chunk that the head's module computes.
CPU_CHUNK, CHUNK = 2**25, 2**26
# Logits of one slice: few enough for a CPU's caches, enough to fill a GPU; and its most tokens.
CPU_SLICE, SLICE, MAX_ROWS = 2**21, 2**24, 1024
# Exponentials of logits that a trained head stores for its backward pass: 256 MiB in float32.
MAX_STORED = 2**26
# exp(x) = exp2(x * LOG2_E), which takes a third of the time of exp on a CPU.
LOG2_E = 1 / math.log(2)
FUSED_COLUMNS = 2**15  # columns of the vocabulary in one launch of trl's kernel; its default

_fused: weakref.WeakSet[torch.nn.Module] = weakref.WeakSet()  # heads that passed the check


@dataclass(frozen=True)
class Scores:
    """Scores of a batch's scored tokens, in the batch's order."""

    log_probs: torch.Tensor  # [N] at least float32, log p(target | its trunk and branch)
    is_argmax: torch.Tensor  # [N] bool, whether greedy decoding would have chosen it


def score_states(
    hidden: torch.Tensor, head: Any, target: torch.Tensor, *, softcap: float | None
) -> Scores:
    """Score `target` [N] given final states `hidden` [N, H] and the model's output layer.

    Args:
        softcap: the cap of Gemma 2's logits, cap * tanh(logits / cap).
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
            return Scores(*_TrainedHead.apply(hidden, weight, target))  # type: ignore[no-untyped-call]
        return Scores(*_FrozenHead.apply(hidden, weight, target))  # type: ignore[no-untyped-call]


def select_logprob_head(model: Any) -> None:
    """Select trl's fused kernel to score tokens where the device supports it and it agrees
    with the model's own head; the decision is logged."""
    head = model.get_output_embeddings()
    if type(head) is not torch.nn.Linear or head.weight.device.type != "cuda":
        return
    if isinstance(head.weight, DTensor):
        log.info("head: in chunks (its weights are sharded)")
        return
    if not is_triton_available():
        log.info("head: in chunks (trl's fused kernel needs the package triton)")
        return
    softcap = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
    if mismatch := fused_kernel_mismatch(head, softcap=softcap):
        log.info("head: in chunks (trl's fused kernel: %s)", mismatch)
        return
    _fused.add(head)
    log.info("head: trl's fused kernel (agrees with the model's own)")


def fused_kernel_mismatch(head: Any, *, softcap: float | None) -> str | None:
    """Return how trl's fused kernel differs from a head called as the model calls it, or None."""
    generator = torch.Generator().manual_seed(0)
    weight = head.weight
    drawn = torch.randn(32, weight.shape[1], generator=generator).to(weight)
    target = torch.randint(weight.shape[0], (32,), generator=generator).to(weight.device)
    results = []
    try:
        for score in (_through_kernel, _through_module):
            states = drawn.detach().requires_grad_()
            log_probs = score(states, head, target, softcap).log_probs
            (grad,) = torch.autograd.grad(log_probs.sum(), states)
            results.append((log_probs.detach(), grad.float()))
    except RuntimeError as error:  # a failure of Triton's compiler or of the kernel
        return error_summary(error)
    tolerance = TOLERANCES[weight.dtype].fused_head
    return score_mismatch(*results, bounds=(tolerance, tolerance))


def _through_kernel(
    hidden: torch.Tensor, head: Any, target: torch.Tensor, softcap: float | None
) -> Scores:
    """Score through trl's kernel, whose backward pass recomputes probabilities."""
    columns = min(FUSED_COLUMNS, len(head.weight))
    log_probs, _, _, _, hits = ChunkedLogProbFunction.apply(  # type: ignore[no-untyped-call]
        hidden, head.weight, head.bias, target, 1.0, columns, softcap, 1.0, ("is_top1",)
    )
    return Scores(log_probs, hits)


# torch's linear_cross_entropy is not used: chunked it takes 0.9 to 10.6 times as long as this head,
# plain 0.7 to 1.5 times with all logits in memory (2,048 float32 tokens, frozen head: 1,152 MiB
# against 19), and neither returns whether greedy decoding gives the target. Measured by
# tests/benchmarks/head_speed.py on two cores of an Intel Xeon with AVX-512 bf16 (torch 2.13).
class _FrozenHead(torch.autograd.Function):
    """Return log-probs [N] and is_argmax [N]; store the log-probs' gradients by their states."""

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, target: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        sums = _OnlineSoftmax(hidden, target)
        by_state = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        buffer = _LogitBuffer(hidden, weight)
        for part in buffer.parts:
            mean = torch.zeros_like(hidden[part], dtype=_exact(hidden))  # exp_logits @ W
            for columns in buffer.slices:
                exp_logits, scale = sums.add(buffer.logits(hidden[part], columns), part, columns)
                if by_state is not None:
                    _add_product(mean.mul_(scale), buffer.cast(exp_logits), weight[columns])
            if by_state is not None:
                by_state[part] = weight[target[part]] - (mean / sums.total[part]).to(weight.dtype)
        ctx.by_state = by_state
        hits = sums.hits()
        ctx.mark_non_differentiable(hits)
        return sums.log_probs(), hits

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor, _: Any) -> tuple[torch.Tensor, None, None]:
        return (ctx.by_state * grad[:, None]).to(ctx.by_state.dtype), None, None


class _TrainedHead(torch.autograd.Function):
    """The same, with a gradient by the weight [V, H] too."""

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, target: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        sums = _OnlineSoftmax(hidden, target)
        store = len(target) * len(weight) <= MAX_STORED
        buffer = _LogitBuffer(hidden, weight, fresh=store)
        ctx.stored = []
        for part in buffer.parts:
            for columns in buffer.slices:
                exp_logits, _ = sums.add(buffer.logits(hidden[part], columns), part, columns)
                if store:
                    ctx.stored.append((exp_logits, sums.largest[part].clone()))
        ctx.save_for_backward(hidden, weight, target, sums.largest, sums.total)
        hits = sums.hits()
        ctx.mark_non_differentiable(hits)
        return sums.log_probs(), hits

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor, _: Any) -> tuple[torch.Tensor, torch.Tensor, None]:
        hidden, weight, target, largest, total = ctx.saved_tensors
        exact = _exact(hidden)
        by_state, by_weight = (torch.zeros_like(t, dtype=exact) for t in (hidden, weight))
        buffer, stored = _LogitBuffer(hidden, weight), iter(ctx.stored)
        for part in buffer.parts:
            own = grad[part, None]
            share = -own / total[part]  # of exp_logits in the gradient by the logits
            for columns in buffer.slices:
                if ctx.stored:
                    exp_logits, reference = next(stored)
                else:
                    reference = largest[part]
                    exp_logits = _exp_logits(buffer.logits(hidden[part], columns), reference)
                factor = share * torch.exp(reference - largest[part])
                by_logit = torch.mul(exp_logits, factor, out=buffer.view(exp_logits.shape))
                index, inside = _within(target[part, None], columns)
                by_logit.scatter_add_(1, index, own * inside)
                by_logit = buffer.cast(by_logit)
                _add_product(by_state[part], by_logit, weight[columns])
                _add_product(by_weight[columns], by_logit.T, hidden[part])
        return by_state.to(hidden.dtype), by_weight.to(weight.dtype), None


class _OnlineSoftmax:
    """Running maximum and sum of each token's exponentials, over slices of the vocabulary.

    When the maximum grows, the sum of earlier slices is scaled down to it.
    """

    def __init__(self, hidden: torch.Tensor, target: torch.Tensor) -> None:
        self.target = target[:, None]
        self.total = hidden.new_zeros(self.target.shape, dtype=_exact(hidden))
        self.largest = torch.full_like(self.total, -torch.inf)
        self.picked = torch.zeros_like(self.total)
        self.hit = torch.zeros_like(self.target, dtype=torch.bool)

    def add(
        self, logits: torch.Tensor, part: slice, columns: slice
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Add a slice of logits; return exp(logits - largest so far) [n, columns], computed in
        place, and the factor [n, 1] for sums of earlier slices."""
        top = logits.amax(1, keepdim=True)
        before, (index, inside) = self.largest[part], _within(self.target[part], columns)
        self.picked[part] = torch.where(inside, logits.gather(1, index), self.picked[part])
        is_top, leads = _is_largest(logits, index, inside), top > before
        self.hit[part] = torch.where(inside, is_top & leads, self.hit[part] & ~leads)
        largest = torch.maximum(before, top)
        scale = torch.exp(before - largest)
        exp_logits = _exp_logits(logits, largest)
        self.largest[part] = largest
        self.total[part] = self.total[part] * scale + exp_logits.sum(1, keepdim=True)
        return exp_logits, scale

    def log_probs(self) -> torch.Tensor:
        return (self.picked - self.largest - self.total.log()).squeeze(1)

    def hits(self) -> torch.Tensor:
        """Return whether the target's logit is the first largest one, as argmax breaks ties."""
        return self.hit.squeeze(1)


class _LogitBuffer:
    """Memory for the logits of one slice, reused for each (`fresh`: allocated for each)."""

    def __init__(self, hidden: torch.Tensor, weight: torch.Tensor, *, fresh: bool = False) -> None:
        budget = CPU_SLICE if hidden.device.type == "cpu" else SLICE
        rows = max(1, min(MAX_ROWS, len(hidden)))
        width = max(1, min(budget // rows, len(weight)))
        self.weight, self.fresh = weight, fresh
        self.parts, self.slices = _slices(len(hidden), rows), _slices(len(weight), width)
        size = 0 if fresh else rows * width
        self.exact = hidden.new_empty(size, dtype=_exact(hidden))
        self.short = hidden.new_empty(0 if hidden.dtype == self.exact.dtype else rows * width)

    def view(self, shape: torch.Size) -> torch.Tensor:
        """Return memory for logits of this shape."""
        if self.fresh:
            return self.exact.new_empty(shape)
        return self.exact[: shape.numel()].view(shape)

    def logits(self, hidden: torch.Tensor, columns: slice) -> torch.Tensor:
        """Return the logits [n, columns] of tokens [n, H]."""
        weight = self.weight[columns]
        out = self.view(torch.Size((len(hidden), len(weight))))
        if hidden.dtype == out.dtype:
            return torch.mm(hidden, weight.T, out=out)
        return out.copy_(torch.mm(hidden, weight.T, out=self._short_view(out)))

    def cast(self, values: torch.Tensor) -> torch.Tensor:
        """Return values in the dtype of matrix products."""
        if values.dtype == self.weight.dtype:
            return values
        return self._short_view(values).copy_(values)

    def _short_view(self, values: torch.Tensor) -> torch.Tensor:
        return self.short[: values.numel()].view(values.shape)


def _exp_logits(logits: torch.Tensor, largest: torch.Tensor) -> torch.Tensor:
    """Compute exp(logits - largest) in place."""
    return logits.sub_(largest).mul_(LOG2_E).exp2_()


def _within(target: torch.Tensor, columns: slice) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the index of targets [n, 1] among the columns, and whether they are among them."""
    index = target - columns.start
    last = columns.stop - columns.start - 1
    return index.clamp(0, last), (index >= 0) & (index <= last)


def _is_largest(logits: torch.Tensor, index: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
    """Return whether the logit at `index` is its row's first largest [n, 1], for rows `inside`."""
    # argmax takes ten times as long as max on a CPU, so it runs on those rows only. Indexing with a
    # mask would synchronize a GPU, and the planner's fake tensors do not support it.
    if logits.device.type != "cpu" or type(logits) is not torch.Tensor:
        return logits.argmax(1, keepdim=True) == index
    found, rows = torch.zeros_like(inside), inside.squeeze(1)
    found[rows] = logits[rows].argmax(1, keepdim=True) == index[rows]
    return found


def _add_product(total: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
    """Compute total += left @ right, also for a total of a wider dtype."""
    if total.dtype == left.dtype:
        total.addmm_(left, right)
    else:
        total.add_(left @ right)


def _exact(values: torch.Tensor) -> torch.dtype:
    """Return float32, or float64 for a float64 model."""
    return torch.promote_types(values.dtype, torch.float32)


def _slices(count: int, size: int) -> list[slice]:
    return [slice(at, min(at + size, count)) for at in range(0, count, size)]


def _through_module(
    hidden: torch.Tensor, head: Any, target: torch.Tensor, softcap: float | None
) -> Scores:
    """Score through any output layer as the model calls it; several chunks are recomputed in the
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
