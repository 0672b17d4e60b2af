"""Run scripts in separate processes, and mark tests that take minutes."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from files import ROOT

# Tests that would bring the suite near its limit of 20 minutes on a slow machine.
long = pytest.mark.skipif(
    not os.environ.get("TRUING_LONG"), reason="takes minutes; TRUING_LONG=1 runs it"
)


def reported_by(script: str, folder: Path, *arguments: str) -> Any:
    """Run a script of tests/benchmarks in a separate process; return what it writes with --json."""
    report = folder / "report.json"
    done = subprocess.run(
        [sys.executable, ROOT / "tests/benchmarks" / script, "--json", report, *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-6000:] + done.stdout
    return json.loads(report.read_text())


def in_two_processes(script: str, *args: str) -> None:
    """Run a script in two processes connected by gloo; each must print "done" at the end."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    group = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    group |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    children = [
        subprocess.Popen(
            [sys.executable, "-c", script, *args],
            env=os.environ | group | {"RANK": rank, "LOCAL_RANK": rank},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in "01"
    ]
    for child in children:
        out, err = child.communicate(timeout=240)
        assert out == "done\n", err[-2000:]
