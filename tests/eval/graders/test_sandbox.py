"""Programs that mean harm end as failed, and nothing outside them changes."""

import importlib.util
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import replace

import psutil
import pytest

from eval.graders.sandbox import Submission, run_program
from eval.graders.sandbox_command import RunCode, SandboxLimits, unconfined
from eval.graders.sandbox_probe import find_isolation
from eval.graders.sandbox_process import STARTED

LIMITS = SandboxLimits(
    cpu_seconds=1,
    wall_seconds=60,
    memory_bytes=200 << 20,
    processes=6,
    file_bytes=1 << 20,
    disk_bytes=4 << 20,
)

WAITING = replace(LIMITS, wall_seconds=2)
CONFINED = find_isolation(RunCode.CONFINED)
# A program that runs to its end can be asked, and the tests are content.
DONE = "\ndef done(): return 1\n"
# These use no time of the processor.
WAIT = ("sleeping", "memory of children", "endless verdict")

HOSTILE = {
    "fork bomb": """
import os
while True:
    try: os.fork()
    except OSError: pass
""",
    "memory": "held = []\nwhile True: held.append(bytearray(1 << 20))",
    "memory of children": """
import os, time
for _ in range(2): os.fork()
held = bytearray(100 << 20)
time.sleep(60)
""",
    "one large file": "file = open('a', 'wb')\nwhile True: file.write(bytes(1 << 20))",
    "many files": """
for i in range(10**9):
    with open(str(i), 'wb') as file: file.write(bytes(1 << 19))
""",
    "deep folders": "import os\nwhile True: os.mkdir('d'); os.chdir('d')",
    "endless output": "while True: print('x' * 10**6)",
    "endless verdict": """
import os
while True:
    for fd in range(3, 64):
        try: os.write(fd, b'ready\\n' * 1000)
        except OSError: pass
""",
    "sleeping": "import time; time.sleep(1000)",
    "deaf to signals": """
import signal
for number in signal.valid_signals() - {9, 19, 32, 33}: signal.signal(number, signal.SIG_IGN)
while True: pass
""",
    "ends early": "import os; os._exit(0)",
    "exits early": "import sys; sys.exit(0)",
    "crash": "import ctypes; ctypes.string_at(0)",
    "secret of the environment": "import os; os.environ['TRUING_SECRET']",
    "environment of the parent": """
import os
assert b'TRUING_SECRET' in open(f'/proc/{os.getppid()}/environ', 'rb').read()
""",
    "environment of the evaluator": """
assert b'TRUING_SECRET' in open('/proc/{parent}/environ', 'rb').read()
""",
    "home": "assert open('{home}/secret').read()",
    "home by listing": "import os; assert os.listdir('{home}')",
    "home by a link": "import os; os.symlink('{home}', 'l'); assert open('l/secret').read()",
    "home by another program": "import os; assert os.system('cat {home}/secret') == 0",
    "writing in home": "open('{home}/new', 'w').write('x')",
    "deleting in home": "import os; os.remove('{home}/secret')",
    "writing beside the interpreter": "open('{python}/truing_was_here', 'w').write('x')",
    "killing the parent": "import os; os.kill(os.getppid(), 9); os._exit(0)",
    "killing the evaluator": "import os; os.kill({parent}, 9)",
    "killing all": "import os; os.kill(-1, 9); os._exit(0)",
    "killing all, in a library": "import ctypes; assert ctypes.CDLL(None).kill({parent}, 9) == 0",
    "network": "import socket; socket.create_connection(('127.0.0.1', {port}), timeout=2)",
    "names": "import socket; socket.getaddrinfo('example.com', 80)",
    "debugging the parent": """
import ctypes, os
assert ctypes.CDLL(None).ptrace(16, os.getppid(), None, None) == 0
""",
    "memory of the evaluator": "open('/proc/{parent}/mem', 'r+b')",
    "killing the evaluator by a descriptor": """
import os, signal
signal.pidfd_send_signal(os.pidfd_open({parent}), 9)
""",
    "slowing the evaluator": "import os; os.setpriority(os.PRIO_PROCESS, {parent}, 19)",
    "a pipe in home": "import os; os.mkfifo('{home}/new')",
    "a node in home": "import os; os.mknod('{home}/new')",
    "history in home": "import readline; readline.write_history_file('{home}/new')",
    "home by history": """
import readline
readline.read_history_file('{home}/secret')
assert readline.get_history_item(1) == 'kept'
""",
    "home by tcl": """
import _tkinter
tcl = _tkinter.create(None, 'x', 'X', False, True, False, False, None)
assert tcl.eval('gets [open {home}/secret]') == 'kept'
""",
    "home by a subinterpreter": """
import _xxsubinterpreters as other
other.run_string(other.create(), "open('{home}/secret').read()")
""",
    "deleted files": """
import os
held = []
while True:
    held.append(open(str(len(held)), 'wb', buffering=0))
    os.remove(str(len(held) - 1))
    for _ in range(15): held[-1].write(bytes(1 << 16))
""",
    "mounting": """
import ctypes
library = ctypes.CDLL(None)
assert library.unshare(0x10000000) == 0 or library.mount(b'n', b'/tmp', b'tmpfs', 0, None) == 0
""",
}

