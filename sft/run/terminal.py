"""Text for the terminal: control characters shown as symbols, keys hidden, in any encoding.

Names, rows, templates, replies and error messages may contain escape sequences, which move the
cursor, hide lines or change the title of a terminal. Therefore stdout and stderr pass all text
through `safe`. Only `raw` bypasses it, for our own colors around text that is already `safe`.
"""

import codecs
import errno
import io
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO

from rich.console import Console
from rich.measure import Measurement
from rich.segment import Segment

from sft.config.secrets import mask_secrets

# Direction marks and overrides, line separators, a byte order mark, annotation marks.
_HIDDEN = (
    *(0x061C, 0x200E, 0x200F, *range(0x2028, 0x202F), *range(0x2066, 0x206A), 0xFEFF),
    *range(0xFFF9, 0xFFFC),
)
_VISIBLE: dict[int, str] = {
    **{code: chr(0x2400 + code) for code in range(32) if chr(code) not in "\t\n"},
    0x7F: "\u2421",
    **{
        code: f"\u2039U+{code:04X}\u203a"
        for code in (*range(0x80, 0xA0), *range(0xD800, 0xE000), *_HIDDEN)
    },
}
PAGE = 80  # the traditional width of a terminal
# Symbols of our tables and lines in ASCII.
_IN_ASCII = str.maketrans(
    {"⟦": "[[", "⟧": "]]", "→": "->", "–": "-", "−": "-", "…": "...", "×": "x", "±": "+-"}
)
# Control sequences of tqdm: return to the line's start, and move up between two bars.
_OF_A_BAR = re.compile(r"(?:\x1b\[A)+\Z|\r*")


def visible(text: str) -> str:
    """Replace control and direction characters and lone surrogates, but no tabs and line ends."""
    return text.translate(_VISIBLE)


def safe(text: str) -> str:
    """Return `visible` text without passwords and keys."""
    return visible(mask_secrets(text))


def in_one_piece(text: str) -> str:
    """Indent the further lines of a message, so that none looks like another message."""
    return "\n    ".join(text.strip("\n").split("\n"))


class SafeStream:
    """A wrapper of a text stream that passes each text through `safe`.

    When the reader is gone (`| head`, a closed terminal), further output is dropped and the work
    continues; so it is after any error of stderr. Other errors of stdout name "the output".
    """

    def __init__(self, stream: TextIO, *, errors: bool) -> None:
        self.stream = stream
        self._errors = errors  # whether this is stderr, to which progress bars are written

    def write(self, text: str) -> int:
        own = _OF_A_BAR.match(text) if self._errors else None
        kept = own.end() if own else 0
        with self._failing():
            self.stream.write(text[:kept] + safe(text[kept:]))
        return len(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        with self._failing():
            self.stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    @contextmanager
    def _failing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            # Python flushes the stream's buffer at exit, which would fail again.
            with suppress(OSError, ValueError):
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, self.stream.fileno())
                os.close(null)
            if not self._errors and error.errno not in (errno.EPIPE, errno.EIO):
                raise OSError(error.errno, error.strerror, "the output") from None


@contextmanager
def safe_streams() -> Iterator[None]:
    """Replace stdout and stderr by `SafeStream`s that encode any text.

    After an exception they stay replaced, since the traceback is written later.
    """
    codecs.register_error("truing", _shown)
    before = sys.stdout, sys.stderr
    for name, errors in (("stdout", False), ("stderr", True)):
        stream = getattr(sys, name) or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="truing")
        setattr(sys, name, SafeStream(raw(stream), errors=errors))
    yield
    sys.stdout, sys.stderr = before


def raw(stream: Any) -> Any:
    """Return the stream without the wrapper, for text that is already `safe`."""
    return stream.stream if isinstance(stream, SafeStream) else stream


class SafeConsole(Console):
    """A rich console for tables whose texts are `safe` and contain no markup."""

    def __init__(self, *, errors: bool = False) -> None:
        super().__init__(file=raw(sys.stderr if errors else sys.stdout), markup=False)

    def show(self, table: Any) -> None:
        """Print a table; if the terminal is too narrow, beyond its width, so that rich drops no
        column and wraps no cell below `PAGE` characters."""
        needed = Measurement.get(self, self.options.update(width=1_000), table)
        self.width = max(self.width, needed.minimum, min(needed.maximum, PAGE))
        self.print(table)

    def render(self, renderable: Any, options: Any = None) -> Iterator[Segment]:
        for text, style, control in super().render(renderable, options):
            yield Segment(text if control else safe(text), style, control)


def _shown(error: UnicodeError) -> tuple[str | bytes, int]:
    """Encode characters that an encoding lacks: our symbols in ASCII, others as \\u4f60."""
    assert isinstance(error, UnicodeEncodeError)
    lacking = error.object[error.start : error.end].translate(_IN_ASCII)
    return lacking.encode("ascii", "backslashreplace").decode(), error.end
