"""A signal to all processes of a run reaches its workers, and ends the step of none."""

import os
import signal
import subprocess
import sys

import pytest

SCRIPT = """
import sys
from torch.utils.data import DataLoader
from sft.run.command import run_command
from sft.system.signals import Interrupted, at_next_step, requested
from sft.distributed.workers import Workers
def work():
    with at_next_step():
        loader = DataLoader(list(range(10**6)), num_workers=2, multiprocessing_context=Workers())
        for batch, _ in enumerate(loader):
            if batch == 3:
                print("ready", flush=True)
            if requested():
                break
        for _ in zip(range(3), loader):  # workers begin while the signal is on its way to them
            pass
        print("step done", flush=True)
    raise Interrupted(requested())
sys.exit(run_command(work))
"""


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_to_all_processes_ends_the_run_behind_its_step(signum):
    child = subprocess.Popen(
        [sys.executable, "-c", SCRIPT],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert child.stdout.readline() == "ready\n"
    os.killpg(child.pid, signum)
    out, said = child.communicate(timeout=60)  # which ends when no worker is left, either
    assert (child.returncode, out) == (128 + signum, "step done\n"), said[-3000:]
    assert "Traceback" not in said and said.count("saving a checkpoint") == 1


def test_workers_end_when_their_parent_is_killed():
    child = subprocess.Popen(
        [sys.executable, "-c", SCRIPT], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert child.stdout.readline() == "ready\n"
    child.kill()
    child.communicate(timeout=60)  # the pipes close when no process holds them
