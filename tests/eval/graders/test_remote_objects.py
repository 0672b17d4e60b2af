# ruff: noqa: E501 (programs and tests of one line)
"""Honest programs whose values cannot be copied: each verdict is that of one plain process."""

import contextlib
import io
import sys
import types

import pytest

from eval.graders.isolation import RunCode
from eval.graders.program_side import ACTIONS
from eval.graders.remote_objects import METHODS
from eval.graders.sandbox import Submission, run_program
from eval.graders.sandbox_probe import find_isolation
from eval.graders.value_copies import SPECIAL

CONFINED = find_isolation(RunCode.CONFINED)
START = "class Vec:\n    "
# A class with nearly all special methods, in a task whose start begins it.
VECTOR = """
import math
class Vec:
    "a vector"
    def __init__(self, *xs): self.xs = list(xs)
    def __add__(self, o):
        if isinstance(o, Vec): return Vec(*(a + b for a, b in zip(self.xs, o.xs)))
        return Vec(*(a + o for a in self.xs))
    __radd__ = __add__
    def __sub__(self, o): return Vec(*(a - b for a, b in zip(self.xs, o.xs)))
    def __mul__(self, k): return Vec(*(a * k for a in self.xs))
    __rmul__ = __mul__
    def __truediv__(self, k): return Vec(*(a / k for a in self.xs))
    def __matmul__(self, o): return sum(a * b for a, b in zip(self.xs, o.xs))
    def __divmod__(self, k):
        return (Vec(*(a // k for a in self.xs)), Vec(*(a % k for a in self.xs)))
    def __pow__(self, k): return Vec(*(a ** k for a in self.xs))
    def __neg__(self): return Vec(*(-a for a in self.xs))
    def __pos__(self): return self
    def __invert__(self): return Vec(*reversed(self.xs))
    def __abs__(self): return math.hypot(*self.xs)
    def __round__(self, n=0): return Vec(*(round(a, n) for a in self.xs))
    def __trunc__(self): return int(self.xs[0])
    def __floor__(self): return math.floor(self.xs[0])
    def __ceil__(self): return math.ceil(self.xs[0])
    def __int__(self): return int(self.xs[0])
    def __float__(self): return float(self.xs[0])
    def __complex__(self): return complex(*self.xs[:2])
    def __index__(self): return int(self.xs[0])
    def __bytes__(self): return bytes(self.xs)
    def __len__(self): return len(self.xs)
    def __iter__(self): return iter(self.xs)
    def __reversed__(self): return iter(self.xs[::-1])
    def __contains__(self, x): return x in self.xs
    def __getitem__(self, i): return Vec(*self.xs[i]) if isinstance(i, slice) else self.xs[i]
    def __setitem__(self, i, v): self.xs[i] = v
    def __delitem__(self, i): del self.xs[i]
    def __bool__(self): return any(self.xs)
    def __eq__(self, o): return self.xs == (o.xs if isinstance(o, Vec) else o)
    def __lt__(self, o): return abs(self) < (abs(o) if isinstance(o, Vec) else o)
    def __hash__(self): return hash(tuple(self.xs))
    def __repr__(self): return f'Vec{tuple(self.xs)}'
    def __str__(self): return '<' + ','.join(map(str, self.xs)) + '>'
    def __format__(self, s): return ' '.join(format(x, s) for x in self.xs)
    def __iadd__(self, o):
        self.xs = (self + o).xs
        return self
    def __call__(self, x): return [a * x for a in self.xs]
    def __enter__(self): self.xs.append(0); return self
    def __exit__(self, k, e, t): self.xs.pop(); return k is KeyError
    def __getattr__(self, n):
        if n == 'x': return self.xs[0]
        raise AttributeError(n)
    def __dir__(self): return ['x', 'xs']
    def __fspath__(self): return '/'.join(map(str, self.xs))
    def __copy__(self): return Vec(*self.xs)
    def norm(self): return abs(self)
    @property
    def size(self): return len(self.xs)
    @classmethod
    def zero(cls, n): return cls(*[0] * n)
    @staticmethod
    def dot(a, b): return a @ b
"""

