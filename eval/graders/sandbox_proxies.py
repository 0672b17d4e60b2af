"""Proxies, in the process of the tests, for objects of the program.

A proxy sends each operation to the program's process. Its class has the special methods of the
object's class, so that `len`, `iter`, `callable`, `with`, `await` and `isinstance` work.

An expected value is never passed to a method of the program: comparison and arithmetic with it are
computed here, on the content of an object that extends a plain type. Instances of the answer are
the exception, if the start of the task declares the answer as a class.
"""

import importlib
import operator
import sys
import types
from collections.abc import Callable, Generator
from opcode import opmap
from typing import Any, Protocol

from eval.graders.sandbox_messages import (
    ARITHMETIC,
    CLASSES,
    PLAIN,
    SPECIAL,
    UNARY,
    UnsendableError,
)

COMPARISONS = ("lt", "le", "gt", "ge")
TESTS = "tests.py"


class Client(Protocol):
    """The part of `eval.graders.tests_runner.ProgramClient` that a `Remote` uses."""

    missing_method: str

    def request(self, action: str, target: Any, *values: Any) -> Any: ...


class Remote:
    """An object of the program that cannot be copied.

    Attributes:
        _trusted: an instance of the answer's class that the tests created and no call has returned
            since; expected values may be passed to it.
    """

    __slots__ = ("__weakref__", "_client", "_number", "_trusted")

    def __init__(self, client: Client, number: int) -> None:
        for name, value in (("_client", client), ("_number", number), ("_trusted", False)):
            object.__setattr__(self, name, value)

    def __getattr__(self, name: str) -> Any:
        return self._client.request("attribute", self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._client.request("set attribute", self, name, value)

    def __delattr__(self, name: str) -> None:
        self._client.request("delete attribute", self, name)

    def __dir__(self) -> list[str]:
        names: list[str] = self._client.request("names of attributes", self)
        return names

    def __bool__(self) -> bool:
        return self._client.request("truth", self) is True

    def __str__(self) -> str:
        text: str = self._client.request("text", self)
        return text

    def __repr__(self) -> str:
        text: str = self._client.request("form", self)
        return text

    def __format__(self, how: str) -> str:
        text: str = self._client.request("format", self, how)
        return text

    def __hash__(self) -> int:
        value = self._content()
        return self._client.request("hash", self) if isinstance(value, Remote) else hash(value)

    def __eq__(self, other: object) -> Any:
        if isinstance(other, Remote) and self._number == other._number:
            return self._client.request("operator", self, "__eq__", other)
        return False if other is None else self._with("__eq__", other)

    def __ne__(self, other: object) -> Any:
        if isinstance(other, Remote):
            return self._client.request("operator", self, "__ne__", other)
        equal = self.__eq__(other)
        return equal if equal is NotImplemented else not equal

    def __instancecheck__(self, instance: object) -> bool:
        answer: bool = self._client.request("is instance", self, instance)
        return answer

    def __subclasscheck__(self, kind: object) -> bool:
        answer: bool = self._client.request("is subclass", self, kind)
        return answer

    def __copy__(self) -> Any:
        return self._client.request("copy", self, False)

    def __deepcopy__(self, memo: object) -> Any:
        return self._client.request("copy", self, True)

    def __mro_entries__(self, bases: object) -> Any:
        raise UnsendableError("the tests extend a class of the program")

    def _content(self) -> Any:
        """Return a copy as the plain type that its class extends, or itself if it extends none."""
        return self._client.request("value", self)

    def _with(self, name: str, other: object, *, reflected: bool = False) -> Any:
        """Return the result of an operator.

        The program computes it for two of its objects; it is computed here for an object and a
        value of the tests.
        """
        action = "reflected operator" if reflected else "operator"
        if isinstance(other, Remote) or self._trusted:
            return self._client.request(action, self, name, other)
        value = self._content()
        if isinstance(value, Remote):
            if type(other) not in {*PLAIN.values(), bool, type(None)}:
                kind = type(other).__name__
                raise UnsendableError(f"a result is compared with a {kind}")
            self._client.missing_method = (
                f"{type(self).__name__}.{name} on a {type(other).__name__}"
            )
            return NotImplemented
        function = divmod if name == "__divmod__" else getattr(operator, name)
        return function(other, value) if reflected else function(value, other)


def _unary(name: str) -> Callable[..., Any]:
    return lambda self, *args: self._client.request("special", self, name, *args)


def _binary(name: str, *, reflected: bool = False) -> Callable[[Remote, object], Any]:
    return lambda self, other: self._with(name, other, reflected=reflected)


def _in_place(name: str) -> Callable[[Remote, object], Any]:
    def method(self: Remote, other: object) -> Any:
        if isinstance(other, Remote) or self._trusted:
            return self._client.request("operator", self, name, other)
        return NotImplemented  # Python then tries `__add__`

    return method


def _call(self: Remote, *args: Any, **kwargs: Any) -> Any:
    return self._client.request("call", self, list(args), kwargs)


def _contains(self: Remote, item: object) -> bool:
    if isinstance(item, Remote) or self._trusted:
        return bool(self._client.request("special", self, "__contains__", item))
    value = self._content()
    if not isinstance(value, Remote):
        return item in value
    if not {"__iter__", "__getitem__"}.intersection(dir(type(self))):
        self._client.missing_method = f"{type(self).__name__}.__contains__"
    return any(found is item or found == item for found in self)  # type: ignore[attr-defined]


def _next(self: Remote) -> Any:
    found = self._client.request("next", self)
    if len(found) == 1:
        return found[0]
    raise StopIteration(*found[1:])


def _exit(self: Remote, kind: Any, error: BaseException | None, trace: Any) -> bool:
    arguments, may_suppress = _exit_arguments(error)
    return bool(self._client.request("special", self, "__exit__", *arguments)) and may_suppress


async def _aexit(self: Remote, kind: Any, error: BaseException | None, trace: Any) -> bool:
    arguments, may_suppress = _exit_arguments(error)
    return (
        bool(await self._client.request("special", self, "__aexit__", *arguments)) and may_suppress
    )


def _exit_arguments(error: BaseException | None) -> tuple[tuple[Any, Any, None], bool]:
    """Return the arguments of `__exit__`, and whether it may suppress the error.

    It may suppress errors of the program and those of a `raise` statement in the tests, but never
    an error that a wrong value causes, such as a failed assertion.
    """
    if error is None:
        return (None, None, None), True
    if hasattr(error, "program_report"):
        return (type(error), error, None), True
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is not None and trace.tb_frame.f_code.co_filename == TESTS:
        code = trace.tb_frame.f_code.co_code
        if code[trace.tb_lasti] == opmap["RAISE_VARARGS"] and type(error) in CLASSES.values():
            return (type(error), error, None), True
    return (RuntimeError, RuntimeError("the tests failed"), None), False


def _await(self: Remote) -> Generator[Any, None, Any]:
    return self._client.request("await", self)
    yield  # makes this a generator, as `__await__` must return


def _send(self: Remote, value: Any) -> Any:
    raise StopIteration(self._client.request("await", self))


def _throw(self: Remote, *error: Any) -> Any:
    raise error[0]


def _close(self: Remote) -> None:
    """Do nothing: a coroutine that was never awaited has not started."""


async def _anext(self: Remote) -> Any:
    if found := self._client.request("await next", self):
        return found[0]
    raise StopAsyncIteration


METHODS: dict[str, Callable[..., Any]] = {
    **{f"__{name}__": _unary(f"__{name}__") for name in UNARY},
    **{f"__{name}__": _binary(f"__{name}__") for name in ARITHMETIC},
    **{f"__r{name}__": _binary(f"__{name}__", reflected=True) for name in ARITHMETIC},
    **{f"__i{name}__": _in_place(f"__i{name}__") for name in ARITHMETIC if name != "divmod"},
    **{"__call__": _call, "__contains__": _contains, "__next__": _next, "__exit__": _exit},
    **{"__await__": _await, "__anext__": _anext, "__aexit__": _aexit},
}
for _name in COMPARISONS:
    setattr(Remote, f"__{_name}__", _binary(f"__{_name}__"))


def class_of(name: str, methods: list[str], standards: list[Any]) -> type[Remote]:
    """Return the class of the proxies for the objects of one class of the program.

    Args:
        methods: names of `eval.graders.sandbox_messages.SPECIAL`, and "send" for a coroutine.
        standards: module and name of each base class, None for one of the program.
    """
    held: dict[str, Any] = {key: METHODS[key] for key in SPECIAL.intersection(methods, METHODS)}
    if "send" in methods:  # `asyncio` recognizes a coroutine by these
        coroutine: dict[str, Any] = {"send": _send, "throw": _throw, "close": _close}
        held |= coroutine
    known = next(filter(None, map(library_class, standards)), None)
    held["__doc__"] = property(lambda self: self._client.request("attribute", self, "__doc__"))
    held["__module__"] = "program"
    held["__class__"] = property(lambda self: known or type(self))  # read by `isinstance`
    return type(str(name), (Remote,), {**held, "__slots__": ()})


def library_class(place: Any) -> type | None:
    """Return an imported class of the standard library, or of CLASSES if the module is ""."""
    if not isinstance(place, list):
        return None
    module, name = place
    if not module:
        return CLASSES.get(name)
    found = getattr(sys.modules.get(module), name, None)
    listed = module.split(".")[0] in sys.stdlib_module_names
    return found if listed and isinstance(found, type) and found is not object else None


def library_value(module: str, name: str) -> Any:
    """Import a module, function or class of the standard library; None for anything else."""
    if module.split(".")[0] not in sys.stdlib_module_names:
        return None
    value = importlib.import_module(module)
    value = getattr(value, name) if name else value
    kinds = types.ModuleType | types.FunctionType | types.BuiltinFunctionType | type
    return value if isinstance(value, kinds) else None


class _TypeOf(type):
    """Makes `type(x)` of a proxy the class of its object in the program."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        if len(args) == 1 and isinstance(args[0], Remote):
            return args[0]._client.request("class", args[0])
        return type(*args, **kwargs)

    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, type)

    def __eq__(cls, other: object) -> bool:
        return other is cls or other is type

    __hash__ = type.__hash__


class TypeOf(type, metaclass=_TypeOf):
    """Replaces `type` in the tests."""
