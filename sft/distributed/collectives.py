"""Map items over the ranks of a run, or run on the main process.

Inside `run_on_main`, collectives are disabled.
"""

import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from pathlib import Path
from typing import Any, TypeVar

from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object

from sft.distributed import fsdp_forward
from sft.errors import UserError

Item = TypeVar("Item")
Result = TypeVar("Result")

_alone = ContextVar("alone", default=False)  # in `run_on_main`, on the process that does the work


def _place() -> tuple[int, int]:
    """Return the rank of this process and the number of processes that share work."""
    state = PartialState()
    return (0, 1) if _alone.get() else (state.process_index, state.num_processes)


def own_share(items: Sequence[Item]) -> list[Item]:
    """Return the items of this rank: every n-th, starting at the rank."""
    index, count = _place()
    return list(items[index::count])


def map_over_ranks(
    items: Sequence[Item], work: Callable[[list[Item]], Sequence[Result]]
) -> list[Result]:
    """Map `work` over items split between the ranks; return all results in order on every rank.

    All processes must call it. A UserError of any rank is raised on all of them.

    Args:
        work: returns one result per item of its share; not called for an empty share.
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
    """Run `work` on the main process and return its result on all processes.

    All processes must call it. A UserError or OSError of `work` is raised on all of them.
    """
    index, count = _place()
    if count == 1:
        return work()
    outcome: list[Any] = [None, None]
    if index == 0:
        before = _alone.set(True)
        try:
            outcome[0] = work()
        except (UserError, OSError) as error:
            outcome[1] = error
        finally:
            _alone.reset(before)
    fsdp_forward.join_remaining_forwards()
    broadcast_object_list(outcome)
    if outcome[1] is not None:
        raise outcome[1]
    result: Result = outcome[0]
    return result


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """Create one temporary folder for all processes of a machine; it is removed at the end."""
    folder = run_on_main(lambda: Path(tempfile.mkdtemp()))
    index, count = _place()
    try:
        yield folder
        if count > 1:
            PartialState().wait_for_everyone()  # none may still read there when it is removed
    finally:
        if index == 0:
            shutil.rmtree(folder)


@contextmanager
def main_first() -> Iterator[None]:
    """Let the main process run first, so that the others find its results in a cache."""
    _, count = _place()
    with PartialState().main_process_first() if count > 1 else nullcontext():
        yield
