"""Headline of the report: the figures of results.json as sentences, with nothing recomputed."""

from collections.abc import Sequence
from dataclasses import dataclass

from eval.metrics.number_format import (
    ALPHA,
    REPETITION,
    bits_change,
    is_finite,
    p_value,
    percent,
    percent_range,
    points,
    points_range,
    significant,
)
from eval.schema import DeltaRow, Results

# At most this many benchmarks are named with their numbers in one sentence.
NAMED = 3
# From this share of answers cut at the cap, the title reports that answers do not end.
MOSTLY = 0.5


@dataclass(frozen=True)
class Step:
    """Changes between two consecutive models."""

    label: str
    text: str


@dataclass(frozen=True)
class Headline:
    """The headline: a title, the main result with its numbers, and the steps in between."""

    title: str
    answer: str
    steps: tuple[Step, ...]


def in_bits(results: Results) -> list[DeltaRow]:
    """Return the changes in bits per byte, as rows like those of `deltas`."""
    return results["language"]["deltas"] if "language" in results else []


def counted(rows: Sequence[DeltaRow]) -> int:
    """Return the number of comparisons in Holm's correction: rows that can reach p < ALPHA.

    See `eval.metrics.stats.holm`. Rows of earlier versions lack `smallest_p` and are counted.
    """
    return sum(row.get("smallest_p", 0.0) < ALPHA for row in rows)


def model_pair(row: DeltaRow) -> tuple[str, str]:
    """Return the two models of a change."""
    return row["from"], row["to"]


def transitions(results: Results) -> list[tuple[str, str]]:
    """Return the compared pairs (from, to), in the order of `deltas`, each once."""
    return list(dict.fromkeys(map(model_pair, [*results.get("deltas", []), *in_bits(results)])))


def overall(results: Results) -> tuple[str, str] | None:
    """Return the pair of the headline: first and last model if compared, else the last pair.

    A fixed rule, so that the headline cannot pick the most favorable comparison.
    """
    pairs = transitions(results)
    models = results["models"]
    if models and (models[0], models[-1]) in pairs:
        return models[0], models[-1]
    return pairs[-1] if pairs else None


def headline(results: Results) -> Headline:
    """Return title, answer and one sentence for each step."""
    pair = overall(results)
    if pair is None:
        return Headline("No two models were compared.", _rates_only(results), ())
    parts = [_repetition_title(results, pair), _benchmarks_title(_benchmark_rows(results, pair))]
    unended = never_ends(results)
    if unended is not None:
        parts.insert(0, f"{percent(unended)} of {results['models'][-1]}'s answers do not end")
    steps = tuple(
        Step(
            f"{a} \u2192 {b}",
            f"{_capital(_repetition(results, (a, b)))}; "
            f"{_benchmarks(_benchmark_rows(results, (a, b)))}.{_texts(results, (a, b))}",
        )
        for a, b in transitions(results)
        if (a, b) != pair
    )
    answer = (
        f"From {pair[0]} to {pair[1]}, {_repetition(results, pair)}. "
        f"{_capital(_benchmarks(_benchmark_rows(results, pair)))}.{_texts(results, pair)}"
    )
    if unended is not None:
        answer = _endings(results, pair) + answer
    return Headline(f"{_capital('; '.join(parts))}.", answer, steps)


def never_ends(results: Results) -> float | None:
    """Return the share of the last model's answers that had not ended at the cap, if >= MOSTLY."""
    rate = results.get("repetition", {}).get(results["models"][-1])
    share = rate["rate"] + rate["truncated"] if rate and "truncated" in rate else 0.0
    return share if share >= MOSTLY else None


def _endings(results: Results, pair: tuple[str, str]) -> str:
    """Format the shares of both models' answers that were cut at the cap."""
    rates = [(name, results["repetition"].get(name)) for name in pair]
    parts = [
        f"{percent(rate['rate'] + rate['truncated'])} of {name}'s"
        for name, rate in rates
        if rate and "truncated" in rate
    ]
    cap = results["repetition"][results["models"][-1]]["cap"]
    return f"{' and '.join(parts)} answers had not ended at the cap of {cap:,} tokens. "


def _rates_only(results: Results) -> str:
    rates = results.get("repetition", {})
    if not rates:
        return "Nothing has been measured in this run yet."
    parts = [f"{m} {percent(r['rate'])} ({percent_range(r['ci'])})" for m, r in rates.items()]
    return f"Repetition: {', '.join(parts)}."


def _repetition_row(results: Results, pair: tuple[str, str]) -> DeltaRow | None:
    rows = (row for row in results.get("deltas", []) if model_pair(row) == pair)
    return next((row for row in rows if row["task"] == REPETITION), None)


def _benchmark_rows(results: Results, pair: tuple[str, str]) -> list[DeltaRow]:
    rows = results.get("deltas", [])
    return [row for row in rows if model_pair(row) == pair and row["task"] != REPETITION]


