"""Hand-computed values, and agreement with transformers where it has the same schedule."""

import pytest
import torch
from transformers import get_cosine_schedule_with_warmup

from sft.schedule import cosine, multi_step, warmup_stable_decay


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


def test_cosine_equals_transformers_at_every_step():
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    upstream = get_cosine_schedule_with_warmup(optimizer, 7, 50)
    for step in range(51):
        assert cosine(step, total_steps=50, warmup_steps=7) == pytest.approx(
            upstream.get_last_lr()[0], abs=1e-12
        )
        optimizer.step()
        upstream.step()