# What tests do with it.
ON_VECTORS = [
    "assert -Vec(1, 2) == Vec(-1, -2)",
    "assert abs(Vec(3, 4)) == 5",
    "assert +Vec(1) == Vec(1)",
    "assert ~Vec(1, 2) == Vec(2, 1)",
    "assert round(Vec(1.26), 1) == Vec(1.3)",
    """
import math
assert (math.trunc(Vec(1.5)), math.floor(Vec(1.5)), math.ceil(Vec(1.5))) == (1, 1, 2)
""",
    "assert int(Vec(3)) == 3 and float(Vec(3)) == 3.0 and complex(Vec(1, 2)) == 1 + 2j and [5, 6][Vec(1)] == 6 and bytes(Vec(1, 2)) == b'\\x01\\x02'",
    "assert len(Vec(1, 2)) == 2 and list(Vec(1, 2)) == [1, 2] and list(reversed(Vec(1, 2))) == [2, 1]",
    "assert sum(Vec(1, 2)) == 3 and max(Vec(1, 2)) == 2 and sorted(Vec(2, 1)) == [1, 2] and [*Vec(1)] == [1] and tuple(Vec(1)) == (1,)",
    """
a, b = Vec(1, 2)
assert (a, b) == (1, 2)
""",
    "assert 1 in Vec(1) and 2 not in Vec(1)",
    """
v = Vec(1, 2)
v[0] = 5
assert v[0] == 5
del v[0]
assert v == Vec(2)
""",
    "assert Vec(1, 2, 3)[1:] == Vec(2, 3)",
    "assert not Vec(0) and Vec(1) and bool(Vec(1)) is True",
    "assert Vec(1) == [1] and Vec(1) != [2] and [1] == Vec(1)",
    "assert Vec(1) < Vec(2) and Vec(2) > Vec(1) and Vec(1) < 5",
    "assert {Vec(1): 'a'}[Vec(1)] == 'a' and len({Vec(1), Vec(1), Vec(2)}) == 2",
    "assert repr(Vec(1)) == 'Vec(1,)' and str(Vec(1)) == '<1>' and f'{Vec(1.5):.2f}' == '1.50' and '%s' % Vec(1) == '<1>'",
    "assert Vec(1) + 2 == Vec(3) and 2 + Vec(1) == Vec(3) and Vec(1) * 2 == Vec(2) and 2 * Vec(1) == Vec(2) and Vec(1, 2) @ Vec(3, 4) == 11",
    "assert divmod(Vec(7), 3) == (Vec(2), Vec(1)) and Vec(2) ** 3 == Vec(8) and Vec(3) / 2 == Vec(1.5)",
    """
v = w = Vec(1)
v += Vec(2)
assert v is w and v == Vec(3)
w = Vec(1)
w += 1
assert w == Vec(2)
""",
    "assert sum([Vec(1), Vec(2)], Vec(0)) == Vec(3) and sum([Vec(1), Vec(2)]) == Vec(3)",
    "assert Vec(1, 2)(3) == [3, 6] and callable(Vec(1)) and callable(Vec)",
    """
with Vec(1) as v:
    assert len(v) == 2
assert len(v) == 1
""",
    """
v = Vec(1)
with v:
    raise KeyError('x')
assert len(v) == 1
""",
    """
try:
    with Vec(1): raise ValueError('x')
except ValueError as e: assert str(e) == 'x'
else: assert 0
""",
    """
v = Vec(4)
assert v.x == 4 and hasattr(v, 'x') and not hasattr(v, 'y') and getattr(v, 'y', 3) == 3
v.y = 3
assert v.y == 3
del v.y
assert not hasattr(v, 'y')
""",
    "assert isinstance(Vec(1), Vec) and not isinstance(3, Vec) and not isinstance(Vec(1), int) and isinstance(Vec, type) and issubclass(Vec, Vec)",
    """
import collections.abc as c
assert isinstance(Vec(1), c.Iterable) and isinstance(Vec(1), c.Sized) and not isinstance(Vec(1), c.Iterator) and isinstance(Vec(1), c.Hashable)
""",
    "assert type(Vec(1)) is Vec and type(Vec(1)) == Vec and type(3) is int and type(Vec(1)).__name__ == 'Vec' and Vec.__name__ == 'Vec' and isinstance(int, type)",
    "assert Vec.zero(2) == Vec(0, 0) and Vec.dot(Vec(1), Vec(2)) == 2 and Vec(1, 2).size == 2 and Vec(3, 4).norm() == 5",
    """
import copy
v = Vec(1)
w = copy.copy(v)
assert w == v and w is not v
x = copy.deepcopy(v)
x[0] = 9
assert v == Vec(1) and x == Vec(9)
""",
    """
import os
assert os.fspath(Vec(1, 2)) == '1/2' and dir(Vec(1)) == ['x', 'xs'] and vars(Vec(1)) == {'xs': [1]} and Vec.__doc__ == 'a vector'
""",
    "assert Vec(1).__class__.__name__ == 'Vec' and Vec(1).__eq__(Vec(1)) and Vec(1).__len__() == 1 and Vec.__init__ is not None",
    "assert [v.x for v in sorted([Vec(3), Vec(1)])] == [1, 3] and max([Vec(1), Vec(3)], key=abs) == Vec(3)",
    "assert Vec(1) in [Vec(1)] and [Vec(1), Vec(2)].index(Vec(2)) == 1 and [Vec(1)].count(Vec(1)) == 1 and [Vec(1)] == [Vec(1)] and (Vec(1), 2) == (Vec(1), 2)",
    """
x = Vec(1)
assert x is x and x == x and Vec(1) is not x
""",
    """
try: Vec(1) + None
except TypeError: pass
else: assert 0
""",
    """
try: Vec(1)[5]
except IndexError: pass
else: assert 0
""",
    """
try: Vec(1) % 2
except TypeError: pass
else: assert 0
""",
    """
try: Vec(1).nope
except AttributeError as e: assert 'nope' in str(e)
else: assert 0
""",
    """
a, *rest = Vec(1, 2, 3)
assert rest == [2, 3]
""",
    "assert dict(zip('ab', Vec(1, 2))) == {'a': 1, 'b': 2} and list(map(str, Vec(1))) == ['1'] and list(enumerate(Vec(7))) == [(0, 7)]",
    "assert any(Vec(0, 1)) and not all(Vec(0, 1)) and min(Vec(3, 2)) == 2",
    "assert 3 == Vec(1, 3)[-1]",
]