def _never_repeats(results: Results, models: Sequence[str]) -> bool:
    rates = results.get("repetition", {})
    return all(model in rates and rates[model]["rate"] == 0 for model in models)


def _repetition_title(results: Results, pair: tuple[str, str]) -> str:
    row = _repetition_row(results, pair)
    if row is None:
        return "repetition was not compared"
    if _never_repeats(results, results["models"]):
        return "no model repeated itself"
    if not significant(row):
        return "repetition did not change significantly"
    return "repetition fell" if row["delta"] < 0 else "repetition rose"


def _repetition(results: Results, pair: tuple[str, str]) -> str:
    row, rates = _repetition_row(results, pair), results.get("repetition", {})
    if row is None:
        return "repetition was not compared"
    if _never_repeats(results, pair):
        last = rates[pair[1]]
        bound = percent(last["ci"][1])
        return f"neither model repeated itself on any of {last['n']:,} prompts (at most {bound})"
    before, after = (percent(rates[model]["rate"] if model in rates else None) for model in pair)
    if significant(row):
        verb = "repetition fell" if row["delta"] < 0 else "repetition rose"
        return f"{verb} from {before} to {after} ({_evidence(row)})"
    evidence = f"{_evidence(row)} Holm-adjusted"  # the interval alone may exclude 0
    return f"repetition did not change significantly ({before} to {after}: {evidence})"


def _benchmarks_title(rows: list[DeltaRow]) -> str:
    rose, fell = _split(rows)
    if not rows:
        return "no benchmark was compared"
    if not rose and not fell:
        return "no benchmark changed significantly"
    if not fell:
        return f"{_count(rose, rows)} rose" + (", none fell" if len(rose) < len(rows) else "")
    return f"{_count(fell, rows)} fell" + (f", {len(rose)} rose" if rose else "")


def _benchmarks(rows: list[DeltaRow]) -> str:
    if not rows:
        return "no benchmark was compared"
    rose, fell = _split(rows)
    flat = [row for row in rows if row not in rose and row not in fell]
    if not rose and not fell:
        count = "the one benchmark did not change" if len(rows) == 1 else "no benchmark changed"
        return f"{count} significantly{_still_possible(flat)}"
    clauses = [
        f"{_count(group, rows)} {verb}: {_named(group)}"
        for group, verb in ((rose, "rose"), (fell, "fell"))
        if group
    ]
    if flat:
        clauses.append(f"{len(flat)} did not change significantly{_still_possible(flat)}")
    return "; ".join(clauses)


def _texts(results: Results, pair: tuple[str, str]) -> str:
    """Format the changes in bits per byte; '' if no texts were measured."""
    rows = [row for row in in_bits(results) if model_pair(row) == pair]
    parts = [f"{r['task']} {bits_change(r['delta'])} ({p_value(r['p_holm'])})" for r in rows]
    return f" Bits per byte, lower is better: {_listed(parts)}." if rows else ""


def _listed(parts: Sequence[str]) -> str:
    more = f" and {len(parts) - NAMED} more" if len(parts) > NAMED else ""
    return ", ".join(parts[:NAMED]) + more


def _count(group: list[DeltaRow], rows: list[DeltaRow]) -> str:
    if len(rows) == 1:
        return "the one benchmark"
    if len(group) == len(rows):
        return f"all {len(rows)} benchmarks"
    return f"{len(group)} of {len(rows)} benchmarks"


def _still_possible(flat: list[DeltaRow]) -> str:
    """Format the largest loss that the intervals allow: not significant does not mean zero."""
    lows = [(ci[0], row["task"]) for row in flat if (ci := row.get("ci")) and is_finite(ci[0])]
    if not lows:
        return ""
    low, task = min(lows, key=lambda pair: pair[0])
    if low >= 0:
        return ""
    loss = f"a loss of up to {-100 * low:.1f} points"
    if len(flat) == 1:
        return f" (its interval still allows {loss})"
    return f" (their intervals still allow {loss}, on {task})"


def _split(rows: list[DeltaRow]) -> tuple[list[DeltaRow], list[DeltaRow]]:
    """Return the significant gains and losses, largest first."""
    clear = sorted((row for row in rows if significant(row)), key=lambda row: -abs(row["delta"]))
    return [r for r in clear if r["delta"] > 0], [r for r in clear if r["delta"] < 0]


def _named(rows: list[DeltaRow]) -> str:
    parts = [f"{r['task']} {points(r['delta'])} ({points_range(r.get('ci'))})" for r in rows]
    p = p_value(max(row["p_holm"] or 0.0 for row in rows))
    if len(rows) > 1:
        p = "each " + p.replace("p =", "p at most")
    return f"{_listed(parts)}, {p}"


def _evidence(row: DeltaRow) -> str:
    change = f"{points(row['delta'])} points"
    return f"{change}, {points_range(row.get('ci'))}, {p_value(row['p_holm'])}"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
