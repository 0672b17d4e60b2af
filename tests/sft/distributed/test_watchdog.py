"""Processes that die or hang end the others within seconds, by name."""

import signal
import subprocess
import sys
import time

import pytest

from sft.distributed.watchdog import _is_system, watching

SCRIPT = """
import sys, time
from pathlib import Path
from sft.distributed import watchdog as processes
processes.SILENT = 2.0
rank, what = int(sys.argv[2]), sys.argv[3]
def stand_still():
    time.sleep(60)
with processes.watching(Path(sys.argv[1]), rank=rank, count=2):
    for step in range(3):
        processes.step_begins(step)
        time.sleep(0.3)
        processes.step_ends()
    print("stepped", flush=True)
    if rank == 1 and what == "raise":
        raise ValueError("row 7 is odd")
    processes.step_begins(3)
    if rank == 1 and what == "hang":
        stand_still()
    time.sleep(60)
"""


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("kill", "process 1 (pid {pid} on"),
        ("stop", "process 1 (pid {pid} on"),
        ("raise", "ended: ValueError: row 7 is odd"),
        ("hang", "stand_still"),
    ],
)
def test_one_process_takes_the_other_with_it_and_says_why(tmp_path, what, words):
    children = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(tmp_path), str(rank), what],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    try:
        for child in children:
            assert child.stdout.readline() == "stepped\n"
        time.sleep(1.2)  # each has seen the other
        if what in ("kill", "stop"):
            children[1].send_signal(signal.SIGKILL if what == "kill" else signal.SIGSTOP)
        begun = time.monotonic()
        _, said = children[0].communicate(timeout=40)
        assert children[0].returncode == 1
        assert time.monotonic() - begun < 30
        assert words.format(pid=children[1].pid) in said
    finally:
        for child in children:
            child.kill()
            child.communicate()


def test_a_process_that_hangs_before_its_first_sign_of_life_is_named_too(tmp_path):
    child = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path), "0", "alone"],
        capture_output=True,
        text=True,
        timeout=40,
        check=False,
    )
    assert child.returncode == 1
    assert "error: process 1 has given no sign of life since it began" in child.stderr


def test_the_first_sign_of_life_is_given_before_anything_else(tmp_path):
    with watching(tmp_path, rank=1, count=2):
        assert (tmp_path / ".processes" / "1.json").is_file()


WAITS = {
    "Python": "time.sleep(60)",
    # As `join_processes` where the launcher is gone before they have met: nothing listens there.
    "torch": (
        "torch.distributed.TCPStore('127.0.0.1', 1, is_master=False, timeout=timedelta(days=30))"
    ),
}


@pytest.mark.parametrize("waits", WAITS)
def test_a_process_whose_launcher_is_gone_ends_as_on_sigterm(waits):
    inner = (
        "import os, sys, time, torch\nfrom datetime import timedelta\n"
        "from sft.run.command import run_command\n"
        "def work():\n"
        f"  print('in', flush=True); {WAITS[waits]}\n"
        "print('code', run_command(work), flush=True)\n"
    )
    outer = (
        "import os, subprocess, sys\n"
        "os.environ['ACCELERATE_MIXED_PRECISION'] = 'no'\n"
        "subprocess.Popen([sys.executable, '-c', sys.argv[1]], stderr=subprocess.STDOUT).wait()\n"
    )
    launcher = subprocess.Popen(
        [sys.executable, "-c", outer, inner], stdout=subprocess.PIPE, text=True
    )
    assert launcher.stdout.readline() == "in\n"
    launcher.kill()
    said, _ = launcher.communicate(timeout=50)  # until the process of the launcher has ended too
    assert "the launcher is gone" in said
    assert "stopped by SIGTERM; the same command continues from there" in said
    assert waits == "torch" or "code 143" in said


@pytest.mark.skipif(not _is_system(), reason="process 1 may be a launcher")
def test_a_process_whose_launcher_is_gone_before_it_begins_ends(monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    inner = (
        "import os, time\nfrom sft.run.command import run_command\n"
        "while os.getppid() != 1: time.sleep(0.1)\n"
        "print('code', run_command(lambda: time.sleep(60)), flush=True)\n"
    )
    outer = "import subprocess, sys\nsubprocess.Popen([sys.executable, '-c', sys.argv[1]])\n"
    command = [sys.executable, "-W", "ignore", "-c", outer, inner]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=50)
    assert ended.stdout == "code 143\n", ended.stderr
