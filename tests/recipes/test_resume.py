"""A chain killed at random instants ends as one that was not (benchmarks/kill_resume.py)."""

from functools import partial

import pytest
from launching import long, reported_by

kill_resume = partial(reported_by, "kill_resume.py")
kill_commands = partial(reported_by, "kill_commands.py")


def test_killed_at_random_instants_the_chain_ends_with_the_same_bytes(tmp_path):
    report = kill_resume(tmp_path, "--kills", "2", "--variants", "lora by epoch")
    assert report["equal"] == report["kills"] == 2
    assert sum(place["equal"] for place in report["where"].values()) == 2


@long
@pytest.mark.slow
def test_killed_while_it_is_measured_by_epoch_every_epoch_has_one_row(tmp_path):
    options = ("--variants", "lora by epoch", "--within", "epochs", "--seed", "1")
    report = kill_resume(tmp_path, "--kills", "3", *options)
    assert report["equal"] == report["kills"] == 3
    assert all(place.endswith("measuring by epoch") for place in report["where"])


@long
@pytest.mark.slow
def test_killed_preempted_and_short_of_disk_in_one_and_two_processes(tmp_path):
    report = kill_resume(
        tmp_path, "--kills", "6", "--faults", "6", "--requeues", "4", "--seed", "7"
    )
    assert report["equal"] == report["kills"] == 6
    assert report["requeues"]["own_code"] == report["requeues"]["starts"] >= 4
    assert all(
        fault["one sentence"] == fault["equal"] == fault["starts"]
        for fault in report["faults"].values()
    )


@long
@pytest.mark.slow
def test_signals_to_all_processes_with_data_workers_end_the_run_in_order(tmp_path):
    options = ("--kills", "2", "--requeues", "4", "--variants", "lora, data workers")
    report = kill_resume(tmp_path, *options)
    assert set(report["requeues"].values()) == {report["requeues"]["starts"]}


@long
@pytest.mark.slow
def test_launched_chains_exports_and_comparisons_that_are_hit_end_as_unbroken_ones(tmp_path):
    counts = ("--launched", "2", "--exports", "4", "--comparisons", "4", "--answers", "4")
    report = kill_commands(tmp_path, *counts)
    assert len(report) == 5
    for tally in report.values():
        assert tally["hits"] == tally["in_order"] == tally["equal"] > 0
