"""The program's end of the connection: runs the program, then does what the tests ask of it.

Nothing here is safe from the program, which shares the process, and nothing needs to be: what it
sends are values, which the tests judge.
"""

import operator
import sys
import types
from collections.abc import Callable, Iterable, Mapping
from typing import Any, BinaryIO

from eval.graders.value_copies import CLASSES, MUTABLE, SPECIAL, EndedError, Link, standard

PROGRAM = "program.py"
BROAD = (BaseException, Exception, AssertionError)  # `eval.graders.value_copies.BROAD`


def _next(iterator: Any) -> list[Any]:
    """The next item, alone in a list; at the end nothing, or the generator's result after None."""
    try:
        return [next(iterator)]
    except StopIteration as end:
        return [None, end.value] if end.value is not None else []


def _names(module: types.ModuleType, wanted: list[str]) -> dict[str, Any]:
    """Of the wanted names those that the program has, and where the standard library has them."""
    held = vars(module)
    return {name: standard(held[name]) for name in wanted if name in held}


def _operator(one: Any, name: str, other: Any, *, reflected: bool = False) -> Any:
    function = divmod if name == "__divmod__" else getattr(operator, name)
    return function(other, one) if reflected else function(one, other)


def _special(value: Any, name: str, *args: Any) -> Any:
    """The result of a special method, which is looked up in the class as Python does."""
    if name == "__getitem__":  # of a class, too: `Stack[int]`
        return value[args[0]]
    return getattr(type(value), name)(value, *args)


# Of Python's own types that are equal to a plain one, the content.
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
    """Runs what can be awaited to its end, all in one event loop."""

    loop: Any = None

    def __call__(self, value: Any) -> Any:
        import asyncio

        async def whole() -> Any:
            return await value

        self.loop = self.loop or asyncio.new_event_loop()
        return self.loop.run_until_complete(whole())

    def following(self, iterator: Any) -> list[Any]:
        """The next item of an asynchronous iterator, alone in a list; empty at the end."""

        async def item() -> list[Any]:
            try:
                return [await iterator.__anext__()]
            except StopAsyncIteration:
                return []

        answer: list[Any] = self(item())
        return answer


_await = _Awaiter()

# What the tests may ask of an object.
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
    "await next": _await.following,
}


class Program:
    """The program as a module, and its objects by number."""

    def __init__(self, incoming: BinaryIO, outgoing: BinaryIO, order: Mapping[str, Any]) -> None:
        self.source, self.class_names = order["program"], order["classes"]
        self.objects: list[Any] = []
        self.numbers: dict[int, int] = {}
        self.module = types.ModuleType("program")
        self.link = Link(incoming, outgoing, describe=self._describe, build=self._build)

    def serve(self) -> None:
        """Run the program as a module that is not `__main__`, then answer until the tests end."""
        held = vars(self.module)
        sys.modules["program"] = self.module
        try:
            exec(compile(self.source, PROGRAM, "exec", dont_inherit=True), held)
        except BaseException as error:  # the program's own, of any kind
            self.link.send({"told": told(error, {PROGRAM: self.source})})
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
        (target, *values), came = self.link.decode(request["graph"])
        result = ACTIONS[action](self.module if target is None else target, *values)
        changeable = {*MUTABLE.values(), *self.link.classes.values()}
        roots = [result, *(value for value in came if type(value) in changeable)]
        return self._graph(roots, origins=came, as_base=action == "value")

    def _failure(self, error: BaseException) -> dict[str, Any]:
        line = told(error, {PROGRAM: self.source})
        try:
            return {"told": line, **self._graph([error])}
        except BaseException:  # its content is the program's, too
            return {"told": line, **self._graph([Exception(line)])}

    def _graph(self, roots: Iterable[Any], **how: Any) -> dict[str, Any]:
        """A graph, with a description of each class whose objects stay here."""
        graph, _ = self.link.encode(roots, **how)
        kinds = {content[1]: None for kind, _, content in graph["nodes"] if kind == "remote"}
        return {"graph": graph, "kinds": {n: self._kind(self.objects[n]) for n in kinds}}

    def _kind(self, kind: type) -> list[Any]:
        """Name, special methods, and where Python has the classes that it extends."""
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
    """Whether a class or one that it extends has the method; its metaclass does not count."""
    found = (vars(base)[name] for base in kind.__mro__ if name in vars(base))
    return next(found, None) is not None


def _place(kind: type) -> tuple[str, str] | None:
    return ("", kind.__name__) if CLASSES.get(kind.__name__) is kind else standard(kind)


def _arguments(error: BaseException) -> tuple[Any, ...]:
    """What the error was made of, with what Python takes out of it."""
    file = error.filename if isinstance(error, OSError) else None
    return error.args if file is None else (*error.args, file)


def _text(error: BaseException) -> str:
    try:
        return str(error)[:10_000]
    except BaseException:  # `__str__` is the program's, too
        return ""


def told(error: BaseException, sources: Mapping[str, str]) -> str:
    """A line about an error.

    Args:
        sources: by file name; the line quotes that of the last frame in one of them.
    """
    line = f"{type(error).__name__}: {_text(error)[:300]}".rstrip(": ")
    quoted, trace = "", error.__traceback__
    while trace is not None:
        lines = sources.get(trace.tb_frame.f_code.co_filename, "").splitlines()
        if 0 < trace.tb_lineno <= len(lines):
            quoted = f" (line {trace.tb_lineno}: {lines[trace.tb_lineno - 1].strip()[:200]})"
        trace = trace.tb_next
    return " ".join(f"{line}{quoted}".split())[:1000]
