"""Read YAML from untrusted files: plain data only, with limits on size, depth and aliases."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

import yaml
from omegaconf.errors import OmegaConfBaseException

LARGEST = 1 << 20  # bytes of a file
NODES = 100_000  # values of a file, with every alias expanded: nine aliases of nine make a billion
DEPTH = 50  # levels of lists and mappings; PyYAML's constructor recurses


class TooLarge(yaml.YAMLError):  # type: ignore[misc]
    """A file that would exhaust the memory or the stack when it is loaded."""


class BadValue(yaml.YAMLError):  # type: ignore[misc]
    """A value that does not match its form or its tag: the 13th month, `!!int many`."""


@contextmanager
def constructor_errors() -> Iterator[None]:
    """Convert the built-in errors that PyYAML's constructors raise to `BadValue`."""
    try:
        yield
    except (yaml.YAMLError, OmegaConfBaseException, UnicodeError):
        raise
    except (ValueError, KeyError, AttributeError, TypeError, ArithmeticError) as error:
        # SafeConstructor.construct_yaml_bool looks `!!bool` up in a table.
        reason = "it is not a truth value" if isinstance(error, KeyError) else str(error)
        raise BadValue(f"a value cannot be read: {reason}") from None


def read_yaml_text(stream: IO[bytes]) -> str:
    """Return the text of a YAML file of at most `LARGEST` bytes that `check_expanded_size` accepts;
    raise a YAMLError or, if it is not UTF-8, a UnicodeDecodeError."""
    content = stream.read(LARGEST + 1)
    if len(content) > LARGEST:
        raise TooLarge(f"it has more than {LARGEST >> 20} MB")
    text = content.decode("utf-8")
    check_expanded_size(text)
    return text


def check_expanded_size(text: str) -> None:
    """Count the values of a YAML text with its aliases expanded, without building them; raise
    `TooLarge` if it has more than `NODES` values or `DEPTH` levels, or a recursive alias."""
    sizes: dict[str, int] = {}  # values under each anchor
    open_nodes: list[tuple[str | None, int]] = [(None, 0)]

    def add(count: int, *, anchor: str | None = None) -> None:
        parent, size = open_nodes[-1]
        if size + count > NODES:
            raise TooLarge(f"it expands to more than {NODES:,} values")
        open_nodes[-1] = parent, size + count
        if anchor is not None:
            sizes[anchor] = count

    events: Iterator[yaml.Event] = yaml.parse(text, Loader=yaml.SafeLoader)
    for event in events:
        if isinstance(event, yaml.CollectionStartEvent):
            open_nodes.append((event.anchor, 1))
            if len(open_nodes) > DEPTH:
                raise TooLarge(f"it is nested more than {DEPTH} levels deep")
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, size = open_nodes.pop()
            add(size, anchor=anchor)
        elif isinstance(event, yaml.ScalarEvent):
            add(1, anchor=event.anchor)
        elif isinstance(event, yaml.AliasEvent):
            if event.anchor in [anchor for anchor, _ in open_nodes]:
                raise TooLarge(f"*{event.anchor} contains itself")
            add(sizes.get(event.anchor, 1))
