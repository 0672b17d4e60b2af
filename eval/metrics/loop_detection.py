"""Loop detection in token ids: the period, the number of copies and where the loop begins."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

# Our thresholds; the paper names none. A refrain or a table's rule has fewer than four copies;
# "ha ha ha" and a line of dashes have fewer than 64 tokens.
MIN_COPIES = 4
MIN_TOKENS = 64
BEGUN_COPIES = 2  # by the cap, for a loop that is verified at twice the cap


@dataclass(frozen=True)
class Loop:
    """A periodic tail: after the first copy, each token equals the one `period` before it."""

    period: int
    copies: int  # complete ones; a partial last copy is not counted
    start: int


def find_loop(
    token_ids: Sequence[Any], *, cap: int | None = None, copies: int = BEGUN_COPIES
) -> Loop | None:
    """Return the loop that the tokens end in, with the smallest period that qualifies; O(n).

    A loop needs MIN_COPIES complete copies and MIN_TOKENS tokens.

    Args:
        cap: find instead a loop of any length that had `copies` complete copies by this many
            tokens and has not been left since.
    """
    # The Z-function of the reversed tokens gives, for every period, how long the tail keeps it.
    tail = list(token_ids)[::-1]
    n = len(tail)
    longest = n // MIN_COPIES if cap is None else min(cap // copies, n - 1)
    for period, length in prefix_matches(tail, longest=longest):
        covered = period + length
        start = n - covered
        if cap is None:
            enough = covered >= max(MIN_COPIES * period, MIN_TOKENS)
        else:
            enough = start + copies * period <= cap
        if enough:
            return Loop(period, covered // period, start)
    return None


def prefix_matches(items: Sequence[Any], *, longest: int) -> Iterator[tuple[int, int]]:
    """Yield (i, how many items starting at i equal the first ones) for i in 1..`longest`.

    The Z-function (Gusfield 1997, section 1.4): linear in the number of items.
    """
    n = len(items)
    matches = [0] * (longest + 1)
    left = right = 0  # the match that reaches furthest
    for i in range(1, longest + 1):
        length = min(right - i, matches[i - left]) if i < right else 0
        while i + length < n and items[length] == items[i + length]:
            length += 1
        matches[i] = length
        if i + length > right:
            left, right = i, i + length
        yield i, length


def seq_rep_n(token_ids: Sequence[int], *, n: int = 4) -> float:
    """Return 1 - distinct n-grams / n-grams (Welleck et al. 2020, arXiv 1908.04319)."""
    count = len(token_ids) - n + 1
    if count <= 0:
        return 0.0
    return 1 - len({tuple(token_ids[i : i + n]) for i in range(count)}) / count
