"""Serializes values between the process of the tests and the process of the program.

A message is one line of JSON. Plain values are copied: None, bool, numbers, str, bytes, containers,
range, Decimal, Fraction, dates, Python's own classes, and instances of the classes that a task
defines; shared and circular references are kept. Any other object stays in the program's process
under a number. A reply holds content alone, so that no method of the program runs when the tests
compare it. Both processes are confined and import the standard library alone.

A graph is {"nodes": [[kind, origin, content], ...], "roots": [place, ...]}. A place is null, a
bool, a str, a number, or ["n", i] for node i: the graph of `([1], [1.5])` is

    {"nodes": [["tuple", null, [["n", 1], ["n", 2]]], ["list", null, [1]], ["list", null, [1.5]]],
     "roots": [["n", 0]]}

`origin` is the node of a mutable object in the request: the changes that a call makes to its
arguments are copied back to it.
"""

import builtins
import json
import sys
import types
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterable, Mapping
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Any, BinaryIO, TypedDict

LINE = 16 << 20  # largest number of bytes of a message
SMALL = 1 << 53  # integers below it are exact as JSON numbers, which may be read as doubles
ENDED = "its process ended"


def _integer(text: str) -> int:
    return int(text, 16)


# kind -> how its content is written and read; base 16 has no limit on the digits of a number.
IMMUTABLE: dict[type, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
    int: (lambda v: hex(int.__pos__(v)), _integer),
    float: (float.hex, float.fromhex),
    complex: (lambda v: [float.hex(v.real), float.hex(v.imag)], lambda c: _complex(*c)),
    str: (str.__str__, str),
    bytes: (bytes.hex, bytes.fromhex),
    range: (lambda v: [hex(v.start), hex(v.stop), hex(v.step)], lambda c: range(*map(_integer, c))),
    Decimal: (Decimal.__str__, Decimal),
    Fraction: (
        lambda v: [hex(v.numerator), hex(v.denominator)],
        lambda c: Fraction(*map(_integer, c)),
    ),
    date: (lambda v: [v.year, v.month, v.day], lambda c: date(*c)),
    datetime: (lambda v: [*v.timetuple()[:6], v.microsecond], lambda c: datetime(*c)),
    time: (lambda v: [v.hour, v.minute, v.second, v.microsecond], lambda c: time(*c)),
    timedelta: (lambda v: [v.days, v.seconds, v.microseconds], lambda c: timedelta(*c)),
}
FROZEN: tuple[type, ...] = (tuple, frozenset)
SEQUENCES: tuple[type, ...] = (list, deque, set)
MAPPINGS: tuple[type, ...] = (Counter, OrderedDict, dict)
MUTABLE = {kind.__name__: kind for kind in (*SEQUENCES, *MAPPINGS, bytearray)}
PLAIN = {**MUTABLE, **{kind.__name__: kind for kind in (*IMMUTABLE, *FROZEN)}}
# Tests that expect one of these could be catching their own failed assertion.
BROAD = ("BaseException", "Exception", "AssertionError")
# Classes that are the same in both processes, by name.
CLASSES: dict[str, type] = {
    kind.__name__: kind
    for kind in (
        *(*PLAIN.values(), type(None), types.FunctionType, types.MethodType, types.ModuleType),
        *(types.BuiltinFunctionType, types.GeneratorType, types.CoroutineType),
        *(types.AsyncGeneratorType, types.CodeType),
        *(kind for kind in vars(builtins).values() if isinstance(kind, type)),
    )
    if kind.__name__ not in BROAD
}

