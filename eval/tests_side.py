"""The tests' end of the connection: runs the tests, with a `Remote` for what the program holds.

The tests are what they were written as: `check(candidate)`, `assert f(x) == y`, a loop. A call goes
to the program's process as copies of its arguments, and the result comes back as a copy, so that
comparisons, sums and functions of the tests are computed here, out of the program's reach.
"""

import builtins
import importlib
import operator
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any, BinaryIO

from eval.program_side import PROGRAM, described
from eval.wire import PLAIN, EndedError, Link, UnsendableError

TESTS = "tests.py"
UNEXPECTED = {"StopIteration", "StopAsyncIteration"}
COMPARISONS = ("lt", "le", "gt", "ge")
ARITHMETIC = (
    *("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "and", "or", "xor"),
)


class Remote:
    """An object of the program that cannot be copied; whatever is done with it happens there."""

    __slots__ = ("_end", "_number")

    def __init__(self, end: "Tests", number: int) -> None:
        object.__setattr__(self, "_end", end)
        object.__setattr__(self, "_number", number)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._end.ask("attribute", self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._end.ask("set attribute", self, name, value)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._end.ask("call", self, list(args), kwargs)

    def __getitem__(self, key: Any) -> Any:
        return self._end.ask("item", self, key)

    def __setitem__(self, key: Any, value: Any) -> None:
        self._end.ask("set item", self, key, value)

    def __iter__(self) -> Iterator[Any]:
        iterator = self._end.ask("iterate", self)
        while found := self._end.ask("next", iterator):
            yield found[0]

    def __next__(self) -> Any:
        if found := self._end.ask("next", self):
            return found[0]
        raise StopIteration

    def __len__(self) -> int:
        return self._end.ask("length", self)

    def __bool__(self) -> bool:
        return self._end.ask("truth", self) is True

    def __str__(self) -> str:
        return self._end.ask("text", self)

    def __repr__(self) -> str:
        return self._end.ask("form", self)

    def __eq__(self, other: object) -> bool:
        """By content where `other` is plain: the program's `__eq__` has no say in that."""
        if isinstance(other, Remote):
            return self._number == other._number or self._with("__eq__", other) is True
        if other is None or type(other) is bool:
            return False
        found = self._with("__eq__", other)
        return found is not NotImplemented and found

    def __hash__(self) -> int:
        return hash(self._number)

    def _with(self, name: str, other: object, *, reflected: bool = False) -> Any:
        """The result of an operator: of two objects of the program there, of their content here."""
        if isinstance(other, Remote):
            return self._end.ask("operator", self, name, other)
        if type(other) not in {*PLAIN.values(), bool, type(None)}:
            raise UnsendableError(f"a result is compared with a {type(other).__name__}")
        value = self._end.ask("value", self)
        if isinstance(value, Remote):
            return NotImplemented
        function = getattr(operator, name)
        return function(other, value) if reflected else function(value, other)


def _operator(name: str, *, reflected: bool = False) -> Callable[[Remote, object], Any]:
    return lambda self, other: self._with(f"__{name}__", other, reflected=reflected)


for _name in (*COMPARISONS, *ARITHMETIC):
    setattr(Remote, f"__{_name}__", _operator(_name))
for _name in ARITHMETIC:
    setattr(Remote, f"__r{_name}__", _operator(_name, reflected=True))


class Tests:
    """Requests to the program, and the names that its tests use."""

    def __init__(self, incoming: BinaryIO, outgoing: BinaryIO) -> None:
        self.remotes: dict[int, Remote] = {}
        self.asked = False
        self.link = Link(*(incoming, outgoing), to_object=self._remote, to_number=_number)
        self.names: dict[str, Any] = {"__name__": "program"}
        self.used: set[str] = set()

    def _remote(self, number: int) -> Remote:
        if not isinstance(number, int):
            raise EndedError("what its process sent is no message")
        return self.remotes.setdefault(number, Remote(self, number))

    def ask(self, action: str, target: Remote | None, *values: Any) -> Any:
        """The program's answer to one of `program_side.ACTIONS`; None is the program itself.

        Raises:
            UnsendableError: a value cannot be copied.
            EndedError: the program's process has ended.
            Exception: the program raised it.
        """
        graph, objects = self.link.encode([target, *values])
        self.link.send({"do": action, "graph": graph})
        reply = self.link.receive()
        self.asked = True
        if "error" in reply:
            raise self._raised(reply)
        (result, *_), _ = self.link.decode(reply["graph"], origins=objects)
        return result

    def _raised(self, reply: Mapping[str, Any]) -> Exception:
        """The program's error, of the nearest class that the tests know.

        `StopIteration` would end a loop of the tests (`all(map(...))`), unless they expect it.
        """
        names = [name for name in reply["error"] if name not in UNEXPECTED - self.used]
        known = (self.names.get(name) or getattr(builtins, name, None) for name in names)
        found = (k for k in known if isinstance(k, type) and issubclass(k, Exception))
        kind = next(found, Exception)
        error = kind.__new__(kind)
        error.args = (reply["told"],)
        error.told = reply["told"]  # type: ignore[attr-defined]
        return error

    def learn_names(self, code: types.CodeType, *, entry: str) -> None:
        """Names that the tests use and that `start` lacks: the program's, or of its imports.

        What the program has imported is imported here, too, so that it is the library's own.
        """
        self.used = _used(code)
        wanted = [n for n in self.used if n not in self.names and not hasattr(builtins, n)]
        places = self.ask("names", None, wanted)
        plain = False
        for name in wanted:
            if name not in places:
                continue
            if name != entry and places[name] is not None:
                self.names[name] = _imported(*places[name])
            else:
                self.names[name] = self.ask("attribute", None, name)
                plain |= not isinstance(self.names[name], Remote)
        self.asked = plain  # a value that the tests compare is as good as a call


def _number(value: Any) -> int:
    if type(value) is not Remote:
        raise UnsendableError(f"a {type(value).__name__} of the tests is passed to the program")
    return value._number


def _imported(module: str, name: str) -> Any:
    if module.split(".")[0] not in sys.stdlib_module_names:
        raise EndedError("what its process sent is no message")
    value = importlib.import_module(module)
    value = getattr(value, name) if name else value
    kinds = types.ModuleType | types.FunctionType | types.BuiltinFunctionType | type
    if not isinstance(value, kinds):
        raise EndedError("what its process sent is no message")
    return value


def _used(code: types.CodeType) -> set[str]:
    inner = (const for const in code.co_consts if isinstance(const, types.CodeType))
    return set(code.co_names).union(*(_used(one) for one in inner))


def run_tests(incoming: BinaryIO, outgoing: BinaryIO, order: Mapping[str, Any]) -> dict[str, Any]:
    """The verdict of the tests on the program at the other end: {"passed": ..., "reason": ...}.

    {"unsendable": why} where they need an object in the program that cannot be copied.
    """
    end = Tests(incoming, outgoing)
    try:
        loaded = end.link.receive()
        if "error" in loaded:
            return _failed(str(loaded.get("told", "")))
        exec(compile(order["start"], PROGRAM, "exec", dont_inherit=True), end.names)
        end.link.classes = {name: end.names[name] for name in order["classes"]}
        end.names.pop(order["entry"], None)
        code = compile(order["tests"], TESTS, "exec", dont_inherit=True)
        end.learn_names(code, entry=order["entry"])
        exec(code, end.names)
    except UnsendableError as error:
        return {"unsendable": str(error)}
    except EndedError as error:
        return {**_failed(str(error)), "ended": True}
    except BaseException as error:
        told = getattr(error, "told", None)
        return _failed(told or described(error, {TESTS: order["tests"]})["told"])
    if not end.asked:
        return _failed("its tests ask nothing of the program")
    return {"passed": True, "reason": "passed"}


def run_together(_: BinaryIO, __: BinaryIO, order: Mapping[str, Any]) -> dict[str, Any]:
    """The verdict of a process that runs the program and its tests: the program could forge it."""
    sources = {PROGRAM: order["program"], TESTS: order["tests"]}
    tell, failed = described, _failed
    module = types.ModuleType("program")
    sys.modules["program"] = module
    try:
        for file, source in sources.items():
            exec(compile(source, file, "exec", dont_inherit=True), vars(module))
    except BaseException as error:
        return failed(tell(error, sources)["told"])
    return {"passed": True, "reason": "passed"}


def _failed(reason: str) -> dict[str, Any]:
    return {"passed": False, "reason": reason or "an error without a name"}
