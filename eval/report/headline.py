"""Headline of the report: the figures of results.json as sentences, with nothing recomputed."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from eval.metrics.formatting import (
    ALPHA,
    REPETITION,
    _finite,
    bits_change,
    p_value,
    percent,
    percent_range,
    points,
    points_range,
    significant,
)

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


def in_bits(results: dict[str, Any]) -> list[dict[str, Any]]:
    """Changes of texts that were read, in bits per byte; rows as those of `deltas`."""
    deltas: list[dict[str, Any]] = results.get("language", {}).get("deltas", [])
    return deltas


def counted(rows: Sequence[dict[str, Any]]) -> int:
    """How many rows of `deltas` Holm counts: those that could have been significant, see
    `eval.metrics.stats.holm`; all of an older run."""
    return sum(row.get("smallest_p", 0.0) < ALPHA for row in rows)


def transitions(results: dict[str, Any]) -> list[tuple[str, str]]:
    """The compared pairs (from, to), in the order of `deltas`, each once."""
    rows = [*results.get("deltas", []), *in_bits(results)]
    return list(dict.fromkeys((row["from"], row["to"]) for row in rows))


def overall(results: dict[str, Any]) -> tuple[str, str] | None:
    """The pair the headline is about: first to last model where compared, else the last pair.

    A fixed rule, so that the headline cannot pick the most favorable comparison.
    """
    pairs = transitions(results)
    models = results.get("models", [])
    if models and (models[0], models[-1]) in pairs:
        return models[0], models[-1]
    return pairs[-1] if pairs else None


def headline(results: dict[str, Any]) -> Headline:
    """Title, answer and one sentence a stage, from the contract's results.json."""
    pair = overall(results)
    if pair is None:
        return Headline("No two models were compared.", _rates_only(results), ())
    title = f"{_repetition_title(results, pair)}; {_benchmarks_title(results, pair)}."
    unended = never_ends(results)
    if unended is not None:
        title = f"{percent(unended)} of {results['models'][-1]}'s answers do not end; {title}"
        title = title[:1] + title[1:].replace("; R", "; r", 1).replace("; N", "; n", 1)
    steps = tuple(
        Step(
            f"{a} \u2192 {b}",
            f"{_capital(_repetition(results, (a, b)))}; {_benchmarks(results, (a, b))}."
            f"{_texts(results, (a, b))}",
        )
        for a, b in transitions(results)
        if (a, b) != pair
    )
    subject = f"From {pair[0]} to {pair[1]}"
    answer = f"{subject}, {_repetition(results, pair)}. {_capital(_benchmarks(results, pair))}."
    answer = (_endings(results, pair) if unended is not None else "") + answer
    answer += _texts(results, pair)
    return Headline(title, answer, steps)


def never_ends(results: dict[str, Any]) -> float | None:
    """The share of the last model's answers to the repetition prompts that had not ended at the
    cap, where that is at least MOSTLY; None otherwise."""
    rate = results.get("repetition", {}).get(results["models"][-1])
    share = rate["rate"] + rate["truncated"] if rate and "truncated" in rate else 0.0
    return share if share >= MOSTLY else None


def _endings(results: dict[str, Any], pair: tuple[str, str]) -> str:
    """A sentence on the answers of both models that the cap cut."""
    rates = [(name, results["repetition"].get(name)) for name in pair]
    parts = [
        f"{percent(rate['rate'] + rate['truncated'])} of {name}'s"
        for name, rate in rates
        if rate and "truncated" in rate
    ]
    cap = results["repetition"][results["models"][-1]]["cap"]
    return f"{' and '.join(parts)} answers had not ended at the cap of {cap:,} tokens. "


def _rates_only(results: dict[str, Any]) -> str:
    rates = results.get("repetition", {})
    if not rates:
        return "Nothing has been measured in this run yet."
    parts = [f"{m} {percent(r['rate'])} ({percent_range(r.get('ci'))})" for m, r in rates.items()]
    return f"Repetition: {', '.join(parts)}."


def _rows(results: dict[str, Any], pair: tuple[str, str]) -> list[dict[str, Any]]:
    return [row for row in results.get("deltas", []) if (row["from"], row["to"]) == pair]


def _repetition_row(results: dict[str, Any], pair: tuple[str, str]) -> dict[str, Any] | None:
    return next((row for row in _rows(results, pair) if row["task"] == REPETITION), None)


def _benchmark_rows(results: dict[str, Any], pair: tuple[str, str]) -> list[dict[str, Any]]:
    return [row for row in _rows(results, pair) if row["task"] != REPETITION]


