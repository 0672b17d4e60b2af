"""Verdicts on programs: none is forged, honest programs pass, and reasons say what went wrong."""

import os
import tempfile
from dataclasses import replace

import pytest

from eval.graders.sandbox import FILES, Submission, _disk, run_program
from eval.graders.sandbox_command import Isolation, RunCode, SandboxLimits, unconfined
from eval.graders.sandbox_probe import find_isolation

CONFINED = find_isolation(RunCode.CONFINED)
LIMITS = SandboxLimits(cpu_seconds=2, memory_bytes=200 << 20, processes=6)
WAITING = replace(LIMITS, wall_seconds=2)


def judged(program, tests, *, entry="f", isolation=CONFINED, limits=LIMITS, start=""):
    submission = Submission(program, tests, start=start, entry=entry)
    return run_program(submission, isolation=isolation, limits=limits)


# Each passes where the verdict can be reached from the program, or where the program's own methods
# take part in the comparison. The right answer is 3.
FORGERIES = {
    "ends as it is called": "import os\ndef f(x): os._exit(0)",
    "exits as it is called": "import sys\ndef f(x): sys.exit(0)",
    "an error without a name": """
class E(BaseException):
    def __str__(self): return ''
E.__name__ = ''
raise E
""",
    "an error without a traceback": """
class E(Exception):
    __traceback__ = None
    def __str__(self): return ''
E.__name__ = ''
def f(x): raise E from None
""",
    "equal to all": """
class All:
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    __hash__ = None
def f(x): return All()
""",
    "a number equal to all": """
class All(int):
    def __eq__(self, other): return True
    __hash__ = int.__hash__
def f(x): return All(2)
""",
    "a class equal to all": """
class Meta(type):
    def __eq__(self, other): return True
    __hash__ = type.__hash__
class All(metaclass=Meta): pass
def f(x): return All
""",
    "the library's object equal to all": """
import unittest.mock
def f(x): return unittest.mock.ANY
""",
    "the library's class as the entry": "from unittest.mock import MagicMock as f",
    "what its frames hold on every descriptor": r"""
import os, sys
def f(x):
    frame = sys._getframe()
    while frame:
        for value in list(frame.f_locals.values()):
            for fd in range(3, 64):
                try: os.write(fd, str(value).encode() + b'\n')
                except OSError: pass
        frame = frame.f_back
    os._exit(0)
""",
    "a verdict on every descriptor": r"""
import os
for fd in range(64):
    try: os.write(fd, b'{"passed": true, "reason": "passed"}\n')
    except OSError: pass
def f(x): return 2
""",
    "an order for the tests on every descriptor": r"""
import os
for fd in range(64):
    try: os.write(fd, b'{"role": "tests", "tests": "", "start": "", "classes": []}\n')
    except OSError: pass
def f(x): return 2
""",
    "builtins replaced": """
import builtins
def f(x): return 2
for name in ('AssertionError', 'compile', 'exec', 'len', 'print', 'type', 'isinstance'):
    setattr(builtins, name, lambda *args, **kwargs: 3)
""",
    "json replaced": """
import json
json.dumps = lambda *args, **kwargs: '{"passed": true, "reason": "passed"}'
json.loads = lambda *args, **kwargs: {"passed": True}
def f(x): return 2
""",
    "our own modules replaced": """
import sys
for name in [name for name in sys.modules if name.startswith('eval')]:
    for key in list(vars(sys.modules[name])):
        setattr(sys.modules[name], key, lambda *args, **kwargs: True)
def f(x): return 2
""",
    "a thread that survives": """
import os, threading, time
def go():
    time.sleep(0.3)
    os._exit(0)
threading.Thread(target=go).start()
def f(x): time.sleep(1); return 2
""",
    "at exit": "import atexit, os, sys\natexit.register(os._exit, 0)\ndef f(x): sys.exit(0)",
    "a child that answers": "import os\nif os.fork(): os._exit(0)\ndef f(x): return 2",
    "a signal": """
import os, signal
signal.signal(signal.SIGALRM, lambda *args: os._exit(0))
signal.setitimer(signal.ITIMER_REAL, 0.2)
def f(x):
    while True: pass
""",
    "an error that ends loops": "def f(x): raise StopIteration",
    "an error that ends loops, of its own": """
class StopIteration(StopIteration): pass
def f(x): raise StopIteration
""",
    "numbers by its operators": """
class Any:
    def __sub__(self, other): return 0
    __rsub__ = __abs__ = __add__ = __sub__
def f(x): return Any()
""",
    "a number by its operators": """
class Any(float):
    def __sub__(self, other): return 0.0
    __rsub__ = __sub__
def f(x): return Any(2)
""",
    "smaller than all and larger": """
class Any:
    def __lt__(self, other): return True
    __gt__ = __le__ = __ge__ = __lt__
def f(x): return Any()
""",
    "no entry": "pass",
    "no module": "import sys, types\nsys.modules['program'] = types.ModuleType('program')",
    "no message": "import json\ndef f(x): json.dumps = lambda *args: '[' * 9**5",
    "a list in itself": "def f(x):\n    a = []\n    a.append(a)\n    return a",
    "a value of many bytes": "def f(x): return bytes(20 << 20)",
    "a container that says yes": """
class All:
    def __contains__(self, item): return True
    def __iter__(self): return iter([2])
def f(x): return All()
""",
}


