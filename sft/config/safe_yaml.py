"""YAML from anyone: plain data, and no larger when it is unfolded than when it is read."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

import yaml
from omegaconf.errors import OmegaConfBaseException

LARGEST = 1 << 20  # bytes of a file
NODES = 100_000  # values of a file, every alias counted with all that it stands for
DEPTH = 50  # levels of lists and mappings


class TooLarge(yaml.YAMLError):
    """A file that would take the memory, or the stack, of whoever reads it."""


class BadValue(yaml.YAMLError):
    """A value that is not what its form or its tag says: the 13th month, `!!int many`."""


@contextmanager
def constructing() -> Iterator[None]:
    """Around what loads YAML: constructors of PyYAML let Python's own errors through.

    Raises:
        BadValue: for such an error.
    """
    try:
        yield
    except (yaml.YAMLError, OmegaConfBaseException, UnicodeError):
        raise
    except (ValueError, KeyError, AttributeError, TypeError, ArithmeticError) as error:
        reason = "it is no truth value" if isinstance(error, KeyError) else str(error)
        raise BadValue(f"a value cannot be read: {reason}") from None


def plain_text(stream: IO[bytes]) -> str:
    """The text of a YAML file that `refuse_bomb` does not refuse.

    Raises:
        TooLarge: see there, or a file of more than `LARGEST` bytes.
        UnicodeDecodeError: it is not UTF-8.
        yaml.YAMLError: it is no YAML.
    """
    content = stream.read(LARGEST + 1)
    if len(content) > LARGEST:
        raise TooLarge(f"it has more than {LARGEST >> 20} MB")
    text = content.decode("utf-8")
    refuse_bomb(text)
    return text


def refuse_bomb(text: str) -> None:
    """Count what a YAML text would become, without building it.

    Raises:
        TooLarge: more than `NODES` values or `DEPTH` levels, or an alias inside what it stands for.
        yaml.YAMLError: it is no YAML.
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
    return yaml.parse(text, Loader=yaml.SafeLoader)
