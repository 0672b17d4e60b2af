"""Objects of an isolated answer whose values cannot be copied to the tests' process."""

import pytest
from one_process import CONFINED, assert_passes_as_in_one_process

from eval.graders.program_server import ACTIONS
from eval.graders.sandbox import Submission, run_program
from eval.graders.sandbox_messages import SPECIAL
from eval.graders.sandbox_proxies import METHODS

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

# Operations of tests on it.
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
    r"""
assert (
    int(Vec(3)) == 3 and float(Vec(3)) == 3.0 and complex(Vec(1, 2)) == 1 + 2j
    and [5, 6][Vec(1)] == 6 and bytes(Vec(1, 2)) == b'\x01\x02'
)
""",
    r"""
assert len(Vec(1, 2)) == 2 and list(Vec(1, 2)) == [1, 2] and list(reversed(Vec(1, 2))) == [2, 1]
""",
    r"""
assert (
    sum(Vec(1, 2)) == 3 and max(Vec(1, 2)) == 2 and sorted(Vec(2, 1)) == [1, 2]
    and [*Vec(1)] == [1] and tuple(Vec(1)) == (1,)
)
""",
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
    r"""
assert (
    repr(Vec(1)) == 'Vec(1,)' and str(Vec(1)) == '<1>' and f'{Vec(1.5):.2f}' == '1.50'
    and '%s' % Vec(1) == '<1>'
)
""",
    r"""
assert (
    Vec(1) + 2 == Vec(3) and 2 + Vec(1) == Vec(3) and Vec(1) * 2 == Vec(2)
    and 2 * Vec(1) == Vec(2) and Vec(1, 2) @ Vec(3, 4) == 11
)
""",
    r"""
assert divmod(Vec(7), 3) == (Vec(2), Vec(1)) and Vec(2) ** 3 == Vec(8) and Vec(3) / 2 == Vec(1.5)
""",
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
    r"""
assert (
    isinstance(Vec(1), Vec) and not isinstance(3, Vec) and not isinstance(Vec(1), int)
    and isinstance(Vec, type) and issubclass(Vec, Vec)
)
""",
    r"""
import collections.abc as c
assert (
    isinstance(Vec(1), c.Iterable) and isinstance(Vec(1), c.Sized)
    and not isinstance(Vec(1), c.Iterator) and isinstance(Vec(1), c.Hashable)
)
""",
    r"""
assert (
    type(Vec(1)) is Vec and type(Vec(1)) == Vec and type(3) is int
    and type(Vec(1)).__name__ == 'Vec' and Vec.__name__ == 'Vec' and isinstance(int, type)
)
""",
    r"""
assert (
    Vec.zero(2) == Vec(0, 0) and Vec.dot(Vec(1), Vec(2)) == 2 and Vec(1, 2).size == 2
    and Vec(3, 4).norm() == 5
)
""",
    """
import copy
v = Vec(1)
w = copy.copy(v)
assert w == v and w is not v
x = copy.deepcopy(v)
x[0] = 9
assert v == Vec(1) and x == Vec(9)
""",
    r"""
import os
assert (
    os.fspath(Vec(1, 2)) == '1/2' and dir(Vec(1)) == ['x', 'xs'] and vars(Vec(1)) == {'xs': [1]}
    and Vec.__doc__ == 'a vector'
)
""",
    r"""
assert (
    Vec(1).__class__.__name__ == 'Vec' and Vec(1).__eq__(Vec(1)) and Vec(1).__len__() == 1
    and Vec.__init__ is not None
)
""",
    r"""
assert (
    [v.x for v in sorted([Vec(3), Vec(1)])] == [1, 3]
    and max([Vec(1), Vec(3)], key=abs) == Vec(3)
)
""",
    r"""
assert (
    Vec(1) in [Vec(1)] and [Vec(1), Vec(2)].index(Vec(2)) == 1 and [Vec(1)].count(Vec(1)) == 1
    and [Vec(1)] == [Vec(1)] and (Vec(1), 2) == (Vec(1), 2)
)
""",
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
    r"""
assert (
    dict(zip('ab', Vec(1, 2))) == {'a': 1, 'b': 2} and list(map(str, Vec(1))) == ['1']
    and list(enumerate(Vec(7))) == [(0, 7)]
)
""",
    "assert any(Vec(0, 1)) and not all(Vec(0, 1)) and min(Vec(3, 2)) == 2",
    "assert 3 == Vec(1, 3)[-1]",
]


@pytest.mark.parametrize("tests", ON_VECTORS)
def test_operations_on_objects_of_the_answers_class_give_what_they_give_there(tests, monkeypatch):
    assert_passes_as_in_one_process(VECTOR, tests, monkeypatch, start=START, entry="Vec")


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
