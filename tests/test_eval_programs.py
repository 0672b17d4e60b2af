"""Programs that mean harm end as failed, and nothing outside them changes."""

import os
import socket
import subprocess
import sys
import tempfile
from contextlib import suppress
from dataclasses import replace

import psutil
import pytest

from eval import cell
from eval.programs import Isolation, Limits, _reason, find_isolation, run_program

LIMITS = Limits(
    cpu_seconds=1,
    wall_seconds=60,
    memory_bytes=200 << 20,
    processes=6,
    file_bytes=1 << 20,
    disk_bytes=4 << 20,
)

WAITING = replace(LIMITS, wall_seconds=2)
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
}

REACHABLE = [
    *("secret of the environment", "home", "home by listing", "home by a link"),
    *("home by another program", "network"),
]


@pytest.fixture(params=["best", "no namespaces"])
def isolation(request):
    best = find_isolation()
    if request.param == "no namespaces":
        if not best.namespaces:
            pytest.skip("the best isolation of this system is this one already")
        return Isolation(False, "no namespaces")
    return best


@pytest.fixture
def surroundings(tmp_path, monkeypatch):
    """What a program could reach and must not: a home, a secret, a server, other processes."""
    monkeypatch.setenv("TRUING_SECRET", "TRUING_SECRET")
    (tmp_path / "home").mkdir()
    (tmp_path / "home/secret").write_text("kept")
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
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
    assert (tmp_path / "home/secret").read_text() == "kept"
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
            if cell.__file__ in line and not others & {p.pid for p in process.parents()}:
                found.append(line)
    return found


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_programs_fail_and_harm_nothing(surroundings, isolation, name):
    source = filled(name, surroundings)
    limits = WAITING if name in WAIT else LIMITS
    outcome = run_program(source, isolation=isolation, limits=limits)
    assert not outcome.passed and outcome.reason != "passed"
    assert outcome.isolation == isolation.name


@pytest.mark.parametrize("name", REACHABLE)
def test_only_the_isolation_keeps_these_from_succeeding(surroundings, tmp_path, name):
    """The control: the same program as a plain process of this user reaches what it is after."""
    command = [sys.executable, "-c", filled(name, surroundings)]
    done = subprocess.run(command, capture_output=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_what_is_left_running_ends_with_the_program(surroundings):
    isolation = find_isolation()
    if not isolation.namespaces:
        pytest.skip("without namespaces a program starts no process")
    source = """
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        while True: time.sleep(0.01)
    os._exit(0)
"""
    assert run_program(source, isolation=isolation, limits=LIMITS).passed


def test_ordinary_programs_pass_in_every_isolation(surroundings, isolation):
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
    outcome = run_program(source, isolation=isolation, limits=LIMITS)
    assert (outcome.passed, outcome.reason) == (True, "passed")


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("x = 1\nassert x == 2", "AssertionError (line 2: assert x == 2)"),
        ("def f(:", "SyntaxError: invalid syntax (program.py, line 1)"),
        ("import os; os.abort()", "killed by SIGABRT"),
        ("while True: pass", "CPU time used up"),
        ("raise SystemExit", "SystemExit (line 1: raise SystemExit)"),
        ("class E(Exception):\n  def __str__(self): 1 / 0\nraise E", "E (line 3: raise E)"),
        ("input()", "EOFError: EOF when reading a line (line 1: input())"),
    ],
)
def test_reasons_say_what_went_wrong(source, reason):
    assert run_program(source, isolation=find_isolation(), limits=LIMITS).reason == reason


def test_programs_that_wait_are_ended_by_the_clock(isolation):
    outcome = run_program("import time; time.sleep(99)", isolation=isolation, limits=WAITING)
    assert outcome.reason == "not done after 2 s"


def test_sets_of_strings_have_one_order():
    source = "raise KeyError(list({'a', 'b', 'c', 'd', 'e', 'f'}))"
    reasons = {run_program(source, isolation=find_isolation()).reason for _ in range(3)}
    assert len(reasons) == 1


def test_what_cannot_be_set_up_is_said_and_is_no_verdict(monkeypatch):
    """An interpreter that ends before it is confined: the system's failure, not the program's."""
    monkeypatch.setattr(cell, "__file__", "/nowhere/cell.py")
    with pytest.raises(OSError, match="ended as it began"):
        run_program("pass", isolation=Isolation(False, "any"))


def test_a_program_of_several_processes_fails_by_the_first_error_alone():
    """Each of them reports behind the mark, which is no part of what is told."""
    mark = b"0123abcd"
    report = mark + b"OSError: no more (line 3)" + mark + mark + b"OSError: no more (line 3)"
    assert _reason(report, mark, code=0) == "OSError: no more (line 3)"
    assert _reason(mark + mark + b"late", mark, code=0) == "late"
    assert _reason(mark + mark, mark, code=0) == "passed"
    assert _reason(b"x" + mark, mark, code=0) == "ended before its last line (exit code 0)"
