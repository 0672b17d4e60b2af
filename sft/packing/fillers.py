"""Rows without trained tokens that fill the last step of an epoch."""

from collections.abc import Iterator
from typing import Any

from datasets import Dataset, concatenate_datasets
from torch.utils.data import Sampler


def fill_last_step(rows: Dataset, filler: dict[str, Any], *, train_batch_size: int) -> Dataset:
    """Append `filler` rows until every step has `train_batch_size` rows."""
    # accelerate would repeat rows in the last step instead, as many as there are processes.
    missing = -len(rows) % train_batch_size if train_batch_size else 0
    if not missing:
        return rows
    return concatenate_datasets([rows, Dataset.from_list([filler] * missing, rows.features)])


class FillersLast(Sampler[int]):
    """The order of another sampler with the indices from `first` on moved to the end.

    Of 5 rows and 3 fillers in steps of 4, a shuffle 6 0 3 5 4 1 7 2 becomes 0 3 4 1 | 2 6 5 7.
    """

    def __init__(self, sampler: Any, *, first: int) -> None:
        self.sampler, self.first = sampler, first

    def __iter__(self) -> Iterator[int]:
        yield from sorted(self.sampler, key=lambda index: index >= self.first)

    def __len__(self) -> int:
        return len(self.sampler)

    def set_epoch(self, epoch: int) -> None:
        """Select the shuffle of an epoch (accelerate calls this)."""
        self.sampler.set_epoch(epoch)
