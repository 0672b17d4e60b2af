"""Errors and contexts of an isolated answer: the tests see what they see in one process."""

import pytest
from one_process import assert_passes_as_in_one_process

PROGRAMS = {
    "own error": (
        r"""
class Base(Exception):
    pass
class Own(Base, ValueError):
    code = 7
    def __init__(s, m, n):
        super().__init__(m); s.n = n
    def __str__(s): return 'own ' + s.args[0]
def f(x):
    raise Own('no', x)
""",
        r"""
for kind in (Own, Base, ValueError, Exception):
    try: f(3)
    except kind as e:
        found = (str(e), e.n, e.args, e.code, type(e) is Own, isinstance(e, Base))
        assert found == ('own no', 3, ('no',), 7, True, True), e
    else: assert 0
assert (
    issubclass(Own, Base) and not issubclass(Base, Own) and Own.__name__ == 'Own'
    and Own.code == 7
)
""",
    ),
    "raises helper": (
        r"""
class Own(Exception): pass
def f(x):
    if x < 0: raise Own('neg')
    return x
""",
        r"""
import unittest
class T(unittest.TestCase):
    def test(self):
        with self.assertRaises(Own): f(-1)
        self.assertRaises(Own, f, -1)
        with self.assertRaisesRegex(Own, 'neg'): f(-1)
        self.assertEqual(f(2), 2)
suite = unittest.defaultTestLoader.loadTestsFromTestCase(T)
assert unittest.TextTestRunner().run(suite).wasSuccessful()
""",
    ),
    "raise own": (
        r"""
class Own(Exception): pass
def f(x): return x
""",
        r"""
try: raise Own('x')
except Own as e: assert str(e) == 'x'
assert f(1) == 1
try: raise Own
except Own: pass
""",
    ),
    "error message": (
        "def f(x): raise ValueError('bad', x)",
        r"""
try: f(1)
except ValueError as e: assert e.args == ('bad', 1)
else: assert 0
""",
    ),
    "exact message": (
        "def f(x): raise ValueError('bad')",
        r"""
try: f(1)
except ValueError as e: assert str(e) == 'bad' and type(e) is ValueError
else: assert 0
""",
    ),
    "key error": (
        "def f(x): return {}[x]",
        r"""
try: f(1)
except LookupError as e: assert e.args[0] == 1 and repr(e) == 'KeyError(1)'
else: assert 0
""",
    ),
    "os error": (
        "def f(x): return open('/nope')",
        r"""
try: f(1)
except OSError as e:
    assert e.errno == 2 and e.filename == '/nope' and isinstance(e, FileNotFoundError)
else: assert 0
""",
    ),
    "exit": (
        r"""
import sys
def f(x): sys.exit(3)
""",
        r"""
try: f(1)
except SystemExit as e: assert e.code == 3
else: assert 0
""",
    ),
    "cause": (
        r"""
def f(x):
    try: 1 / 0
    except ZeroDivisionError as e: raise ValueError('x') from e
""",
        r"""
try: f(1)
except ValueError as e: assert isinstance(e.__cause__, ZeroDivisionError)
else: assert 0
""",
    ),
    "assertion": (
        "def f(x): assert x > 0, 'small'",
        r"""
try: f(-1)
except AssertionError as e: assert str(e) == 'small'
else: raise RuntimeError
""",
    ),
    "library error": (
        r"""
import json
def f(x): return json.loads(x)
""",
        r"""
import json
try: f('{')
except json.JSONDecodeError as e: assert e.pos == 1
else: assert 0
""",
    ),
    "decimal error": (
        r"""
import decimal
def f(x): return decimal.Decimal(x)
""",
        r"""
import decimal
try: f('x')
except decimal.InvalidOperation: pass
else: assert 0
""",
    ),
    "returned error": (
        "def f(x): return ValueError('v')",
        r"""
e = f(1)
assert isinstance(e, ValueError) and str(e) == 'v' and e.args == ('v',)
""",
    ),
    "nested class error": (
        r"""
class f:
    class Empty(Exception): pass
    def pop(s): raise f.Empty('e')
""",
        r"""
try: f().pop()
except f.Empty: pass
else: assert 0
""",
    ),
    "property error": (
        r"""
class f:
    @property
    def x(s): raise ValueError('p')
""",
        r"""
try: f().x
except ValueError as e: assert str(e) == 'p'
else: assert 0
""",
    ),
    "unhashable": (
        r"""
class f:
    def __eq__(s, o): return True
""",
        r"""
try: hash(f())
except TypeError: pass
else: assert 0
try: {f(): 1}
except TypeError: pass
else: assert 0
""",
    ),
    "recursionerror": (
        "def f(x): return f(x)",
        r"""
try: f(1)
except RecursionError: pass
else: assert 0
""",
    ),
    "context": (
        r"""
import contextlib
@contextlib.contextmanager
def f(log):
    log.append(1)
    try: yield 5
    finally: log.append(2)
""",
        r"""
with f([]) as x: assert x == 5
try:
    with f([]): raise KeyError(3)
except KeyError as e: assert e.args == (3,)
else: assert 0
""",
    ),
    "suppress": (
        r"""
import contextlib
def f(*k): return contextlib.suppress(*k)
""",
        r"""
with f(ValueError): raise ValueError
with f(ZeroDivisionError, KeyError): raise KeyError
""",
    ),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_errors_and_contexts_of_the_answer_are_what_tests_expect(name, monkeypatch):
    program, tests = PROGRAMS[name]
    assert_passes_as_in_one_process(program, tests, monkeypatch)
