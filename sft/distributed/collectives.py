"""Work of the processes of a run: each does its share, or one does it and tells the others.

What one does for all it does alone: within `run_on_main` nothing is shared and nobody asked.
"""

import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from pathlib import Path
from typing import TypeVar

from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object

from sft.distributed import fsdp_forward
from sft.errors import UserError

Item = TypeVar("Item")
Result = TypeVar("Result")

_alone = ContextVar("alone", default=False)  # in `run_on_main`, on the process that does the work


def _place() -> tuple[int, int]:
    """This process's number, and how many share."""
    state = PartialState()
    return (0, 1) if _alone.get() else (state.process_index, state.num_processes)


def own_share(items: Sequence[Item]) -> list[Item]:
    """What this process does of `items`: every n-th, beginning with its own number."""
    index, count = _place()
    return list(items[index::count])


def map_over_ranks(
    items: Sequence[Item], work: Callable[[list[Item]], Sequence[Result]]
) -> list[Result]:
    """A result for each of `items`, in their order, on all processes, which all call it.

    Args:
        work: given some of the items, returns a result for each; not called for none.

    Raises:
        UserError: what a process raised in its share; on all of them.
    """
    _, count = _place()
    if count == 1:
        return list(work(list(items)))
    own = own_share(items)
    done: list[Result] = []
    failed: UserError | None = None
    try:
        done = list(work(own)) if own else []
        assert len(done) == len(own), "work returns a result an item"
    except UserError as error:
        failed = error
    fsdp_forward.join_remaining_forwards()
    shares = gather_object([(done, failed)])
    for _, reason in shares:
        if reason is not None:
            raise reason
    return [shares[i % count][0][i // count] for i in range(len(items))]


def run_on_main(work: Callable[[], Result]) -> Result:
    """What `work` returns on the first process, on all of them, which all call it.

    Raises:
        UserError, OSError: what it raised there; on all of them.
    """
    index, count = _place()
    if count == 1:
        return work()
    told: list = [None, None]
    if index == 0:
        before = _alone.set(True)
        try:
            told[0] = work()
        except (UserError, OSError) as error:
            told[1] = error
        finally:
            _alone.reset(before)
    fsdp_forward.join_remaining_forwards()
    broadcast_object_list(told)
    if told[1] is not None:
        raise told[1]
    return told[0]


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder that goes with this start, the same one for all its processes (of one machine)."""
    folder = run_on_main(lambda: Path(tempfile.mkdtemp()))
    index, count = _place()
    try:
        yield folder
        if count > 1:
            PartialState().wait_for_everyone()  # until none reads there any more
    finally:
        if index == 0:
            shutil.rmtree(folder)


@contextmanager
def main_first() -> Iterator[None]:
    """The first process before the others, which find what it left in a cache."""
    _, count = _place()
    with PartialState().main_process_first() if count > 1 else nullcontext():
        yield
