"""Hand-computed values, and agreement with transformers where it has the same schedule."""

import math
from functools import partial

import pytest
import torch
from transformers import TrainingArguments, get_cosine_schedule_with_warmup, get_scheduler

from sft.training.lr_schedules import (
    SCHEDULES,
    count_warmup,
    long_warmup,
    multi_step,
    transformers_schedule,
    warmup_stable_decay,
)


@pytest.mark.parametrize(
    ("step", "factor"),
    [(0, 0.0), (5, 0.5), (10, 1.0), (79, 1.0), (80, 0.316), (89, 0.316), (90, 0.1), (100, 0.1)],
)
def test_multi_step_holds_the_papers_stages(step, factor):
    assert multi_step(step, total_steps=100, warmup_steps=10) == pytest.approx(factor)


@pytest.mark.parametrize(
    ("step", "factor"), [(0, 0.0), (2, 0.5), (4, 1.0), (80, 1.0), (90, 0.55), (100, 0.1)]
)
def test_warmup_stable_decay(step, factor):
    value = warmup_stable_decay(step, total_steps=100, warmup_steps=4, decay=0.2, final=0.1)
    assert value == pytest.approx(factor)


@pytest.mark.parametrize("final", [0.0, 0.1])
def test_cosine_is_upstreams_and_ends_at_final(final):
    name, options = transformers_schedule("cosine", {"final": final})
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    found = get_scheduler(name, optimizer, 7, 50, options).lr_lambdas[0]
    for step in range(51):
        share = max(0, step - 7) / 43
        falling = final + (1 - final) * 0.5 * (1 + math.cos(math.pi * share))
        assert found(step) == (step / 7 if step < 7 else falling)
    plain = get_cosine_schedule_with_warmup(optimizer, 7, 50).lr_lambdas[0]
    assert final or [*map(plain, range(51))] == [*map(found, range(51))]
    assert transformers_schedule("cosine", {}) == ("cosine", {})


@pytest.mark.parametrize(
    "name", [*SCHEDULES, "cosine", "linear", "constant_with_warmup", "constant"]
)
@pytest.mark.parametrize("steps", [2, 3, 10])
@pytest.mark.parametrize("given", [0, 0.1, 0.9, 0.99, 1, 2, 3, 9, 10, 11, 500])
def test_a_warm_up_that_leaves_the_peak_out_of_reach_is_said(name, steps, given):
    """Held against the schedules themselves, ours and upstream's."""
    options = {"lr_scheduler_type": name, "warmup_steps": given, "learning_rate": 2e-5}
    arguments = TrainingArguments(output_dir="x", warmup_steps=given, report_to="none")
    count = arguments.get_warmup_steps(steps)
    assert count_warmup(given, total_steps=steps) == count
    if name in SCHEDULES:
        factor = partial(SCHEDULES[name], total_steps=steps, warmup_steps=count)
    else:
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
        made = get_scheduler(name, optimizer, num_warmup_steps=count, num_training_steps=steps)
        factor = made.lr_lambdas[0]
    highest = max(map(factor, range(steps)))
    note = long_warmup(options, total_steps=steps)
    if name == "constant" or count < steps:
        assert note == ""
    else:
        assert highest < 1
        assert f"takes all of its {steps} steps" in note
        if name in ("cosine", "linear", "constant_with_warmup"):
            assert f"ends at {highest:.0%} of 2e-05" in note
