"""Forward passes of a model whose weights are spread over the processes (FSDP2).

Each pass gathers the weights layer by layer from all processes, so all have to make it, and what
they share out never takes all of them equally many. Within `together` a process announces each of
its passes, and one that has no more of its own follows: for each pass of the others it makes one
over a single token, until nobody announces any. `sft.distributed.collectives` follows at the end of
every share.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from accelerate import PartialState
from torch import distributed
from torch.distributed.fsdp import FSDPModule

from sft.distributed.sharding import let_go, outputs_as_they_are
from sft.system.signals import leave


class _Walk:
    """The passes of one model."""

    def __init__(self, model: Any) -> None:
        self.model, self.following = model, False
        # Before FSDP's own hook, which gathers the first weights.
        self.hook = model.register_forward_pre_hook(self._announce, prepend=True)

    def _announce(self, *_: Any) -> None:
        if not self.following:
            leave()  # within a pass the others would wait for the rest of it
            self._passes(True)

    def _passes(self, own: bool) -> bool:
        """Whether any process makes a pass of its own now."""
        flag = torch.tensor([own], dtype=torch.int32, device=PartialState().device)
        distributed.all_reduce(flag, distributed.ReduceOp.MAX)
        return bool(flag.item())

    def follow(self) -> None:
        token = torch.zeros((1, 1), dtype=torch.long, device=PartialState().device)
        self.following = True
        try:
            with reading(self.model):
                while self._passes(False):
                    self.model(input_ids=token, use_cache=False)
        finally:
            self.following = False


_walk: ContextVar[_Walk | None] = ContextVar("walk", default=None)


@contextmanager
def reading(model: Any) -> Iterator[None]:
    """Passes in evaluation mode, without gradients. What FSDP gathers for the first time in
    inference mode could not be trained on later, so that is for whole models alone."""
    whole = not isinstance(model, FSDPModule)
    with evaluating(model), torch.no_grad(), torch.inference_mode(whole):
        yield


@contextmanager
def together(model: Any) -> Iterator[None]:
    """All processes enter, each with its part of `model`, and end each of their shares of work by
    `follow`. Nothing where each holds the model whole."""
    if not isinstance(model, FSDPModule):
        yield
        return
    walk = _Walk(model)
    before = _walk.set(walk)
    try:
        with outputs_as_they_are():
            yield
    finally:
        _walk.reset(before)
        walk.hook.remove()
        let_go(model)


def follow() -> None:
    """To be called by each process when its share of passes is done: returns when all are."""
    if (walk := _walk.get()) is not None:
        walk.follow()


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """A model in evaluation mode; at the end in the one that it was in."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
