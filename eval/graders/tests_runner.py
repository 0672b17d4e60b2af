"""Runs the tests in the process of the tests, with a proxy for each object of the program.

A call sends copies of its arguments to the program's process and returns a copy of the result;
comparisons and functions of the tests run here, where the program cannot change them.
"""

import builtins
import sys
import types
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO, TypedDict

from eval.graders.program_server import PROGRAM, describe_error
from eval.graders.sandbox_messages import BROAD, CLASSES, EndedError, Link, UnsendableError
from eval.graders.sandbox_proxies import (
    TESTS,
    Remote,
    TypeOf,
    class_of,
    library_class,
    library_value,
)

# Errors that would end a loop or the process of the tests; raised only if the tests name them.
UNEXPECTED = frozenset(
    {"StopIteration", "StopAsyncIteration", "SystemExit", "KeyboardInterrupt", "GeneratorExit"}
)
# Names in tests that use more of the program than its values: its output or its imports.
SHARED = frozenset({"redirect_stdout", "redirect_stderr", "stdout", "stderr", "stdin", "patch"})


class Verdict(TypedDict, total=False):
    """The verdict of a confined process; `unsendable` alone if one process must run both."""

    passed: bool
    reason: str
    unsendable: str


class ProgramClient:
    """Sends requests to the program's process and holds the names that the tests use.

    Attributes:
        failure: the error that ends the tests, even if they caught it.
        missing_method: the last operation on a value of the tests that was refused, since only a
            method of the program could compute it.
    """

    def __init__(self, incoming: BinaryIO, outgoing: BinaryIO) -> None:
        self.remotes: dict[int, Any] = {}
        self.numbers: dict[int, tuple[Any, int]] = {}  # of errors and their classes, by id
        self.kinds: dict[str, type[Remote]] = {}
        self.used_program = False
        self.failure: BaseException | None = None
        self.missing_method = ""
        self.entry: Any = None  # the proxy of `entry` if the task declares it as a class
        self.link = Link(incoming, outgoing, describe=self._describe, build=self._build)
        self.names: dict[str, Any] = {"__name__": "program"}
        self.used: set[str] = set()

    def request(self, action: str, target: Any, *values: Any) -> Any:
        """Perform one of `program_server.ACTIONS` on `target`; None is the program itself.

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
        self.used_program = True
        for number, kind in reply["kinds"].items():
            if number not in self.kinds:
                self.kinds[number] = class_of(*kind)
        failed = "error" in reply
        (result, *_), _ = self.link.decode(reply["graph"], origins=None if failed else objects)
        if failed:
            expected = isinstance(result, (Exception, *self._named()))
            raised: Any = result if expected else Exception()
            raised.program_report = str(reply["error"])
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
            # An object that a method returns, such as `self`, is a result and no longer trusted.
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
        """Return the matching class of errors: the task's, the library's, or a new one."""
        known = self.link.classes.get(name) or library_class(place)
        if known and issubclass(known, BaseException) and not issubclass(AssertionError, known):
            return known
        above = [kind for kind in map(value_at, bases) if issubclass(kind, BaseException)]
        held: dict[str, Any] = {"__str__": lambda error: error.text, "__module__": "program"}
        held |= {
            "__getattr__": lambda error, name: self._error_attribute(error, name),
            "_client": self,
        }
        for some in (above, above[:1]):
            try:
                return _ErrorClass(str(name), tuple(some) or (Exception,), held)
            except TypeError:  # bases with conflicting layouts
                continue
        return _ErrorClass(str(name), (Exception,), held)

    def _error_attribute(self, error: BaseException, name: str) -> Any:
        """Return an attribute that only the error in the program's process has."""
        if name == "program_report" or name.startswith("__"):
            raise AttributeError(name)
        return self.request("attribute", error, name)

    def _named(self) -> tuple[type, ...]:
        """Return the errors of UNEXPECTED that the tests name."""
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
        """Build an error of the program from the nearest class that cannot end the tests."""
        kind: Any = AssertionError if of == "AssertionError" else Exception
        if of not in BROAD:
            harmful = tuple(getattr(builtins, name) for name in UNEXPECTED - self.used)
            classes = value_at(of).__mro__
            fit = (k for k in classes if issubclass(k, (Exception, *self._named())))
            kind = next((k for k in fit if not issubclass(k, harmful)), Exception)
        values = [value_at(place) for place in args]
        try:
            error: Any = type.__call__(kind, *values) if kind in CLASSES.values() else None
        except Exception:  # a class that takes other arguments
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

    def explain_failure(self, error: BaseException) -> str:
        """Return which operation on objects of the program was not possible, or ""."""
        if self.missing_method:
            return (
                f"; the tests need the answer's own {self.missing_method}, which is called only "
                "if the task's start declares its class"
            )
        kinds = sorted({kind.__name__ for kind in self.kinds.values()} - CLASSES.keys())
        if not kinds or isinstance(error, AssertionError):
            return ""
        return f"; the tests need objects of the answer ({', '.join(kinds)[:200]}) as copies"

    def learn_names(self, code: types.CodeType, *, entry: str) -> None:
        """Fetch the names that the tests use and `start` lacks.

        Modules that the program imports are imported here, so that the tests use genuine ones.
        """
        self.used = _used(code)
        if self.used & SHARED:
            raise UnsendableError("the tests read or replace output or imports of the program")
        missing = [n for n in self.used if n not in self.names and not hasattr(builtins, n)]
        places = self.request("names", None, missing)
        if "type" in self.used:
            self.names.setdefault("type", TypeOf)
        plain = False
        for name in missing:
            if name not in places:
                continue
            if name != entry and places[name] is not None and places[name][1] not in BROAD:
                if (value := library_value(*places[name])) is None:
                    raise EndedError("its process sent an invalid message")
                self.names[name] = value
            else:
                self.names[name] = self.request("attribute", None, name)
                plain |= not isinstance(self.names[name], Remote | _ErrorClass)
        self.used_program = plain  # comparing a value uses the program, too


