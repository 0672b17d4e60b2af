"""Runs the program in its own process and performs the operations that the tests request.

The program can change this code, which shares its process. The verdict does not depend on it: the
tests check the values that it sends.
"""

import operator
import sys
import types
from collections.abc import Callable, Iterable, Mapping
from typing import Any, BinaryIO

from eval.graders.sandbox_messages import CLASSES, MUTABLE, SPECIAL, EndedError, Link, standard

PROGRAM = "program.py"
BROAD = (BaseException, Exception, AssertionError)  # `eval.graders.sandbox_messages.BROAD`


def _next(iterator: Any) -> list[Any]:
    """Return [item], or at the end [] or [None, result of the generator]."""
    try:
        return [next(iterator)]
    except StopIteration as end:
        return [None, end.value] if end.value is not None else []


def _names(module: types.ModuleType, names: list[str]) -> dict[str, Any]:
    """Return the names that the program defines, with their place in the standard library."""
    defined = vars(module)
    return {name: standard(defined[name]) for name in names if name in defined}


def _operator(one: Any, name: str, other: Any, *, reflected: bool = False) -> Any:
    function = divmod if name == "__divmod__" else getattr(operator, name)
    return function(other, one) if reflected else function(one, other)


def _special(value: Any, name: str, *args: Any) -> Any:
    """Call a special method, looked up in the class as Python does."""
    if name == "__getitem__":  # of a class, too: `Stack[int]`
        return value[args[0]]
    return getattr(type(value), name)(value, *args)


# Converts Python's views to the plain types that they are equal to.
CONTENT: dict[type, Callable[[Any], Any]] = {
    type({}.keys()): set,
    type({}.items()): set,
    types.MappingProxyType: dict,
    memoryview: bytes,
}


def _copy(value: Any, deep: bool) -> Any:
    import copy

    return copy.deepcopy(value) if deep else copy.copy(value)


class _Awaiter:
    """Runs awaitables to their end, all in one event loop."""

    loop: Any = None

    def __call__(self, value: Any) -> Any:
        import asyncio

        async def result() -> Any:
            return await value

        self.loop = self.loop or asyncio.new_event_loop()
        return self.loop.run_until_complete(result())

    def next_item(self, iterator: Any) -> list[Any]:
        """Return [item] of an asynchronous iterator, or [] at the end."""

        async def item() -> list[Any]:
            try:
                return [await iterator.__anext__()]
            except StopAsyncIteration:
                return []

        answer: list[Any] = self(item())
        return answer


_await = _Awaiter()

# Operations that the tests may request on an object.
ACTIONS: dict[str, Callable[..., Any]] = {
    "names": _names,
    # Encoded as the plain type that its class extends.
    "value": lambda value: CONTENT.get(type(value), lambda same: same)(value),
    "call": lambda function, args, kwargs: function(*args, **kwargs),
    "attribute": getattr,
    "set attribute": setattr,
    "delete attribute": delattr,
    "operator": _operator,
    "reflected operator": lambda one, name, other: _operator(one, name, other, reflected=True),
    "special": _special,
    "next": _next,
    "truth": bool,
    "text": str,
    "form": repr,
    "hash": hash,
    "format": format,
    "names of attributes": dir,
    "class": type,
    "is instance": lambda kind, value: isinstance(value, kind),
    "is subclass": lambda kind, value: issubclass(value, kind),
    "copy": _copy,
    "await": _await,
    "await next": _await.next_item,
}


