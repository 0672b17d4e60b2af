"""Run the tests of a task in their own process, with a `Remote` for each object of the program.

The tests run unchanged: `check(candidate)`, `assert f(x) == y`, a loop. A call sends copies of its
arguments to the program's process and returns a copy of the result, so that comparisons, sums and
functions of the tests are computed here, out of the program's reach.
"""

import builtins
import sys
import types
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO

from eval.graders.program_side import PROGRAM, told
from eval.graders.remote_objects import (
    TESTS,
    Remote,
    TypeOf,
    class_of,
    library_class,
    library_value,
)
from eval.graders.value_copies import BROAD, CLASSES, EndedError, Link, UnsendableError

# Errors that would end a loop or the process of the tests, unless these name them.
UNEXPECTED = frozenset(
    {"StopIteration", "StopAsyncIteration", "SystemExit", "KeyboardInterrupt", "GeneratorExit"}
)
# Names in tests that look at more of the program than its values: what it prints, what it imports.
SHARED = frozenset({"redirect_stdout", "redirect_stderr", "stdout", "stderr", "stdin", "patch"})


class Tests:
    """Requests to the program, and the names that its tests use.

    Attributes:
        failure: the error that ends the tests, which they may have caught.
        own_word: the last operation with a value of the tests that an object's own methods alone
            could do, and that was therefore not done.
    """

    def __init__(self, incoming: BinaryIO, outgoing: BinaryIO) -> None:
        self.remotes: dict[int, Any] = {}
        self.numbers: dict[int, tuple[Any, int]] = {}  # of errors and their classes, by id
        self.kinds: dict[str, type[Remote]] = {}
        self.asked = False
        self.failure: BaseException | None = None
        self.own_word = ""
        self.entry: Any = None  # where the task says that it is a class
        self.link = Link(incoming, outgoing, describe=self._describe, build=self._build)
        self.names: dict[str, Any] = {"__name__": "program"}
        self.used: set[str] = set()

    def ask(self, action: str, target: Any, *values: Any) -> Any:
        """The program's answer to one of `program_side.ACTIONS`; None is the program itself.

        Raises:
            UnsendableError: a value cannot be copied.
            EndedError: the program's process has ended.
            Exception: the program raised it.
        """
        try:
            graph, objects = self.link.encode([target, *values])
            self.link.send({"do": action, "graph": graph})
            reply = self.link.receive()
        except (UnsendableError, EndedError) as error:
            self.failure = error
            raise
        self.asked = True
        for number, kind in reply["kinds"].items():
            if number not in self.kinds:
                self.kinds[number] = class_of(*kind)
        failed = "told" in reply
        (result, *_), _ = self.link.decode(reply["graph"], origins=None if failed else objects)
        if failed:
            expected = isinstance(result, (Exception, *self._named()))
            raised: Any = result if expected else Exception()
            raised.told = str(reply["told"])
            raise raised
        if action == "call" and target is self.entry and isinstance(result, Remote):
            object.__setattr__(result, "_trusted", True)
        return result

    def _describe(self, value: Any, place_of: Callable[[Any], Any]) -> tuple[str, Any]:
        if isinstance(value, Remote):
            return "remote", value._number
        if id(value) in self.numbers:
            return "remote", self.numbers[id(value)][1]
        if isinstance(value, Exception) and type(value) in CLASSES.values():
            return "error", [type(value).__name__, [place_of(argument) for argument in value.args]]
        raise UnsendableError(f"a {type(value).__name__} of the tests is passed to the program")

    def _build(self, kind: str, content: Any, value_at: Callable[[Any], Any]) -> Any:
        number = content[0]
        if kind == "remote":
            if number not in self.remotes:
                self.remotes[number] = self.kinds[str(content[1])](self, number)
            # What comes back from elsewhere, such as a method that returns `self`, is a result.
            if isinstance(self.remotes[number], Remote):
                object.__setattr__(self.remotes[number], "_trusted", False)
            return self.remotes[number]
        if number not in self.remotes:
            build = self._error_class if kind == "error class" else self._error
            self.remotes[number] = build(*content, value_at=value_at)
            self.numbers[id(self.remotes[number])] = (self.remotes[number], number)
        return self.remotes[number]

    def _error_class(
        self, _: int, name: str, place: Any, bases: list[Any], *, value_at: Callable[[Any], Any]
    ) -> type:
        """The class of errors here: the task's, the library's, or a new one with such bases."""
        known = self.link.classes.get(name) or library_class(place)
        if known and issubclass(known, BaseException) and not issubclass(AssertionError, known):
            return known
        above = [kind for kind in map(value_at, bases) if issubclass(kind, BaseException)]
        held: dict[str, Any] = {"__str__": lambda error: error.text, "__module__": "program"}
        held |= {"__getattr__": lambda error, name: self._of_error(error, name), "end": self}
        for some in (above, above[:1]):
            try:
                return _ErrorClass(str(name), tuple(some) or (Exception,), held)
            except TypeError:  # bases that do not go together here
                continue
        return _ErrorClass(str(name), (Exception,), held)

    def _of_error(self, error: BaseException, name: str) -> Any:
        """What an error lacks here is asked of the one in the program."""
        if name == "told" or name.startswith("__"):
            raise AttributeError(name)
        return self.ask("attribute", error, name)

    def _named(self) -> tuple[type, ...]:
        """Errors that the tests expect, though they would end a loop or the process."""
        return tuple(getattr(builtins, name) for name in UNEXPECTED & self.used)

    def _error(
        self,
        number: int,
        of: Any,
        args: list[Any],
        held: list[Any],
        cause: Any,
        text: str,
        *,
        value_at: Callable[[Any], Any],
    ) -> BaseException:
        """An error of the program, of the nearest class that does no harm here."""
        kind: Any = AssertionError if of == "AssertionError" else Exception
        if of not in BROAD:
            harmful = tuple(getattr(builtins, name) for name in UNEXPECTED - self.used)
            classes = value_at(of).__mro__
            fit = (k for k in classes if issubclass(k, (Exception, *self._named())))
            kind = next((k for k in fit if not issubclass(k, harmful)), Exception)
        values = [value_at(place) for place in args]
        try:
            error: Any = type.__call__(kind, *values) if kind in CLASSES.values() else None
        except Exception:  # a class that wants other arguments
            error = None
        if error is None:
            error = kind.__new__(kind)
            error.args = tuple(values)
        parts = [value_at(place) for place in held]
        error.__dict__.update(zip(parts[::2], parts[1::2], strict=True), text=str(text))
        if isinstance(above := value_at(cause), BaseException):
            error.__cause__ = above
        assert isinstance(error, BaseException)
        return error

    def lack(self, error: BaseException) -> str:
        """What the tests could not do with objects of the program, where they failed by that."""
        if self.own_word:
            return (
                f"; the tests need the answer's own {self.own_word}, which is asked only where the "
                "task's start begins its class"
            )
        kinds = sorted({kind.__name__ for kind in self.kinds.values()} - CLASSES.keys())
        if not kinds or isinstance(error, AssertionError):
            return ""
        return f"; the tests need objects of the answer ({', '.join(kinds)[:200]}) as copies"

    def learn_names(self, code: types.CodeType, *, entry: str) -> None:
        """Names that the tests use and that `start` lacks: the program's, or of its imports.

        What the program has imported is imported here, too, so that it is the library's own.
        """
        self.used = _used(code)
        if self.used & SHARED:
            raise UnsendableError("the tests read or replace what the program uses")
        wanted = [n for n in self.used if n not in self.names and not hasattr(builtins, n)]
        places = self.ask("names", None, wanted)
        if "type" in self.used:
            self.names.setdefault("type", TypeOf)
        plain = False
        for name in wanted:
            if name not in places:
                continue
            if name != entry and places[name] is not None and places[name][1] not in BROAD:
                if (value := library_value(*places[name])) is None:
                    raise EndedError("what its process sent is no message")
                self.names[name] = value
            else:
                self.names[name] = self.ask("attribute", None, name)
                plain |= not isinstance(self.names[name], Remote | _ErrorClass)
        self.asked = plain  # a value that the tests compare is as good as a call


