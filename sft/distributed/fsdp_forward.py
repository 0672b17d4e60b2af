"""Synchronize the forward passes of a model that is sharded over processes (FSDP2).

FSDP2 needs equal forward counts, since each pass gathers the weights from all processes. Within
`synchronized_forwards` a process announces each pass; one that has finished its share of work runs
a dummy pass over one token for each pass of the others, until none is announced.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from accelerate import PartialState
from torch import distributed
from torch.distributed.fsdp import FSDPModule

from sft.distributed.sharding import ignore_output_view_warning, reshard
from sft.system.signals import check_interrupt


class _SynchronizedForwards:
    """Counts the forward passes of one model equally in all processes."""

    def __init__(self, model: Any) -> None:
        self.model, self.runs_dummies = model, False
        # Prepended: FSDP's own hook gathers the first weights.
        self.hook = model.register_forward_pre_hook(self._announce, prepend=True)

    def _announce(self, *_: Any) -> None:
        if not self.runs_dummies:
            check_interrupt()  # an interrupt within a pass would leave the others waiting in it
            self._any_pass(True)

    def _any_pass(self, own: bool) -> bool:
        """Return whether any process runs a pass of its share now."""
        flag = torch.tensor([own], dtype=torch.int32, device=PartialState().device)
        distributed.all_reduce(flag, distributed.ReduceOp.MAX)
        return bool(flag.item())

    def join_remaining(self) -> None:
        token = torch.zeros((1, 1), dtype=torch.long, device=PartialState().device)
        self.runs_dummies = True
        try:
            with eval_without_grad(self.model):
                while self._any_pass(False):
                    self.model(input_ids=token, use_cache=False)
        finally:
            self.runs_dummies = False


_active: ContextVar[_SynchronizedForwards | None] = ContextVar("active", default=None)


@contextmanager
def eval_without_grad(model: Any) -> Iterator[None]:
    """Run passes in evaluation mode without gradients."""
    # Weights that FSDP gathers for the first time in inference mode cannot be trained afterwards.
    unsharded = not isinstance(model, FSDPModule)
    with eval_mode(model), torch.no_grad(), torch.inference_mode(unsharded):
        yield


@contextmanager
def synchronized_forwards(model: Any) -> Iterator[None]:
    """Keep the forward counts of a sharded model equal in all processes.

    All processes enter, and call `join_remaining_forwards` at the end of each share of work. Does
    nothing for a model that is not sharded.
    """
    if not isinstance(model, FSDPModule):
        yield
        return
    forwards = _SynchronizedForwards(model)
    before = _active.set(forwards)
    try:
        with ignore_output_view_warning():
            yield
    finally:
        _active.reset(before)
        forwards.hook.remove()
        reshard(model)


def join_remaining_forwards() -> None:
    """Run dummy passes until all processes have finished their shares."""
    if (forwards := _active.get()) is not None:
        forwards.join_remaining()


@contextmanager
def eval_mode(model: Any) -> Iterator[None]:
    """Put a model in evaluation mode and restore its mode at the end."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
