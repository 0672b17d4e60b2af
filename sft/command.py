"""How a command writes and ends: 0, or one sentence and an exit code that says whose turn it is."""

import codecs
import io
import sys
from collections.abc import Callable

from sft.config import UserError
from sft.processes import lost_peer
from sft.secret import hidden
from sft.signals import Interrupted, handled
from sft.storage import fault


def run_command(work: Callable[[], None], *, goes_on: bool = True) -> int:
    """Do `work`, whatever the encoding of stdout; returns the exit code.

    2 for a mistake that the user can mend, 1 for a disk that did not take a write or a process of
    the run that was lost, 128 + n where signal n asked for the end. Anything else raises.

    Args:
        goes_on: whether the same command, started again, finds what this one has done.
    """
    write_any_text()
    try:
        with handled():
            work()
    except UserError as error:
        return _say(f"error: {error}", 2)
    except Interrupted as stop:
        return _say(str(stop) if goes_on else stop.ended, stop.exit_code)
    except OSError as error:
        if (sentence := fault(error)) is None:
            raise
        return _say(f"error: {sentence}", 1)
    except RuntimeError as error:  # what a collective raises when the other end is gone
        if (sentence := lost_peer()) is None:
            raise
        return _say(f"error: {sentence} ({str(error).splitlines()[0][:120]})", 1)
    return 0


def write_any_text() -> None:
    """Let stdout and stderr take any text in any encoding, that of a locale such as C or Latin-1
    too; see `_shown`."""
    codecs.register_error("truing", _shown)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="truing")


# Signs of our own tables and lines in ASCII.
IN_ASCII = str.maketrans(
    {"⟦": "[[", "⟧": "]]", "→": "->", "–": "-", "−": "-", "…": "...", "×": "x", "±": "+-"}
)


def _shown(error: UnicodeError) -> tuple[str | bytes, int]:
    """What stands in an output for characters that its encoding lacks: our own signs in ASCII, any
    other as its escape (\\u4f60)."""
    assert isinstance(error, UnicodeEncodeError)
    lacking = error.object[error.start : error.end].translate(IN_ASCII)
    return lacking.encode("ascii", "backslashreplace").decode(), error.end


def _say(sentence: str, code: int) -> int:
    # On a line of its own, below a progress bar that was cut off.
    print(f"\n{hidden(sentence)}", file=sys.stderr, flush=True)
    return code
