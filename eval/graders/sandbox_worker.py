"""The confined process: holds a program and answers calls to it, or runs the tests that call it.

`eval.graders.sandbox` starts two of them for a program, each in a confinement of its own. The one
with the program ("program") never sees the tests. The one with the tests ("tests") holds nothing of
the program but copies of plain values (`eval.graders.value_copies`), and the verdict is its own.
Where tests pass objects that cannot be copied, one process runs both ("together").

The order is the first line of standard input; standard input and output are then the connection to
the other process. Standard error takes READY, then the verdict as a line of JSON. What goes wrong
before READY is the system's doing. Only the standard library is there.
"""

import importlib
import json
import os
import resource
import sys
from collections.abc import Mapping

from eval.graders.program_side import Program
from eval.graders.tests_side import run_tests, run_together

READY = b"ready\n"
# Imported beforehand by what becomes another user: who may not be allowed to read Python's own
# folder, as under /root.
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
    """Take the order, set the limits, and do what the order says."""
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
        Program(incoming, outgoing, order).serve()
    else:
        verdict = (run_tests if order["role"] == "tests" else run_together)(
            incoming, outgoing, order
        )
        write(control, json.dumps(verdict).encode() + b"\n")
    leave(0)


def _become(user: int) -> None:
    for name in PRELOADED:
        importlib.import_module(name)
    os.setgroups([])
    os.setgid(user)
    os.setuid(user)


def _limit(limits: Mapping[str, int]) -> None:
    """Kernel limits on this process and on what it starts."""
    wanted = {
        resource.RLIMIT_FSIZE: limits["file_bytes"],
        resource.RLIMIT_NPROC: limits["processes"],
        resource.RLIMIT_NOFILE: FILES,
        resource.RLIMIT_CORE: 0,
    }
    if sys.platform == "linux":  # macOS refuses to set it
        wanted[resource.RLIMIT_AS] = limits["memory_bytes"]
    for kind, value in wanted.items():
        _, hard = resource.getrlimit(kind)
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (value, value))
    # The second after SIGXCPU is for programs that ignore it.
    resource.setrlimit(resource.RLIMIT_CPU, (limits["cpu_seconds"], limits["cpu_seconds"] + 1))
