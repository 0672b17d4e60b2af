"""Numbers as text: percentages, differences in points, intervals, p-values and durations."""

import math
from collections.abc import Sequence
from typing import TypeGuard

from eval.schema import DeltaRow

ALPHA = 0.05
REPETITION = "repetition"
MINUS, DASH = "\u2212", "\u2013"


def percent(fraction: float | None) -> str:
    """Format a fraction: 0.123 -> '12.3%'; an en dash for None and non-finite numbers."""
    return f"{100 * fraction:.1f}%" if is_finite(fraction) else DASH


def percent_range(ci: Sequence[float | None] | None) -> str:
    """Format an interval of fractions: (0.098, 0.152) -> '9.8\u201315.2%'."""
    if ci is None or not all(is_finite(end) for end in ci):
        return DASH
    return f"{DASH.join(f'{100 * end:.1f}' for end in ci if end is not None)}%"


def points(delta: float | None) -> str:
    """Format percentage points, always signed: -0.18 -> '\u221218.0'."""
    if not is_finite(delta):
        return DASH
    text = f"{100 * delta:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text.replace("-", MINUS)


def points_range(ci: Sequence[float | None] | None) -> str:
    """Format an interval in points: (-0.22, -0.14) -> '\u221222.0 to \u221214.0'."""
    return DASH if ci is None else f"{points(ci[0])} to {points(ci[1])}"


def bits_change(delta: float) -> str:
    """Format a change in bits per byte, always signed."""
    return f"{delta:+.4f}".replace("-", MINUS)


def bits_range(ci: Sequence[float] | None) -> str:
    """Format an interval in bits per byte: (-0.02, 0.01) -> '\u22120.0200 to +0.0100'."""
    return DASH if ci is None else f"{bits_change(ci[0])} to {bits_change(ci[1])}"


def p_value(p: float | None) -> str:
    """Format a p-value: 'p = 0.034', 'p < 0.001'; 'not tested' for None."""
    if not is_finite(p):
        return "not tested"
    if p < 0.001:
        return "p < 0.001"
    return f"p = {p:.3f}" if p < 0.1 else f"p = {p:.2f}"


def duration(seconds: float) -> str:
    """Format seconds: 134.2 -> '2 min 14 s'."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"


def significant(row: DeltaRow) -> bool:
    """Return whether a row of `deltas` is significant after Holm's adjustment."""
    p = row.get("p_holm")
    return is_finite(p) and p < ALPHA


def is_finite(value: object) -> TypeGuard[float]:
    """Return whether a value is a number that can be formatted."""
    return isinstance(value, int | float) and math.isfinite(value)
