"""Read YAML from untrusted files: plain data only, with limits on size, depth and aliases."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

import yaml
from omegaconf.errors import OmegaConfBaseException

LARGEST = 1 << 20  # bytes of a file
NODES = 100_000  # values of a file, with every alias expanded
DEPTH = 50  # levels of lists and mappings


class TooLarge(yaml.YAMLError):  # type: ignore[misc]
    """A file that would exhaust the memory or the stack when it is loaded."""


class BadValue(yaml.YAMLError):  # type: ignore[misc]
    """A value that does not match its form or its tag: the 13th month, `!!int many`."""


@contextmanager
def constructing() -> Iterator[None]:
    """Convert errors of PyYAML's constructors, which raise Python's built-in ones.

    Raises:
        BadValue: if a constructor raises such an error.
    """
    try:
        yield
    except (yaml.YAMLError, OmegaConfBaseException, UnicodeError):
        raise
    except (ValueError, KeyError, AttributeError, TypeError, ArithmeticError) as error:
        reason = "it is no truth value" if isinstance(error, KeyError) else str(error)
        raise BadValue(f"a value cannot be read: {reason}") from None


def plain_text(stream: IO[bytes]) -> str:
    """Return the text of a YAML file after checking it with `refuse_bomb`.

    Raises:
        TooLarge: if `refuse_bomb` raises it, or the file has more than `LARGEST` bytes.
        UnicodeDecodeError: if it is not UTF-8.
        yaml.YAMLError: if it is not YAML.
    """
    content = stream.read(LARGEST + 1)
    if len(content) > LARGEST:
        raise TooLarge(f"it has more than {LARGEST >> 20} MB")
    text = content.decode("utf-8")
    refuse_bomb(text)
    return text


def refuse_bomb(text: str) -> None:
    """Count the values of a YAML text with its aliases expanded, without building them.

    Raises:
        TooLarge: if it has more than `NODES` values or `DEPTH` levels, or a recursive alias.
        yaml.YAMLError: if it is not YAML.
    """
    sizes: dict[str, int] = {}
    open_nodes: list[tuple[str | None, int]] = [(None, 0)]

    def add(count: int) -> None:
        anchor, size = open_nodes[-1]
        if size + count > NODES:
            raise TooLarge(f"it unfolds to more than {NODES:,} values")
        open_nodes[-1] = anchor, size + count

    for event in _events(text):
        if isinstance(event, yaml.CollectionStartEvent):
            open_nodes.append((event.anchor, 1))
            if len(open_nodes) > DEPTH:
                raise TooLarge(f"it is nested more than {DEPTH} levels deep")
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, size = open_nodes.pop()
            add(size)
            if anchor is not None:
                sizes[anchor] = size
        elif isinstance(event, yaml.ScalarEvent):
            add(1)
            if event.anchor is not None:
                sizes[event.anchor] = 1
        elif isinstance(event, yaml.AliasEvent):
            if event.anchor in [anchor for anchor, _ in open_nodes]:
                raise TooLarge(f"*{event.anchor} stands inside what it stands for")
            add(sizes.get(event.anchor, 1))


def _events(text: str) -> Iterator[yaml.Event]:
    events: Iterator[Any] = yaml.parse(text, Loader=yaml.SafeLoader)
    return events
