"""Entry point of a confined process: runs a program, its tests, or both.

The first line of standard input is the order, with the role of the process: "program", "tests" or
"together". Standard input and output are then the connection to the other process. Standard error
takes READY, then the verdict as a line of JSON. A failure before READY is the system's. Only the
standard library can be imported.
"""

import importlib
import json
import os
import resource
import sys
from collections.abc import Mapping

from eval.graders.program_server import ProgramServer
from eval.graders.tests_runner import run_tests, run_together

READY = b"ready\n"
# Imported before the change of user: the new user may have no access to Python's own folder, such
# as one under /root.
PRELOADED = (
    *("__future__", "abc", "array", "ast", "base64", "bisect", "calendar", "cmath", "collections"),
    *("contextlib", "copy", "csv", "dataclasses", "datetime", "decimal", "difflib", "enum"),
    *("fractions", "functools", "hashlib", "heapq", "inspect", "io", "itertools", "json", "math"),
    *("numbers", "operator", "queue", "random", "re", "statistics", "string", "struct"),
    *("tempfile", "textwrap", "threading", "time", "traceback", "types", "typing", "unicodedata"),
    *("unittest", "zlib"),
)
FILES = 64  # open at once


def main() -> None:
    """Read the order, set the limits, and perform the role."""
    incoming, outgoing = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    control = os.dup(2)
    null = os.open(os.devnull, os.O_RDWR)
    for file in range(3):
        os.dup2(null, file)
    os.close(null)
    os.umask(0o022)
    order = json.loads(incoming.readline())
    try:
        if order["user"] is not None:
            _become(order["user"])
        _limit(order["limits"])
    except (OSError, ValueError) as error:
        os.write(control, f"{error}\n".encode())
        os._exit(1)
    os.write(control, READY)
    write, leave = os.write, os._exit  # a program run together with its tests may replace them
    if order["role"] == "program":
        ProgramServer(incoming, outgoing, order).serve()
    else:
        verdict = (run_tests if order["role"] == "tests" else run_together)(
            incoming, outgoing, order
        )
        write(control, json.dumps(verdict).encode() + b"\n")
    leave(0)


def _become(user: int) -> None:
    """Drop root for a user that owns nothing."""
    for name in PRELOADED:
        importlib.import_module(name)
    os.setgroups([])
    os.setgid(user)
    os.setuid(user)


def _limit(limits: Mapping[str, int]) -> None:
    """Set kernel limits for this process and its children."""
    values = {
        resource.RLIMIT_FSIZE: limits["file_bytes"],
        resource.RLIMIT_NPROC: limits["processes"],
        resource.RLIMIT_NOFILE: FILES,
        resource.RLIMIT_CORE: 0,
    }
    if sys.platform == "linux":  # macOS refuses to set it
        values[resource.RLIMIT_AS] = limits["memory_bytes"]
    for kind, value in values.items():
        _, hard = resource.getrlimit(kind)
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (value, value))
    # Programs that ignore SIGXCPU are killed one second later.
    resource.setrlimit(resource.RLIMIT_CPU, (limits["cpu_seconds"], limits["cpu_seconds"] + 1))