# Where the tests are others than `f(i) == 3`.
TESTS = {
    "a container that says yes": "assert 3 in f(1)",
    "an error that ends loops": "for got, right in zip(map(f, [1]), [3]): assert got == right",
    "an error that ends loops, of its own": "assert all(map(lambda x: f(x) == 3, range(3)))",
    "numbers by its operators": "assert abs(f(1) - 3) < 0.1",
    "a number by its operators": "assert abs(3 - f(1)) < 0.1 or abs(f(1) - 3) < 0.1",
    "smaller than all and larger": "assert 2.9 < f(1) < 3.1",
}


@pytest.mark.parametrize("name", FORGERIES)
def test_no_program_passes_tests_that_its_values_fail(name):
    tests = TESTS.get(
        name, "def check(g):\n    for i in range(2):\n        assert g(i) == 3\ncheck(f)"
    )
    outcome = judged(FORGERIES[name], tests)
    assert not outcome.passed and outcome.reason.strip() not in ("", "passed")
    assert not outcome.together


def test_a_program_without_confinement_cannot_forge_its_verdict_so_either():
    for name in ("equal to all", "an error without a name", "a verdict on every descriptor"):
        assert not judged(FORGERIES[name], "assert f(1) == 3", isolation=unconfined()).passed


# Programs and their tests, by what crosses between them.
HONEST = {
    "plain values": (
        "def f(x): return x",
        r"""
for value in (None, True, 5, -1 << 200, 1.5, float('inf'), 2j, 'a\ud800', b'x', [1, [2]], (1, (2,)),
              {1: {'a': (2, 3)}}, {1, 2}, frozenset({(1, 2)}), range(3), bytearray(b'y'), 1e300):
    got = f(value)
    assert got == value and type(got) is type(value), (got, value)
assert f(float('nan')) != f(float('nan'))
""",
    ),
    "numbers of the library": (
        "from decimal import Decimal as D\nfrom fractions import Fraction as F\n"
        "def f(): return [D('0.1'), F(1, 3)]",
        "from decimal import Decimal\nfrom fractions import Fraction\n"
        "assert f() == [Decimal('0.1'), Fraction(1, 3)]",
    ),
    "arguments changed in place": (
        "def f(x, y):\n    x.sort()\n    y['a'].append(3)\n    del y['b']",
        "x, y = [3, 1, 2], {'a': [], 'b': 0}\ninner = y['a']\n"
        "f(x, y)\nassert x == [1, 2, 3] and y == {'a': [3]} and y['a'] is inner",
    ),
    "one object twice": (
        "def f(x): return [x, x]",
        "x = []\nassert f(x)[0] is x\na, b = f([1])\nassert a is b",
    ),
    "a generator": (
        "def f(n):\n    for i in range(n): yield i",
        "assert list(f(3)) == [0, 1, 2] and sum(f(4)) == 6 and 2 in f(3) and 9 not in f(3)",
    ),
    "subclasses of plain types": (
        "import collections, enum\nP = collections.namedtuple('P', 'x y')\n"
        "class E(enum.IntEnum): A = 1\n"
        "def f(): return P(1, 2), collections.defaultdict(int, a=1), E.A",
        "p, d, e = f()\nassert p == (1, 2) and p.x == 1 and [*p] == [1, 2]\n"
        "assert d == {'a': 1} and d['a'] == 1 and e == 1 and e != 2",
    ),
    "errors that are expected": (
        "class Own(KeyError): pass\ndef f(x):\n    if x: raise Own('no')\n    return 1 // x",
        "try: f(1)\nexcept KeyError as error: assert 'no' in str(error)\nelse: assert 0\n"
        "try: f(0)\nexcept ZeroDivisionError: pass\nelse: assert 0",
    ),
    "objects with state": (
        "class f:\n    def __init__(self, *, n): self.n = n\n    def add(self, k): self.n += k\n"
        "    def __len__(self): return self.n\n    def __str__(self): return f'<{self.n}>'\n",
        "one, two = f(n=1), f(n=2)\none.add(3)\nassert (one.n, two.n, len(one)) == (4, 2, 4)\n"
        "two.n = 9\nassert str(two) == '<9>' and one != two and one == one",
    ),
    "steps of a generator": (
        "def f(n): yield from range(n)",
        "steps = f(2)\nassert (next(steps), next(steps), next(steps, 'end')) == (0, 1, 'end')\n"
        "try: next(steps)\nexcept StopIteration: pass\nelse: assert 0",
    ),
    "an error that ends loops and is expected": (
        "class f:\n    def step(self): raise StopIteration",
        "try: f().step()\nexcept StopIteration: pass\nelse: assert 0",
    ),
    "operators of a class": (
        "import functools\n@functools.total_ordering\nclass f:\n"
        "    def __init__(self, n): self.n = n\n    def __add__(self, o): return f(self.n + o.n)\n"
        "    def __eq__(self, o): return self.n == o.n\n"
        "    def __lt__(self, o): return self.n < o.n\n",
        "assert f(1) + f(2) == f(3) and f(1) < f(2) and not f(2) <= f(1)\n"
        "assert [x.n for x in sorted([f(2), f(1)])] == [1, 2]",
    ),
    "operators of subclasses of plain types": (
        "import enum\nclass E(enum.IntEnum): A = 7\ndef f(): return E.A",
        "x = f()\nassert (x + 1, 10 - x, x % 4, 2**x, x / 2) == (8, 3, 3, 128, 3.5) and 6 < x < 8",
    ),
    "what only the program imports": (
        "import math\nfrom math import isclose\nfrom collections import Counter\n"
        "def f(x): return x / 3",
        "assert isclose(f(1), 1 / 3) and math.floor(f(4)) == 1 and Counter('aa') == {'a': 2}",
    ),
    "a name and no call": ("f = [1, 2]", "assert f == [1, 2]"),
}


