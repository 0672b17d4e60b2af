"""Types of an isolated answer (enums, subclasses, data classes, ...) behave as in one process."""

import pytest
from one_process import assert_passes_as_in_one_process

PROGRAMS = {
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
assert (
    d == defaultdict(int, {'a': 1}) == d and isinstance(d, dict) and d['zz'] == 0
    and len(d) == 2 and 'a' in d and dict(d) == {'a': 1, 'zz': 0} and {**d} == dict(d)
    and sorted(d.items()) == [('a', 1), ('zz', 0)]
)
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
        r"""
assert (
    f(1) is Color.RED and f(1) == Color.RED != Color.BLUE and f(2).name == 'BLUE'
    and f(2).value == 2 and list(Color) == [Color.RED, Color.BLUE] and Color['RED'] is f(1)
    and len(Color) == 2 and f(1) in Color and {f(1): 3}[Color.RED] == 3
)
""",
    ),
    "int enum": (
        r"""
import enum
class E(enum.IntEnum): A = 7
def f(): return E.A
""",
        r"""
x = f()
assert (
    {7: 'a'}[x] == 'a' and x in (7, 8) and isinstance(x, int) and x == 7 and int(x) == 7
    and list(range(x))[-1] == 6 and max(x, 3) == 7 and '%d' % x == '7'
)
""",
    ),
    "namedtuple": (
        r"""
from collections import namedtuple
P = namedtuple('P', 'x y')
def f(): return [P(1, 2), P(3, 4)]
""",
        r"""
assert (
    f() == [(1, 2), (3, 4)] and f()[0].x == 1 and f()[0]._asdict() == {'x': 1, 'y': 2}
    and isinstance(f()[0], tuple) and f()[0][1] == 2 and sorted(f()) == [(1, 2), (3, 4)]
    and sum(p.x for p in f()) == 4 and {p: 1 for p in f()}[(1, 2)] == 1
)
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
    "signature": (
        r"""
def f(a, b=2, *c, d, **e) -> int:
    'doc'
    return a
""",
        r"""
import inspect
assert (
    list(inspect.signature(f).parameters) == ['a', 'b', 'c', 'd', 'e'] and f.__name__ == 'f'
    and f.__doc__ == 'doc' and f(1, d=1) == 1 and f.__defaults__ == (2,)
)
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
    "list subclass": (
        r"""
class L(list):
    def total(s): return sum(s)
def f(x): return L(x)
""",
        r"""
l = f([1, 2])
assert (
    l == [1, 2] and l.total() == 3 and l + [3] == [1, 2, 3] and len(l) == 2 and 1 in l
    and isinstance(l, list) and l[0] == 1 and l[::-1] == [2, 1]
    and sorted(l, reverse=True) == [2, 1]
)
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
assert (
    s == 'abc' and 'ab' in s and s.upper() == 'ABC' and s + 'd' == 'abcd' and len(s) == 3
    and s[0] == 'a' and isinstance(s, str) and {'abc': 1}[s] == 1 and s < 'b'
    and s.startswith('a')
)
""",
    ),
    "default eq": (
        "class f: pass",
        r"""
a, b = f(), f()
assert (
    a != b and a == a and len({a, b, a}) == 2 and a in [b, a] and a is not None and a != 3
    and not a == 'x'
)
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
assert (
    m['a'] == 1 and dict(m) == {'a': 1} and 'a' in m and m.get('z') is None
    and list(m.items()) == [('a', 1)] and {**m} == {'a': 1} and len(m) == 1
)
del m['a']
assert not m and m.pop('q', 3) == 3
from collections.abc import Mapping
assert isinstance(m, Mapping)
""",
    ),
    "type entry": (
        "f = int",
        "assert f('3') == 3",
    ),
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
        r"""
assert (
    f({'a': 1}) == {'a'} and list(f({'a': 1})) == ['a'] and set(f({'a': 1})) == {'a'}
    and f({'a': 1}) | {'b'} == {'a', 'b'}
)
""",
    ),
    "memoryview": (
        "def f(): return memoryview(b'ab')",
        "assert bytes(f()) == b'ab' and f()[0] == 97",
    ),
    "ellipsis": (
        "def f(): return ...",
        "assert f() is ...",
    ),
    "notimplemented": (
        "def f(): return NotImplemented",
        "assert f() is NotImplemented",
    ),
    "slice arg": (
        "def f(x, s): return x[s]",
        "assert f([1, 2, 3], slice(1, None)) == [2, 3]",
    ),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_types_of_the_answer_are_what_tests_expect(name, monkeypatch):
    program, tests = PROGRAMS[name]
    assert_passes_as_in_one_process(program, tests, monkeypatch)
