"""A log line's figures are counts of the packed rows over the time that passed."""

import pytest
import torch
from tiny_models import make_tiny_model

from sft.model.flops import costs_of_model, training_flops
from sft.packing.layout import Document, Segment, pack
from sft.training import throughput
from sft.training.throughput import Meter


def test_a_reading_is_what_passed_since_the_one_before(monkeypatch):
    clock = iter([100.0, 104.0, 104.0, 105.0, 105.0, 112.0])
    monkeypatch.setattr(throughput.time, "monotonic", lambda: next(clock))
    model = make_tiny_model()
    chat = Document(Segment([5, 6, 7, 8, 9], [False, False, True, True, True]))
    pair = Document(
        Segment([1, 2], [False, False]), (Segment([3], [True]), Segment([4, 5], [True] * 2))
    )
    batch = pack([chat, pair], row_length=16, bucket=16)
    work = training_flops(costs_of_model(model), batch.spans, scored=6)
    counted = Meter(model, device=torch.device("cpu"), peak=float(work))
    counted.add(batch)
    counted.add(batch)
    two_processes = counted.read(lambda sums: 2 * sums)
    assert two_processes["tokens_per_second"] == 2 * 2 * 10 / 4
    assert two_processes["trained_tokens_per_second"] == 2 * 2 * 6 / 4
    assert two_processes["padding"] == 1 - 10 / 16
    # Twice the work in four seconds by each of two processes, each able to do it in one.
    assert two_processes["peak_share"] == pytest.approx(0.5, rel=1e-3)
    counted.add(batch)
    assert counted.read(lambda sums: sums)["tokens_per_second"] == 10 / 1
    counted.leave_out(3.0)
    counted.earlier = 20.0  # of a start before this one
    assert counted.training_seconds() == 20 + 12 - 3
