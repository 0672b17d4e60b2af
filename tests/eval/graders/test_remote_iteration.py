"""Generators, iterators and coroutines of an isolated answer run as in one process."""

import pytest
from one_process import assert_passes_as_in_one_process

PROGRAMS = {
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
assert (
    isinstance(f(1), types.GeneratorType) and inspect.isgenerator(f(1))
    and isinstance(f(1), collections.abc.Iterator) and not isinstance(f(1), list)
    and hasattr(f(1), '__next__') and not hasattr(f(1), '__len__')
)
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
    "getitem only": (
        r"""
class f:
    def __getitem__(s, i):
        if i > 2: raise IndexError
        return i
""",
        "assert list(f()) == [0, 1, 2] and 2 in f() and 5 not in f()",
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
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_iterators_and_coroutines_of_the_answer_are_what_tests_expect(name, monkeypatch):
    program, tests = PROGRAMS[name]
    assert_passes_as_in_one_process(program, tests, monkeypatch)
