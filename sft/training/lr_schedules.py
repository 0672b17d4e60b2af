"""Learning-rate schedules as pure functions of the step: a factor of the peak in [0, 1]."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

# DeepSeek LLM (arXiv 2401.02954, section 2.3): 31.6 % of the peak after 80 % of the steps, 10 %
# after 90 %.
MILESTONES = (0.8, 0.9)
FACTORS = (0.316, 0.1)


def warmup(step: int, *, warmup_steps: int) -> float:
    """Return the factor of a linear warm-up from 0 to 1 over `warmup_steps`."""
    return min(1.0, step / warmup_steps) if warmup_steps else 1.0


def count_warmup(warmup_steps: float, *, total_steps: int) -> int:
    """Return the steps of a warm-up; values below 1 are a share of all steps, as in transformers'
    `TrainingArguments.get_warmup_steps`."""
    return int(warmup_steps) if warmup_steps >= 1 else math.ceil(total_steps * warmup_steps)


def long_warmup(options: Mapping[str, Any], *, total_steps: int) -> str:
    """Return a warning if the warm-up is longer than the stage, or ""."""
    count = count_warmup(options.get("warmup_steps") or 0, total_steps=total_steps)
    without = options.get("lr_scheduler_type") in WITHOUT_WARMUP
    # `PackedTrainer.create_scheduler` drops the warm-up of a stage of one step.
    if without or count < total_steps or total_steps < 2:
        return ""
    highest = warmup(total_steps - 1, warmup_steps=count)
    return (
        f"warmup_steps={options['warmup_steps']:g} takes all of its {total_steps:,} steps: the "
        f"learning rate ends at {highest:.0%} of {options['learning_rate']:g}; give fewer, or a "
        "share of all steps below 1"
    )


def multi_step(
    step: int,
    *,
    total_steps: int,
    warmup_steps: int = 0,
    milestones: Sequence[float] = MILESTONES,
    factors: Sequence[float] = FACTORS,
) -> float:
    """Return the multi-step factor: warm-up, then `factors[i]` from `milestones[i]` on.

    `milestones` are shares of the total number of steps.
    """
    passed = sum(step >= milestone * total_steps for milestone in milestones)
    return warmup(step, warmup_steps=warmup_steps) * (factors[passed - 1] if passed else 1.0)


def warmup_stable_decay(
    step: int, *, total_steps: int, warmup_steps: int = 0, decay: float = 0.1, final: float = 0.0
) -> float:
    """Return the factor of warm-up, plateau, and a linear decay to `final` over the last `decay` of
    all steps."""
    # transformers' schedule of this name warms up from `min_lr_ratio` instead of 0 and counts decay
    # in steps, so its factors differ for `final` above 0.
    decay_steps = max(1, math.ceil(decay * total_steps))
    left = min(1.0, max(0.0, (total_steps - step) / decay_steps))
    return warmup(step, warmup_steps=warmup_steps) * (final + (1 - final) * left)


def transformers_schedule(name: str, options: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """Translate `cosine` with our option `final` into transformers' `cosine_with_min_lr`."""
    if name == "cosine" and "final" in options:
        rest = {key: value for key, value in options.items() if key != "final"}
        return "cosine_with_min_lr", {"min_lr_rate": options["final"]} | rest
    return name, options


WITHOUT_WARMUP = ("constant", "reduce_lr_on_plateau")  # schedules of transformers
# Values of `lr_scheduler_type` that replace transformers' schedules.
SCHEDULES: dict[str, Callable[..., float]] = {
    "multi_step": multi_step,
    "warmup_stable_decay": warmup_stable_decay,
}