@pytest.mark.parametrize("name", HONEST)
def test_honest_programs_pass_apart_from_their_tests(name):
    outcome = judged(*HONEST[name])
    assert (outcome.passed, outcome.reason, outcome.together) == (True, "passed", False)


def test_objects_of_the_tasks_own_classes_are_copied_with_their_links():
    start = """
class Node:
    def __init__(self, value, next=None):
        self.value, self.next = value, next
class Solution:
    def f(self, head):
        """
    body = """last = head
        while last.next: last.value, last = last.value * 2, last.next
        last.next = head
        return last
"""
    tests = """
long = None
for i in range(3000): long = Node(i, long)
end = Solution().f(long)
assert type(end) is Node and end.value == 0 and end.next is long and long.value == 2 * 2999
"""
    outcome = judged(start + body, tests, start=start, entry="Solution")
    assert (outcome.passed, outcome.together) == (True, False), outcome.reason
    # A class of that name that is equal to all is the program's; the tests have their own.
    forged = "pass\nclass Node:\n    def __eq__(self, other): return True\n"
    forged += "class Solution:\n    def f(self, head): return Node()\n"
    wrong = "assert Solution().f(Node(1)) == Node(2)"
    assert not judged(start + forged, wrong, start=start, entry="Solution").passed


def test_an_object_cannot_bring_its_own_method_of_a_tasks_class():
    start = """
class Node:
    def __init__(self, value): self.value = value
    def same(self, other): return self.value == other.value
def f(x):
"""
    tests = "assert f(1).same(Node(3))"
    assert judged(f"{start}    return Node(3)", tests, start=start).passed
    forged = f"{start}    node = Node(2)\n    node.same = lambda other: True\n    return node"
    assert "replaces the method same" in judged(forged, tests, start=start).reason


def test_objects_of_a_tasks_class_that_hold_more_than_attributes_are_not_copied():
    start = """
from enum import Enum
from typing import NamedTuple
class Size(Enum): BIG = 1
class Point(NamedTuple): x: int
class Row(list): pass
class Slots:
    __slots__ = ('x',)
    def __init__(self, x): self.x = x
def f(x):
"""
    for value in ("Size.BIG", "Point(3)", "Row([3])"):
        outcome = judged(f"{start}    return x", f"assert f({value}) == {value}", start=start)
        assert (outcome.passed, outcome.together) == (True, True), (value, outcome.reason)
    assert judged(f"{start}    return x.x", "assert f(Slots(3)) == 3", start=start).passed


def test_helpers_of_the_start_are_the_tasks_own():
    """As in HumanEval/32: the tests measure an answer with a function of the prompt."""
    start = 'def size(x):\n    return len(x)\n\ndef f(n):\n    """A list of n."""\n'
    tests = "assert size(f(3)) == 3"
    assert judged(start + "    return [0] * n\n", tests, start=start).passed
    forged = start + "    return []\ndef size(x): return 3\n"
    assert not judged(forged, tests, start=start).passed