CONSTANTS: dict[str, Any] = {"Ellipsis": Ellipsis, "NotImplemented": NotImplemented}
# Special methods that a proxy has if its object has them: `callable` and `isinstance(x, Iterable)`
# check whether they exist. Those of `object` are not listed, since all objects have them.
UNARY = (
    *("neg", "pos", "invert", "abs", "round", "trunc", "floor", "ceil", "int", "float", "complex"),
    *("index", "bytes", "len", "length_hint", "iter", "reversed", "getitem", "setitem", "delitem"),
    *("fspath", "enter", "aenter", "aiter"),
)
ARITHMETIC = (
    *("add", "sub", "mul", "truediv", "floordiv", "mod", "divmod", "pow", "matmul"),
    *("and", "or", "xor", "lshift", "rshift"),
)
SPECIAL = frozenset(
    f"__{name}__"
    for name in (
        *(*UNARY, *ARITHMETIC, *(f"r{name}" for name in ARITHMETIC)),
        *(f"i{name}" for name in ARITHMETIC),
        *("call", "contains", "next", "exit", "await", "anext", "aexit"),
    )
)


def _complex(real: str, imaginary: str) -> complex:
    return complex(float.fromhex(real), float.fromhex(imaginary))


class Graph(TypedDict):
    """Values as nodes [kind, origin, content] and the places of the roots."""

    nodes: list[Any]
    roots: list[Any]


class UnsendableError(BaseException):
    """The tests pass to the program, or compare with a result, what cannot be copied."""


class EndedError(BaseException):
    """The other process ended or sent an invalid message."""