class _ErrorClass(type):
    """A class of errors of the program, to be expected by the tests; made and asked there."""

    end: Tests

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        return cls.end.ask("call", cls, list(args), kwargs)

    def __getattr__(cls, name: str) -> Any:
        return cls.end.ask("attribute", cls, name)


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
        if "told" in loaded:
            return _failed(str(loaded["told"]))
        exec(compile(order["start"], PROGRAM, "exec", dont_inherit=True), end.names)
        end.link.classes = {name: end.names[name] for name in order["classes"]}
        end.names.pop(order["entry"], None)
        code = compile(order["tests"], TESTS, "exec", dont_inherit=True)
        end.learn_names(code, entry=order["entry"])
        if order["class"]:
            end.entry = end.names.get(order["entry"])
        exec(code, end.names)
        if end.failure is not None:
            raise end.failure
    except UnsendableError as error:
        return {"unsendable": str(error)}
    except EndedError as error:
        return {**_failed(str(error)), "ended": True}
    except BaseException as error:
        if isinstance(end.failure, UnsendableError):
            return {"unsendable": str(end.failure)}
        reason = getattr(error, "told", None) or told(error, {TESTS: order["tests"]})
        return _failed(reason if hasattr(error, "told") else reason + end.lack(error))
    if not end.asked:
        return _failed("its tests ask nothing of the program")
    return {"passed": True, "reason": "passed"}


def run_together(_: BinaryIO, __: BinaryIO, order: Mapping[str, Any]) -> dict[str, Any]:
    """The verdict of a process that runs the program and its tests: the program could forge it."""
    sources = {PROGRAM: order["program"], TESTS: order["tests"]}
    tell, failed = told, _failed
    module = types.ModuleType("program")
    sys.modules["program"] = module
    try:
        for file, source in sources.items():
            exec(compile(source, file, "exec", dont_inherit=True), vars(module))
    except BaseException as error:
        return failed(tell(error, sources))
    return {"passed": True, "reason": "passed"}


def _failed(reason: str) -> dict[str, Any]:
    return {"passed": False, "reason": reason or "an error without a name"}