REACHABLE = [
    *("secret of the environment", "home", "home by listing", "home by a link"),
    *("home by another program", "network", "a pipe in home", "a node in home", "home by tcl"),
    *("history in home", "home by history", "home by a subinterpreter", "writing in home"),
]


@pytest.fixture
def surroundings(tmp_path, monkeypatch):
    """What a program could reach and must not: a home, a secret, a server, other processes."""
    monkeypatch.setenv("TRUING_SECRET", "TRUING_SECRET")
    (tmp_path / "home").mkdir()
    (tmp_path / "home/secret").write_text("kept\n")
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "home").chmod(0o777)
    (tmp_path / "home/secret").chmod(0o666)
    for folder in (tmp_path, *tmp_path.parents):  # a worker of xdist has a folder more
        if folder.stat().st_uid == os.geteuid() and "pytest" in str(folder):
            folder.chmod(0o755)  # reachable for any user: it is not the mode that protects
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield {
            "home": tmp_path / "home",
            "port": server.getsockname()[1],
            "parent": os.getpid(),
            "python": sys.base_prefix,
        }
    assert [p.name for p in (tmp_path / "home").iterdir()] == ["secret"]
    assert (tmp_path / "home/secret").read_text() == "kept\n"
    assert not list((tmp_path / "temporary").iterdir())
    assert not os.path.exists(f"{sys.base_prefix}/truing_was_here")
    assert not confined_processes()


def filled(name, surroundings):
    source = HOSTILE[name]
    for key, value in surroundings.items():
        source = source.replace("{" + key + "}", str(value))
    return source


def confined_processes():
    """Command lines of those that are not below another worker of pytest-xdist."""
    others = {p.pid for p in psutil.Process().parent().children()} - {os.getpid()}
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            line = process.cmdline()
            if STARTED in line and os.getpid() in {p.pid for p in process.parents()} - others:
                found.append(line)
    return found


def run(source, *, limits=LIMITS, isolation=CONFINED):
    submission = Submission(source + DONE, "assert done() == 1", entry="done")
    return run_program(submission, isolation=isolation, limits=limits)


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_programs_fail_and_harm_nothing(surroundings, name):
    source = filled(name, surroundings)
    outcome = run(source, limits=WAITING if name in WAIT else LIMITS)
    assert not outcome.passed and outcome.reason not in ("", "passed")


@pytest.mark.parametrize("name", REACHABLE)
def test_only_the_isolation_keeps_these_from_succeeding(surroundings, tmp_path, name):
    """The control: the same program as a plain process of this user reaches what it is after."""
    source = filled(name, surroundings)
    module = re.search(r"import (readline|_tkinter|_xxsubinterpreters)", source)
    if module and not importlib.util.find_spec(module[1]):
        pytest.skip(f"this Python has no {module[1]}")
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (tmp_path / "home/new").unlink(missing_ok=True)


def test_what_is_left_running_ends_with_the_program(surroundings):
    if not CONFINED.own_processes:
        pytest.skip("here a program starts no process")
    source = """
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        while True: time.sleep(0.01)
    os._exit(0)
"""
    assert run(source).passed


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks the kernel of Linux")
def test_a_killed_evaluation_leaves_no_process_and_no_folder(surroundings, tmp_path):
    code = """
import sys
sys.path[:0] = ["tests/eval/graders", "tests/support"]
from test_sandbox import CONFINED, run
print("started", flush=True)
run("import time; time.sleep(1000)", isolation=CONFINED)
"""
    environment = {**os.environ, "TMPDIR": str(tmp_path / "temporary")}
    with subprocess.Popen([sys.executable, "-c", code], stdout=-1, env=environment) as evaluation:
        assert evaluation.stdout.readline() == b"started\n"
        top = psutil.Process(evaluation.pid)
        while len(below := top.children(recursive=True)) < 6 and evaluation.poll() is None:
            time.sleep(0.05)
        evaluation.kill()
    _, alive = psutil.wait_procs(below, timeout=60)
    assert not alive


@pytest.mark.parametrize("isolation", [CONFINED, unconfined()], ids=["confined", "unconfined"])
def test_ordinary_programs_pass_confined_or_not(surroundings, isolation):
    source = """
from __future__ import annotations
import collections, dataclasses, heapq, json, os, re, tempfile, typing

@dataclasses.dataclass
class Point:
    x: int

Pair = collections.namedtuple("Pair", "a b")
with tempfile.NamedTemporaryFile("w+") as file:
    file.write(json.dumps({"a": 1})); file.seek(0)
    assert json.load(file) == {"a": 1}
with open("own", "w") as file: file.write("x")
assert os.listdir(".") == ["own"]
held = bytearray(50 << 20)
os = print = None  # what a program does to its names touches no verdict
if __name__ == "__main__":
    raise AssertionError("a solution's own main part is not run")
"""
    outcome = run(source, isolation=isolation)
    assert (outcome.passed, outcome.reason) == (True, "passed")
