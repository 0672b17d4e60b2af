"""Heartbeats: a process writes a small record again and again to show that it is alive."""

import json
import os
import platform
import threading
from pathlib import Path
from typing import Any

import psutil

from sft.system.atomic_files import read_file


class Heartbeat(threading.Thread):
    """Daemon thread that calls `beat` every `interval` seconds until `stopped` is set."""

    def __init__(self, name: str, *, interval: float) -> None:
        super().__init__(name=name, daemon=True)
        self.interval = interval
        self.beats = 0
        self.stopped = threading.Event()

    def run(self) -> None:
        while not self.stopped.wait(self.interval):
            self.beat()

    def beat(self) -> None:
        """Write the record where it is due and check the records of others."""
        raise NotImplementedError

    def record(self, **facts: Any) -> dict[str, Any]:
        """Return a record of this process that differs from all before it."""
        # A count, not a time: the clocks of two hosts need not agree.
        self.beats += 1
        identity = {"process": os.getpid(), "host": platform.node(), "beat": self.beats}
        return identity | facts


def read_heartbeat(path: Path) -> dict[str, Any]:
    """Return the record in `path`, or {} if there is none or it is damaged."""
    try:
        # Opening the file anew makes NFS fetch its current content.
        record = json.loads(read_file(path) or "{}")
    except (ValueError, OSError, RecursionError):
        return {}
    return record if isinstance(record, dict) else {}


def is_running(record: dict[str, Any]) -> bool:
    """Return whether the process of a record exists; True for one on another host."""
    if record["host"] != platform.node():
        return True
    try:
        return bool(psutil.Process(record["process"]).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
