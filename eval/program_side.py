"""The program's end of the connection: runs the program, then does what the tests ask of it.

Nothing here is safe from the program, which shares the process, and nothing needs to be: what it
sends are values, which the tests judge.
"""

import operator
import sys
import types
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO

from eval.wire import MUTABLE, EndedError, Link, standard

PROGRAM = "program.py"


def _next(iterator: Any) -> list[Any]:
    """The next item, alone in a list; empty at the end."""
    try:
        return [next(iterator)]
    except StopIteration:
        return []


def _names(module: types.ModuleType, wanted: list[str]) -> dict[str, Any]:
    """Of the wanted names those that the program has, and where the standard library has them."""
    held = vars(module)
    return {name: standard(held[name]) for name in wanted if name in held}


# What the tests may ask of an object.
ACTIONS: dict[str, Callable[..., Any]] = {
    "names": _names,
    "value": lambda value: value,  # as the plain type that its class extends
    "call": lambda function, args, kwargs: function(*args, **kwargs),
    "attribute": getattr,
    "set attribute": setattr,
    "item": operator.getitem,
    "set item": operator.setitem,
    "operator": lambda one, name, other: getattr(operator, name)(one, other),
    "iterate": iter,
    "next": _next,
    "length": len,
    "truth": bool,
    "text": str,
    "form": repr,
}


class Program:
    """The program as a module, and its objects by number."""

    def __init__(self, incoming: BinaryIO, outgoing: BinaryIO, order: Mapping[str, Any]) -> None:
        self.source, self.class_names = order["program"], order["classes"]
        self.objects: list[Any] = []
        self.numbers: dict[int, int] = {}
        self.module = types.ModuleType("program")
        self.link = Link(
            *(incoming, outgoing), to_object=self.objects.__getitem__, to_number=self._number
        )

    def serve(self) -> None:
        """Run the program as a module that is not `__main__`, then answer until the tests end."""
        held = vars(self.module)
        sys.modules["program"] = self.module
        try:
            exec(compile(self.source, PROGRAM, "exec", dont_inherit=True), held)
        except BaseException as error:  # the program's own, of any kind
            self.link.send(described(error, {PROGRAM: self.source}))
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
                reply = described(error, {PROGRAM: self.source})
            self.link.send(reply)

    def _answer(self, request: Mapping[str, Any]) -> dict[str, Any]:
        action = request["do"]
        (target, *values), came = self.link.decode(request["graph"])
        result = ACTIONS[action](self.module if target is None else target, *values)
        changeable = {*MUTABLE.values(), *self.link.classes.values()}
        roots = [result, *(value for value in came if type(value) in changeable)]
        graph, _ = self.link.encode(roots, origins=came, as_base=action == "value")
        return {"graph": graph}

    def _number(self, value: Any) -> int:
        if id(value) not in self.numbers:
            self.numbers[id(value)] = len(self.objects)
            self.objects.append(value)
        return self.numbers[id(value)]


def described(error: BaseException, sources: Mapping[str, str]) -> dict[str, Any]:
    """An error for the other end: the names of its classes, and a line about it.

    Args:
        sources: by file name; the line quotes that of the last frame in one of them.
    """
    try:
        text = str(error)[:300]
    except BaseException:  # `__str__` is the program's, too
        text = ""
    told = f"{type(error).__name__}: {text}".rstrip(": ")
    quoted, trace = "", error.__traceback__
    while trace is not None:
        lines = sources.get(trace.tb_frame.f_code.co_filename, "").splitlines()
        if 0 < trace.tb_lineno <= len(lines):
            quoted = f" (line {trace.tb_lineno}: {lines[trace.tb_lineno - 1].strip()[:200]})"
        trace = trace.tb_next
    names = [kind.__name__ for kind in type(error).__mro__]
    return {"error": names, "told": " ".join(f"{told}{quoted}".split())[:1000]}