class _ErrorClass(type):
    """A class of errors of the program; instances are created in the program's process."""

    _client: ProgramClient

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        return cls._client.request("call", cls, list(args), kwargs)

    def __getattr__(cls, name: str) -> Any:
        return cls._client.request("attribute", cls, name)


def _used(code: types.CodeType) -> set[str]:
    inner = (const for const in code.co_consts if isinstance(const, types.CodeType))
    return set(code.co_names).union(*(_used(one) for one in inner))


def run_tests(incoming: BinaryIO, outgoing: BinaryIO, order: Mapping[str, Any]) -> Verdict:
    """Run the tests against the program's process; return {"passed": ..., "reason": ...}.

    Returns {"unsendable": reason} if the tests need to send an object that cannot be copied.
    """
    client = ProgramClient(incoming, outgoing)
    try:
        loaded = client.link.receive()
        if "error" in loaded:
            return _failed(str(loaded["error"]))
        exec(compile(order["start"], PROGRAM, "exec", dont_inherit=True), client.names)
        client.link.classes = {name: client.names[name] for name in order["classes"]}
        client.names.pop(order["entry"], None)
        code = compile(order["tests"], TESTS, "exec", dont_inherit=True)
        client.learn_names(code, entry=order["entry"])
        if order["class"]:
            client.entry = client.names.get(order["entry"])
        exec(code, client.names)
        if client.failure is not None:
            raise client.failure
    except UnsendableError as error:
        return {"unsendable": str(error)}
    except EndedError as error:
        return _failed(str(error))
    except BaseException as error:
        if isinstance(client.failure, UnsendableError):
            return {"unsendable": str(client.failure)}
        reason = getattr(error, "program_report", None) or describe_error(
            error, {TESTS: order["tests"]}
        )
        return _failed(
            reason if hasattr(error, "program_report") else reason + client.explain_failure(error)
        )
    if not client.used_program:
        return _failed("its tests do not use the program")
    return {"passed": True, "reason": "passed"}


def run_together(_: BinaryIO, __: BinaryIO, order: Mapping[str, Any]) -> Verdict:
    """Run the program and its tests in this process, where the program could forge the verdict."""
    sources = {PROGRAM: order["program"], TESTS: order["tests"]}
    describe, failed = describe_error, _failed
    module = types.ModuleType("program")
    sys.modules["program"] = module
    try:
        for file, source in sources.items():
            exec(compile(source, file, "exec", dont_inherit=True), vars(module))
    except BaseException as error:
        return failed(describe(error, sources))
    return {"passed": True, "reason": "passed"}


def _failed(reason: str) -> Verdict:
    return {"passed": False, "reason": reason or "an error without a name"}
