"""Statistics of token pairs that DPO learns along with the preferences: lengths and endings."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.table import Table

from sft.tokenization.row_checks import Rules, check_row

SIDES = ("chosen", "rejected")


@dataclass(frozen=True)
class PairFacts:
    """Numbers of kept and dropped pairs, and the lengths of chosen and rejected answers."""

    pairs: int
    too_long: int  # dropped: one or both sides are longer than max_length
    uneven: int  # of those: one side only
    equal: int  # dropped: both answers have the same tokens
    chosen_tokens: float  # mean of an answer
    rejected_tokens: float
    chosen_longer: float  # share of pairs, a tie counts half; far from 0.5 it teaches the length
    unfinished: int  # sampled answers cut at the cap


def pair_facts(rows: Sequence[Mapping[str, Any]], counts: Mapping[str, int]) -> PairFacts:
    """Return the statistics of the kept rows, with counts of the other fields."""
    chosen, rejected = ([len(row[f"{side}_ids"]) for row in rows] for side in SIDES)
    longer = sum((a > b) + (a == b) / 2 for a, b in zip(chosen, rejected, strict=True))
    return PairFacts(
        pairs=len(rows),
        chosen_tokens=sum(chosen) / len(rows),
        rejected_tokens=sum(rejected) / len(rows),
        chosen_longer=longer / len(rows),
        **counts,
    )


def broken_rules(row: Mapping[str, Any], *, rules: Rules, sampled: bool) -> list[str]:
    """Return the rules of `sft.tokenization.row_checks` that either side breaks.

    A sampled answer may lack its end-of-turn.
    """
    broken = []
    for side in SIDES:
        ids, scored = row[f"{side}_ids"], row[f"{side}_scored"]
        prompt = row["prompt_ids"]
        broken += check_row(
            [*prompt, *ids], [*[False] * len(prompt), *scored], rules=rules, cut=sampled
        )[1]
    return broken


def pairs_table(facts: PairFacts) -> Table:
    """Return the statistics as a table."""
    table = Table(
        title="dpo: preference pairs", box=box.SIMPLE, title_justify="left", show_header=False
    )
    table.add_column("")
    table.add_column("", justify="right")
    for name, value in (
        ("pairs", f"{facts.pairs:,}"),
        ("left out, a side beyond max_length", f"{facts.too_long:,}"),
        ("  of these one side alone", f"{facts.uneven:,}"),
        ("left out, equal answers", f"{facts.equal:,}"),
        ("mean tokens of chosen", f"{facts.chosen_tokens:.1f}"),
        ("mean tokens of rejected", f"{facts.rejected_tokens:.1f}"),
        ("chosen is the longer (a tie counts half)", f"{facts.chosen_longer:.1%}"),
        ("sampled answers without an ending", f"{facts.unfinished:,}"),
    ):
        table.add_row(name, value)
    return table