class ProgramServer:
    """Holds the program as a module, and its objects by number."""

    def __init__(self, incoming: BinaryIO, outgoing: BinaryIO, order: Mapping[str, Any]) -> None:
        self.source, self.class_names = order["program"], order["classes"]
        self.objects: list[Any] = []
        self.numbers: dict[int, int] = {}
        self.module = types.ModuleType("program")
        self.link = Link(incoming, outgoing, describe=self._describe, build=self._build)

    def serve(self) -> None:
        """Run the program as a module that is not `__main__`, then serve until the tests end."""
        held = vars(self.module)
        sys.modules["program"] = self.module
        try:
            exec(compile(self.source, PROGRAM, "exec", dont_inherit=True), held)
        except BaseException as error:  # the program's own, of any kind
            self.link.send({"error": describe_error(error, {PROGRAM: self.source})})
            return
        of_task = {name: held.get(name) for name in self.class_names}
        self.link.classes = {n: kind for n, kind in of_task.items() if isinstance(kind, type)}
        self.link.send({})
        while True:
            try:
                request = self.link.receive()
            except EndedError:
                return
            try:
                reply = self._answer(request)
            except BaseException as error:  # the program's own, of any kind
                reply = self._failure(error)
            self.link.send(reply)

    def _answer(self, request: Mapping[str, Any]) -> dict[str, Any]:
        action = request["do"]
        (target, *values), received = self.link.decode(request["graph"])
        result = ACTIONS[action](self.module if target is None else target, *values)
        changeable = {*MUTABLE.values(), *self.link.classes.values()}
        roots = [result, *(value for value in received if type(value) in changeable)]
        return self._graph(roots, origins=received, as_base=action == "value")

    def _failure(self, error: BaseException) -> dict[str, Any]:
        line = describe_error(error, {PROGRAM: self.source})
        try:
            return {"error": line, **self._graph([error])}
        except BaseException:  # encoding calls methods of the program
            return {"error": line, **self._graph([Exception(line)])}

    def _graph(self, roots: Iterable[Any], **how: Any) -> dict[str, Any]:
        """Return a graph with a description of each class whose objects stay in this process."""
        graph, _ = self.link.encode(roots, **how)
        kinds = {content[1]: None for kind, _, content in graph["nodes"] if kind == "remote"}
        return {"graph": graph, "kinds": {n: self._kind(self.objects[n]) for n in kinds}}

    def _kind(self, kind: type) -> list[Any]:
        """Return name, special methods, and places of the base classes in the standard library."""
        names = [name for name in SPECIAL if _defines(kind, name)]
        if issubclass(kind, type):
            names.append("__getitem__")
        if "__await__" in names and _defines(kind, "send") and _defines(kind, "throw"):
            names.append("send")  # a coroutine
        return [kind.__name__, sorted(names), [_place(base) for base in kind.__mro__[:-1]]]

    def _describe(self, value: Any, place_of: Callable[[Any], Any]) -> tuple[str, Any]:
        if isinstance(value, BaseException):
            kind = type(value)
            of = kind.__name__ if kind in BROAD else place_of(kind)
            held = [place_of(part) for pair in vars(value).items() for part in pair]
            cause = place_of(value.__cause__)
            args = [place_of(argument) for argument in _arguments(value)]
            return "error", [self._number(value), of, args, held, cause, _text(value)]
        if isinstance(value, type) and issubclass(value, BaseException) and value not in BROAD:
            above = [kind for kind in value.__bases__ if issubclass(kind, BaseException)]
            bases = [place_of(kind) for kind in above if kind not in BROAD]
            return "error class", [self._number(value), value.__name__, standard(value), bases]
        return "remote", [self._number(value), self._number(type(value))]

    def _build(self, kind: str, content: Any, value_at: Callable[[Any], Any]) -> Any:
        if kind == "error":
            name, args = content
            return CLASSES[name](*map(value_at, args))
        return self.objects[content]

    def _number(self, value: Any) -> int:
        if id(value) not in self.numbers:
            self.numbers[id(value)] = len(self.objects)
            self.objects.append(value)
        return self.numbers[id(value)]


def _defines(kind: type, name: str) -> bool:
    """Return whether a class or a base defines the method; its metaclass does not count."""
    found = (vars(base)[name] for base in kind.__mro__ if name in vars(base))
    return next(found, None) is not None


def _place(kind: type) -> tuple[str, str] | None:
    return ("", kind.__name__) if CLASSES.get(kind.__name__) is kind else standard(kind)


def _arguments(error: BaseException) -> tuple[Any, ...]:
    """Return the arguments of an error; OSError moves the file name out of `args`."""
    file = error.filename if isinstance(error, OSError) else None
    return error.args if file is None else (*error.args, file)


def _text(error: BaseException) -> str:
    try:
        return str(error)[:10_000]
    except BaseException:  # `__str__` may be the program's
        return ""


def describe_error(error: BaseException, sources: Mapping[str, str]) -> str:
    """Return one line about an error that quotes its last frame in one of `sources` (by name)."""
    line = f"{type(error).__name__}: {_text(error)[:300]}".rstrip(": ")
    quoted, trace = "", error.__traceback__
    while trace is not None:
        lines = sources.get(trace.tb_frame.f_code.co_filename, "").splitlines()
        if 0 < trace.tb_lineno <= len(lines):
            quoted = f" (line {trace.tb_lineno}: {lines[trace.tb_lineno - 1].strip()[:200]})"
        trace = trace.tb_next
    return " ".join(f"{line}{quoted}".split())[:1000]