def _never_repeats(results: dict[str, Any], models: Sequence[str]) -> bool:
    rates = results.get("repetition", {})
    return all(model in rates and rates[model]["rate"] == 0 for model in models)


def _repetition_title(results: dict[str, Any], pair: tuple[str, str]) -> str:
    row = _repetition_row(results, pair)
    if row is None:
        return "Repetition was not compared"
    if _never_repeats(results, results["models"]):
        return "No model repeated itself"
    if not significant(row):
        return "Repetition did not change significantly"
    return "Repetition fell" if row["delta"] < 0 else "Repetition rose"


def _repetition(results: dict[str, Any], pair: tuple[str, str]) -> str:
    row = _repetition_row(results, pair)
    if row is None:
        return "repetition was not compared"
    if _never_repeats(results, pair):
        bound = (results["repetition"][pair[1]].get("ci") or (None, None))[1]
        n = results["repetition"][pair[1]].get("n", row["n"])
        return f"neither model repeated itself on any of {n:,} prompts (at most {percent(bound)})"
    rates = results.get("repetition", {})
    before, after = (percent(rates.get(model, {}).get("rate")) for model in pair)
    if significant(row):
        verb = "repetition fell" if row["delta"] < 0 else "repetition rose"
        return f"{verb} from {before} to {after} ({_evidence(row)})"
    evidence = f"{_evidence(row)} Holm-adjusted"  # the interval alone may exclude 0
    return f"repetition did not change significantly ({before} to {after}: {evidence})"


def _benchmarks_title(results: dict[str, Any], pair: tuple[str, str]) -> str:
    rows = _benchmark_rows(results, pair)
    rose, fell = _split(rows)
    if not rows:
        return "no benchmark was compared"
    if not rose and not fell:
        return "no benchmark changed significantly"
    if not fell:
        return f"{_count(rose, rows)} rose" + (", none fell" if len(rose) < len(rows) else "")
    return f"{_count(fell, rows)} fell" + (f", {len(rose)} rose" if rose else "")


def _benchmarks(results: dict[str, Any], pair: tuple[str, str]) -> str:
    rows = _benchmark_rows(results, pair)
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


def _texts(results: dict[str, Any], pair: tuple[str, str]) -> str:
    """A sentence on bits per byte; '' where no texts were read."""
    rows = [row for row in in_bits(results) if (row["from"], row["to"]) == pair]
    parts = [
        f"{r['task']} {bits_change(r['delta'])} ({p_value(r['p_holm'])})" for r in rows[:NAMED]
    ]
    more = f" and {len(rows) - NAMED} more" if len(rows) > NAMED else ""
    return f" Bits per byte, lower is better: {', '.join(parts)}{more}." if rows else ""


def _count(group: list[dict[str, Any]], rows: list[dict[str, Any]]) -> str:
    if len(rows) == 1:
        return "the one benchmark"
    return (
        f"all {len(rows)} benchmarks"
        if len(group) == len(rows)
        else f"{len(group)} of {len(rows)} benchmarks"
    )


def _still_possible(flat: list[dict[str, Any]]) -> str:
    """A change that is not significant is not a change of zero: the worst loss still possible."""
    bounded = [row for row in flat if row.get("ci") and _finite(row["ci"][0])]
    if not bounded:
        return ""
    worst = min(bounded, key=lambda row: row["ci"][0])
    if worst["ci"][0] >= 0:
        return ""
    loss = f"a loss of up to {-100 * worst['ci'][0]:.1f} points"
    if len(flat) == 1:
        return f" (its interval still allows {loss})"
    return f" (their intervals still allow {loss}, on {worst['task']})"


def _split(rows: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    clear = sorted((row for row in rows if significant(row)), key=lambda row: -abs(row["delta"]))
    return [r for r in clear if r["delta"] > 0], [r for r in clear if r["delta"] < 0]


def _named(rows: list[dict[str, Any]]) -> str:
    parts = [
        f"{row['task']} {points(row['delta'])} ({points_range(row.get('ci'))})"
        for row in rows[:NAMED]
    ]
    more = f" and {len(rows) - NAMED} more" if len(rows) > NAMED else ""
    p = p_value(max(row["p_holm"] for row in rows))
    if len(rows) > 1:
        p = "each " + p.replace("p =", "p at most")
    return f"{', '.join(parts)}{more}, {p}"


def _evidence(row: dict[str, Any]) -> str:
    change = f"{points(row['delta'])} points"
    return f"{change}, {points_range(row.get('ci'))}, {p_value(row.get('p_holm'))}"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