class Link:
    """One end of the connection between the two processes.

    Args:
        describe: returns kind and content of an object that is not copied; gets the function that
            maps a value to its place.
        build: inverts the other end's `describe`; gets the function that maps a place to its value.
    """

    def __init__(
        self,
        incoming: BinaryIO,
        outgoing: BinaryIO,
        *,
        describe: Callable[[Any, Callable[[Any], Any]], tuple[str, Any]],
        build: Callable[[str, Any, Callable[[Any], Any]], Any],
    ) -> None:
        self.incoming, self.outgoing = incoming, outgoing
        self.describe, self.build = describe, build
        self.classes: Mapping[str, type] = {}  # of the task, by name

    def send(self, message: Mapping[str, Any]) -> None:
        try:
            self.outgoing.write(json.dumps(message).encode() + b"\n")
            self.outgoing.flush()
        except OSError:
            raise EndedError(ENDED) from None

    def receive(self) -> dict[str, Any]:
        line = self.incoming.readline(LINE)
        if not line.endswith(b"\n"):
            cause = f"a value of more than {LINE >> 20} MiB" if line else ENDED
            raise EndedError(cause)
        try:
            message = json.loads(line)
        except (ValueError, RecursionError):
            message = None
        if not isinstance(message, dict):
            raise EndedError("its process sent an invalid message")
        return message

    def encode(
        self, roots: Iterable[Any], *, origins: Iterable[Any] = (), as_base: bool = False
    ) -> tuple[Graph, list[Any]]:
        """Return a graph, and the object of each of its nodes.

        Args:
            origins: the objects of the request, in the order of its nodes.
            as_base: copy an instance of a subclass of a plain type as that type.
        """
        origin_of = {id(value): i for i, value in enumerate(origins)}
        numbers: dict[int, int] = {}
        objects: list[Any] = []

        def place_of(value: Any) -> Any:
            kind = type(value)
            if value is None or kind is bool or kind is str:
                return value
            if (kind is int or kind is float) and -SMALL < value < SMALL:
                return value
            if id(value) not in numbers:
                numbers[id(value)] = len(objects)
                objects.append(value)
            return ["n", numbers[id(value)]]

        places = [place_of(value) for value in roots]
        nodes: list[Any] = []
        while len(nodes) < len(objects):
            value = objects[len(nodes)]
            kind, content = self._described(value, place_of, as_base=as_base)
            nodes.append([kind, origin_of.get(id(value)), content])
        return {"nodes": nodes, "roots": places}, objects

    def _described(
        self, value: Any, place_of: Callable[[Any], Any], *, as_base: bool
    ) -> tuple[str, Any]:
        kind = type(value)
        if as_base:
            kind = next(base for base in (*PLAIN.values(), kind) if issubclass(kind, base))
        name = kind.__name__
        if kind in IMMUTABLE and getattr(value, "tzinfo", None) is None:
            return name, IMMUTABLE[kind][0](value)
        if kind is bytearray:
            return name, bytes(value).hex()
        if kind in SEQUENCES or kind in FROZEN:
            return name, [place_of(item) for item in kind.__iter__(value)]
        if kind in MAPPINGS:
            return name, [place_of(part) for pair in dict.items(value) for part in pair]
        # An instance of a class of the task, all content of which is in `vars`.
        own: Any = self.classes.get(name) is kind and kind.__dictoffset__
        if own and kind.__new__ is object.__new__:  # type: ignore[comparison-overlap]
            parts = [place_of(part) for pair in vars(value).items() for part in pair]
            return "object", [name, *parts]
        if isinstance(value, slice):
            return "slice", [place_of(value.start), place_of(value.stop), place_of(value.step)]
        if kind is type and value in CLASSES.values():
            return "class", value.__name__
        if any(value is constant for constant in CONSTANTS.values()):
            return "class", repr(value)
        return self.describe(value, place_of)

    def decode(
        self, graph: Graph, *, origins: list[Any] | None = None
    ) -> tuple[list[Any], list[Any]]:
        """Return the roots of a graph, and the object of each of its nodes.

        Args:
            origins: objects of the request; the mutable ones in the reply get their new content.
        """
        nodes = graph["nodes"]
        made: dict[int, Any] = {}
        for i, (kind, origin, content) in enumerate(nodes):
            if kind in MUTABLE or kind == "object":
                own = None if origins is None or origin is None else origins[origin]
                made[i] = self._emptied(kind, content, own)

        def value_at(place: Any) -> Any:
            if not isinstance(place, list):
                return place
            number = place[1]
            if number not in made:
                kind, _, content = nodes[number]
                if kind == "class":
                    made[number] = {**CLASSES, **CONSTANTS}[content]
                elif kind == "slice":
                    made[number] = slice(*map(value_at, content))
                elif kind not in PLAIN:
                    made[number] = self.build(kind, content, value_at)
                elif PLAIN[kind] in FROZEN:
                    made[number] = PLAIN[kind](value_at(item) for item in content)
                else:
                    made[number] = IMMUTABLE[PLAIN[kind]][1](content)
            return made[number]

        # Keys and set members are hashed, so objects and lists are filled before sets and dicts.
        for i in sorted(made, key=lambda i: nodes[i][0] not in ("object", "list")):
            kind, _, content = nodes[i]
            _fill(made[i], kind, content, value_at)
        objects = [value_at(["n", i]) for i in range(len(nodes))]
        return [value_at(place) for place in graph["roots"]], objects

    def _emptied(self, kind: str, content: Any, own: Any) -> Any:
        """Return an empty mutable object: `own` if it has this kind, else a new one."""
        fresh = self.classes[content[0]] if kind == "object" else MUTABLE[kind]
        if type(own) is not fresh:
            return object.__new__(fresh) if kind == "object" else fresh()
        held: Any = vars(own) if kind == "object" else own
        held.clear()
        return own


def _fill(target: Any, kind: str, content: Any, value_at: Callable[[Any], Any]) -> None:
    if kind == "bytearray":
        target.extend(bytes.fromhex(content))
    elif kind in ("list", "deque"):
        target.extend(value_at(place) for place in content)
    elif kind == "set":
        target.update(value_at(place) for place in content)
    else:
        parts = [value_at(place) for place in (content[1:] if kind == "object" else content)]
        into = vars(target) if kind == "object" else target
        for key, value in zip(parts[::2], parts[1::2], strict=True):
            if kind == "object" and callable(getattr(type(target), key, None)):
                raise EndedError(f"an object replaces the method {key} of its class")
            into[key] = value


def standard(value: Any) -> tuple[str, str] | None:
    """Return module and name ("" for the module itself) of a module, function or class of the
    standard library, None for anything else."""
    if isinstance(value, type(sys)):
        module, name = value.__name__, ""
    else:
        module = getattr(value, "__module__", None) or ""
        name = getattr(value, "__name__", None) or ""
        if not name or getattr(sys.modules.get(module), name, None) is not value:
            return None
    return (module, name) if module.split(".")[0] in sys.stdlib_module_names else None