# Programs and tests of tasks without a start.
OTHERS = {
    "async": (
        r"""
import asyncio
async def f(x):
    await asyncio.sleep(0.01)
    return x + 1
""",
        r"""
import asyncio
assert asyncio.run(f(1)) == 2
async def main():
    assert await f(2) == 3
    assert await asyncio.gather(f(1), f(2)) == [2, 3]
    assert await asyncio.wait_for(f(1), 5) == 2
    t = asyncio.create_task(f(5))
    assert await t == 6
asyncio.run(main())
assert asyncio.iscoroutinefunction(f)
""",
    ),
    "async error": (
        "async def f(x): raise ValueError('bad')",
        r"""
import asyncio
try: asyncio.run(f(1))
except ValueError as e: assert str(e) == 'bad'
else: assert 0
""",
    ),
    "async gen": (
        r"""
async def f(n):
    for i in range(n): yield i
""",
        r"""
import asyncio
async def main(): return [x async for x in f(3)]
assert asyncio.run(main()) == [0, 1, 2]
""",
    ),
    "async with": (
        r"""
class f:
    async def __aenter__(self): return 5
    async def __aexit__(self, *a): return False
""",
        r"""
import asyncio
async def main():
    async with f() as x: return x
assert asyncio.run(main()) == 5
""",
    ),
    "new loop": (
        "async def f(x): return x",
        r"""
import asyncio
loop = asyncio.new_event_loop()
assert loop.run_until_complete(f(3)) == 3
loop.close()
""",
    ),
    "await obj": (
        r"""
class f:
    def __init__(s, x): s.x = x
    def __await__(s):
        yield
        return s.x
""",
        r"""
import asyncio
async def m(): return await f(4)
assert asyncio.run(m()) == 4
""",
    ),
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
    except kind as e: assert (str(e), e.n, e.args, e.code, type(e) is Own, isinstance(e, Base)) == ('own no', 3, ('no',), 7, True, True), e
    else: assert 0
assert issubclass(Own, Base) and not issubclass(Base, Own) and Own.__name__ == 'Own' and Own.code == 7
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
assert unittest.TextTestRunner().run(unittest.defaultTestLoader.loadTestsFromTestCase(T)).wasSuccessful()
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
except OSError as e: assert e.errno == 2 and e.filename == '/nope' and isinstance(e, FileNotFoundError)
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
    "types": (
        "def f(xs): return [type(x) for x in xs]",
        "assert f([1, 'a', None, [], 1.0]) == [int, str, type(None), list, float]",
    ),
    "type arg": (
        "def f(xs, t): return [x for x in xs if isinstance(x, t)]",
        "assert f([1, 'a', 2], int) == [1, 2] and f([1, 'a'], (int, str)) == [1, 'a']",
    ),
    "dates": (
        r"""
import datetime as d
def f(x): return x + d.timedelta(days=1)
""",
        r"""
import datetime
assert f(datetime.date(2020, 1, 31)) == datetime.date(2020, 2, 1)
assert f(datetime.datetime(2020, 1, 31, 5)) == datetime.datetime(2020, 2, 1, 5)
""",
    ),
    "defaultdict": (
        r"""
from collections import defaultdict
def f(): return defaultdict(int, a=1)
""",
        r"""
from collections import defaultdict
d = f()
assert d == defaultdict(int, {'a': 1}) == d and isinstance(d, dict) and d['zz'] == 0 and len(d) == 2 and 'a' in d and dict(d) == {'a': 1, 'zz': 0} and {**d} == dict(d) and sorted(d.items()) == [('a', 1), ('zz', 0)]
""",
    ),
    "enum": (
        r"""
import enum
class Color(enum.Enum):
    RED = 1
    BLUE = 2
def f(x): return Color(x)
""",
        "assert f(1) is Color.RED and f(1) == Color.RED != Color.BLUE and f(2).name == 'BLUE' and f(2).value == 2 and list(Color) == [Color.RED, Color.BLUE] and Color['RED'] is f(1) and len(Color) == 2 and f(1) in Color and {f(1): 3}[Color.RED] == 3",
    ),
    "int enum": (
        r"""
import enum
class E(enum.IntEnum): A = 7
def f(): return E.A
""",
        r"""
x = f()
assert {7: 'a'}[x] == 'a' and x in (7, 8) and isinstance(x, int) and x == 7 and int(x) == 7 and list(range(x))[-1] == 6 and max(x, 3) == 7 and '%d' % x == '7'
""",
    ),
    "namedtuple": (
        r"""
from collections import namedtuple
P = namedtuple('P', 'x y')
def f(): return [P(1, 2), P(3, 4)]
""",
        r"""
assert f() == [(1, 2), (3, 4)] and f()[0].x == 1 and f()[0]._asdict() == {'x': 1, 'y': 2} and isinstance(f()[0], tuple) and f()[0][1] == 2 and sorted(f()) == [(1, 2), (3, 4)] and sum(p.x for p in f()) == 4 and {p: 1 for p in f()}[(1, 2)] == 1
x, y = f()[0]
assert P(1, 2) == f()[0]
""",
    ),
    "dataclass": (
        r"""
import dataclasses
@dataclasses.dataclass(order=True, frozen=True)
class f:
    x: int
    y: list = dataclasses.field(default_factory=list)
""",
        r"""
import dataclasses
assert f(1) == f(1) != f(2) and f(1) < f(2) and repr(f(1)).endswith('f(x=1, y=[])') and f(3).x == 3
try: f(1).x = 2
except dataclasses.FrozenInstanceError: pass
else: assert 0
""",
    ),
    "generator protocol": (
        r"""
def f():
    got = yield 1
    while True:
        try: got = yield got
        except ValueError: got = yield 'caught'
""",
        r"""
g = f()
assert next(g) == 1 and g.send(5) == 5 and g.throw(ValueError) == 'caught'
g.close()
assert iter(g) is g and next(g, None) is None
""",
    ),
    "generator return": (
        r"""
def f():
    yield 1
    return 7
""",
        r"""
def g():
    x = yield from f()
    yield x
assert list(g()) == [1, 7]
it = f()
next(it)
try: next(it)
except StopIteration as e: assert e.value == 7
""",
    ),
    "is generator": (
        "def f(n): yield n",
        r"""
import types, inspect, collections.abc
assert isinstance(f(1), types.GeneratorType) and inspect.isgenerator(f(1)) and isinstance(f(1), collections.abc.Iterator) and not isinstance(f(1), list) and hasattr(f(1), '__next__') and not hasattr(f(1), '__len__')
""",
    ),
    "infinite": (
        r"""
import itertools
def f(): return itertools.count(5)
""",
        r"""
import itertools
assert list(itertools.islice(f(), 3)) == [5, 6, 7] and list(zip(f(), 'ab')) == [(5, 'a'), (6, 'b')]
""",
    ),
    "signature": (
        r"""
def f(a, b=2, *c, d, **e) -> int:
    'doc'
    return a
""",
        r"""
import inspect
assert list(inspect.signature(f).parameters) == ['a', 'b', 'c', 'd', 'e'] and f.__name__ == 'f' and f.__doc__ == 'doc' and f(1, d=1) == 1 and f.__defaults__ == (2,)
""",
    ),
    "abstract": (
        r"""
import abc
class Shape(abc.ABC):
    @abc.abstractmethod
    def area(self): ...
class Sq(Shape):
    def __init__(s, a): s.a = a
    def area(s): return s.a ** 2
def f(x): return Sq(x)
""",
        r"""
assert isinstance(f(2), Shape) and f(2).area() == 4 and issubclass(Sq, Shape)
try: Shape()
except TypeError: pass
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
    "getitem only": (
        r"""
class f:
    def __getitem__(s, i):
        if i > 2: raise IndexError
        return i
""",
        "assert list(f()) == [0, 1, 2] and 2 in f() and 5 not in f()",
    ),
    "list subclass": (
        r"""
class L(list):
    def total(s): return sum(s)
def f(x): return L(x)
""",
        r"""
l = f([1, 2])
assert l == [1, 2] and l.total() == 3 and l + [3] == [1, 2, 3] and len(l) == 2 and 1 in l and isinstance(l, list) and l[0] == 1 and l[::-1] == [2, 1] and sorted(l, reverse=True) == [2, 1]
l.append(3)
assert l == [1, 2, 3]
l += [4]
assert l == [1, 2, 3, 4]
""",
    ),
    "str subclass": (
        r"""
class S(str): pass
def f(x): return S(x)
""",
        r"""
s = f('abc')
assert s == 'abc' and 'ab' in s and s.upper() == 'ABC' and s + 'd' == 'abcd' and len(s) == 3 and s[0] == 'a' and isinstance(s, str) and {'abc': 1}[s] == 1 and s < 'b' and s.startswith('a')
""",
    ),
    "iterator class": (
        r"""
class f:
    def __init__(s, n): s.i, s.n = 0, n
    def __iter__(s): return s
    def __next__(s):
        if s.i >= s.n: raise StopIteration
        s.i += 1
        return s.i
""",
        r"""
assert list(f(3)) == [1, 2, 3] and sum(f(3)) == 6
it = f(1)
assert next(it) == 1 and next(it, 'd') == 'd'
for i, x in enumerate(f(2)): assert x == i + 1
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
    "default eq": (
        "class f: pass",
        r"""
a, b = f(), f()
assert a != b and a == a and len({a, b, a}) == 2 and a in [b, a] and a is not None and a != 3 and not a == 'x'
""",
    ),
    "mapping": (
        r"""
from collections.abc import MutableMapping
class f(MutableMapping):
    def __init__(s): s.d = {}
    def __getitem__(s, k): return s.d[k]
    def __setitem__(s, k, v): s.d[k] = v
    def __delitem__(s, k): del s.d[k]
    def __iter__(s): return iter(s.d)
    def __len__(s): return len(s.d)
""",
        r"""
m = f()
m['a'] = 1
assert m['a'] == 1 and dict(m) == {'a': 1} and 'a' in m and m.get('z') is None and list(m.items()) == [('a', 1)] and {**m} == {'a': 1} and len(m) == 1
del m['a']
assert not m and m.pop('q', 3) == 3
from collections.abc import Mapping
assert isinstance(m, Mapping)
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
    "type entry": ("f = int", "assert f('3') == 3"),
    "partial": (
        r"""
import functools
f = functools.partial(pow, 2)
""",
        "assert f(3) == 8",
    ),
    "linked list": (
        r"""
class Node:
    def __init__(s, v, n=None): s.v, s.n = v, n
def f(x):
    h = None
    for v in reversed(x): h = Node(v, h)
    return h
""",
        r"""
h = f([1, 2])
assert h.v == 1 and h.n.v == 2 and h.n.n is None
h.n.v = 5
assert h.n.v == 5
k = Node(3, h)
assert k.n is h and k.n.n.v == 5
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
    "weak": (
        "class f: pass",
        r"""
import weakref
x = f()
assert weakref.ref(x)() is x
""",
    ),
    "generic class": (
        r"""
import typing
T = typing.TypeVar('T')
class f(typing.Generic[T]):
    def __init__(s, x): s.x = x
""",
        "assert f[int](3).x == 3 and f(2).x == 2",
    ),
    "set ops": (
        "def f(x): return x.keys()",
        "assert f({'a': 1}) == {'a'} and list(f({'a': 1})) == ['a'] and set(f({'a': 1})) == {'a'} and f({'a': 1}) | {'b'} == {'a', 'b'}",
    ),
    "memoryview": (
        "def f(): return memoryview(b'ab')",
        "assert bytes(f()) == b'ab' and f()[0] == 97",
    ),
    "ellipsis": ("def f(): return ...", "assert f() is ..."),
    "notimplemented": ("def f(): return NotImplemented", "assert f() is NotImplemented"),
    "slice arg": ("def f(x, s): return x[s]", "assert f([1, 2, 3], slice(1, None)) == [2, 3]"),
}


def passes_in_one_process(program, tests, monkeypatch):
    module = types.ModuleType("program")
    monkeypatch.setitem(sys.modules, "program", module)
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        exec(compile(program, "program.py", "exec", dont_inherit=True), vars(module))
        exec(compile(tests, "tests.py", "exec", dont_inherit=True), vars(module))


@pytest.mark.parametrize("tests", ON_VECTORS)
def test_operations_on_objects_of_the_answers_class_give_what_they_give_there(tests, monkeypatch):
    passes_in_one_process(VECTOR, tests, monkeypatch)
    submission = Submission(VECTOR, tests, start=START, entry="Vec")
    outcome = run_program(submission, isolation=CONFINED)
    assert (outcome.passed, outcome.reason, outcome.together) == (True, "passed", False)


@pytest.mark.parametrize("name", OTHERS)
def test_objects_and_errors_of_the_answer_are_what_tests_expect(name, monkeypatch):
    program, tests = OTHERS[name]
    passes_in_one_process(program, tests, monkeypatch)
    outcome = run_program(Submission(program, tests, entry="f"), isolation=CONFINED)
    assert (outcome.passed, outcome.reason, outcome.together) == (True, "passed", False)


@pytest.mark.parametrize(
    ("program", "tests", "need"),
    [
        (
            "class P:\n    def __sub__(s, o): return 2\ndef f(x): return P()",
            "f(5) - 3",
            "P.__sub__ on a",
        ),
        (
            "class P:\n    def __eq__(s, o): return True\ndef f(x): return P()",
            "f(5) == 3",
            "P.__eq__ on a",
        ),
        (
            "class P:\n    def __contains__(s, o): return True\ndef f(x): return P()",
            "3 in f(5)",
            "P.__cont",
        ),
        ("class P(str): pass\ndef f(x): return [P()]", "''.join(f(5)) == ''", "(P) as copies"),
    ],
)
def test_what_tests_need_and_cannot_have_is_said(program, tests, need):
    outcome = run_program(Submission(program, f"assert {tests}", entry="f"), isolation=CONFINED)
    assert not outcome.passed and not outcome.together
    assert "; the tests need " in outcome.reason and need in outcome.reason


FORGERIES = {
    "a class of errors that is AssertionError": (
        "Own = AssertionError\ndef f(x): return 1",
        "try:\n    f(1)\n    assert 0\nexcept Own: pass",
    ),
    "a class of errors that is BaseException": (
        "Own = BaseException\ndef f(x): return 1",
        "try:\n    f(1)\n    assert 0\nexcept Own: pass",
    ),
    "a class of errors that is found later": (
        "class f:\n    Own = Exception",
        "try:\n    f()\n    assert 0\nexcept f.Own: pass",
    ),
    "a class of errors that extends AssertionError": (
        "class Own(AssertionError): pass\ndef f(x): return 1",
        "try:\n    f(1)\n    assert 0\nexcept Own: pass",
    ),
    "a context that ends failed assertions": (
        "class f:\n    def __enter__(s): return 1\n    def __exit__(s, *e): return True",
        "with f() as x: assert x == 3",
    ),
    "a context that ends other errors of wrong values": (
        "class f:\n    def __enter__(s): return {}\n    def __exit__(s, *e): return True",
        "with f() as x: assert x['a'] == 3",
    ),
    "a result that says it is of the right class": (
        "class P:\n    __class__ = int\n    def __eq__(s, o): return True\ndef f(x): return P()",
        "assert isinstance(f(1), object) and f(1) == 3",
    ),
    "an end that the tests catch": (
        "import os\ndef f(x): os._exit(0)",
        "try: f(1)\nexcept BaseException: pass",
    ),
    "a class of the task's that has its operators": (
        "class Solution:\n    def f(s, x): return s\n    def __eq__(s, o): return True\n"
        "    __sub__ = __lt__ = __eq__",
        "assert Solution().f(1) == 3",
    ),
    "a coroutine whose result is equal to all": (
        "class P:\n    def __eq__(s, o): return True\nasync def f(x): return P()",
        "import asyncio\nassert asyncio.run(f(1)) == 3",
    ),
    "views that claim to hold all": (
        "class K(dict):\n    def keys(s): return {3: 1}.keys()\n    def __len__(s): return 1\n"
        "def f(x): return K()",
        "assert f(1) == {3: 1}",
    ),
}


@pytest.mark.parametrize("name", FORGERIES)
def test_no_object_decides_over_a_value_that_the_tests_expect(name):
    program, tests = FORGERIES[name]
    start = "class Solution:\n    " if "Solution" in program else ""
    entry = "Solution" if start else "f"
    submission = Submission(program, tests, start=start, entry=entry)
    outcome = run_program(submission, isolation=CONFINED)
    assert not outcome.passed and not outcome.together, outcome


def test_each_special_method_has_its_counterpart():
    assert set(METHODS) == SPECIAL - {"__idivmod__"} and "special" in ACTIONS