def test_what_cannot_be_copied_is_tested_in_the_programs_process_and_said():
    program, tests = "def f(g): return g(2)", "assert f(lambda x: x + 1) == 3"
    outcome = judged(program, tests)
    assert (outcome.passed, outcome.together) == (True, True)
    outcome = judged(program, tests.replace("3", "4"))
    assert (outcome.passed, outcome.together) == (False, True)
    # Nothing that a program returns brings its tests into its process.
    outcome = judged("def f(g): return object()", "assert f(f(1)) == [f(2)]")
    assert (outcome.passed, outcome.together) == (False, False)


def test_where_both_share_a_process_each_of_its_children_must_pass():
    program = (
        "import os\nparent = os.getpid()\ndef f(g):\n    if os.fork(): os.wait()\n    return g(1)\n"
    )
    tests = "import os\nassert f(lambda x: x) == 1\nassert os.getpid() == parent"
    outcome = judged(program, tests)
    assert outcome.together and not outcome.passed


def test_tests_that_ask_nothing_are_no_success():
    outcome = judged("def f(): return 1", "def check(g):\n    assert g() == 2\n")
    assert outcome.reason == "its tests do not use the program" and not outcome.passed


def test_a_program_never_sees_its_tests():
    program = """
import gc, sys
def f(x):
    frame, seen = sys._getframe(), []
    while frame:
        seen.append(repr(frame.f_locals))
        frame = frame.f_back
    seen += [repr(found) for found in gc.get_objects() if isinstance(found, (dict, list))]
    return 'expec' + 'ted-value' in ''.join(seen) + repr(sys.argv)
"""
    assert judged(program, "expected = 'expected-value'\nassert f(1) is False").passed


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("x = 1\nassert x == 2", "AssertionError (line 2: assert x == 2)"),
        ("def f():\n    return {}[1]", "KeyError: 1 (line 2: return {}[1])"),
        ("def f(): return 2", "AssertionError: not 3 (line 2: assert y == 3, 'not 3')"),
        ("def f(:", "SyntaxError: invalid syntax (program.py, line 1)"),
        ("import os; os.abort()", "killed by SIGABRT"),
        ("while True: pass", "CPU time used up"),
        ("raise SystemExit", "SystemExit (line 1: raise SystemExit)"),
        ("class E(Exception):\n  def __str__(self): 1 / 0\nraise E", "E (line 3: raise E)"),
        ("input()", "EOFError: EOF when reading a line (line 1: input())"),
    ],
)
def test_reasons_say_what_went_wrong(source, reason):
    assert judged(source, "y = f()\nassert y == 3, 'not 3'").reason == reason


def test_programs_that_wait_are_ended_by_the_clock():
    outcome = judged("import time; time.sleep(99)", "f()", limits=WAITING)
    assert outcome.reason == "not done after 2 s"


def test_sets_of_strings_have_one_order():
    source = "def f(): return list({'a', 'b', 'c', 'd', 'e', 'f'})"
    assert len({judged(source, "assert f() == 0, f()").reason for _ in range(3)}) == 1


def test_what_cannot_be_set_up_is_said_and_is_no_verdict():
    """A process that ends before it is confined: the system's failure, not the program's."""
    for command, said in (("/bin/false", "ended as it began"), ("/nowhere", "No such file")):
        broken = Isolation("broken", lambda place, command=command: [command])
        with pytest.raises(OSError, match=said):
            judged("f = 1", "f", isolation=broken)


def test_deep_folders_and_folders_without_rights_are_removed(tmp_path, monkeypatch):
    """Where a program's files lie in a folder of the machine, as under macOS."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    os.chmod(tmp_path, 0o755)
    program = """
import os
def f(x):
    os.mkdir('closed'); os.mkdir('closed/inner'); os.chmod('closed', 0)
    for i in range(x): os.mkdir('d'); os.chdir('d')
    return x
"""
    room = (os.pathconf(tmp_path, "PC_PATH_MAX") - len(str(tmp_path))) // 2
    passing = min(1500, room - 50)  # `/d` for each level below `/truing-program-…`
    for depth in (passing, 10**9):
        outcome = judged(program, f"assert f({depth}) == {depth}", isolation=unconfined())
        assert outcome.passed == (depth == passing), outcome.reason
        assert ("4096 files" in outcome.reason) == (depth != passing)
        assert not list(tmp_path.iterdir())


def test_folders_beyond_the_longest_path_are_not_hidden_from_a_look(tmp_path, monkeypatch):
    """At each look they count as too many; a program could spend all its time on making them."""
    monkeypatch.chdir(tmp_path)
    for level in range(os.pathconf(tmp_path, "PC_PATH_MAX") // 100 + 2):
        os.mkdir("d" * 99)
        os.chdir("d" * 99)
        if level == 10:
            assert _disk(str(tmp_path))[1] == 11
    assert _disk(str(tmp_path))[1] > FILES
