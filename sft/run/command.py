"""Exit code of a command, and the sentence for an expected error."""

import argparse
import errno
import os
import re
import sys
from collections.abc import Callable

from sft.distributed.watchdog import ending_with_launcher, lost_peer
from sft.errors import UserError
from sft.run.terminal import in_one_piece, safe_streams
from sft.system.atomic_files import describe_os_error
from sft.system.signals import Interrupted, handled

# torch raises a RuntimeError when memory runs out (torch.OutOfMemoryError is a subclass).
_NO_MEMORY = re.compile(r"can't allocate memory|out of memory", re.IGNORECASE)


def command_parser(description: str | None, *, preset: bool = False) -> argparse.ArgumentParser:
    """Return a parser that prints a script's docstring as written; `preset` adds a preset and its
    overrides."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    if preset:
        parser.add_argument("preset", help="a YAML file")
        parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    return parser


def run_command(work: Callable[[], object], *, resumable: bool = True) -> int:
    """Run `work` with safe output streams; return the exit code. Unexpected errors are raised.

    Args:
        resumable: whether the same command, started again, continues the work.

    Returns:
        0; 2 for a mistake that the user can correct; 1 for a failed write, memory that ran out or a
        lost process; 128 + n after signal n.
    """
    with safe_streams():
        try:
            with handled(), ending_with_launcher():
                if (sentence := _lost_folder()) is not None:
                    raise UserError(sentence)
                work()
                sys.stdout.flush()  # here, so that its errors are reported as a sentence
        except UserError as error:
            return _report(f"error: {error}", 2)
        except Interrupted as stop:
            return _report(str(stop) if resumable else stop.ended, stop.exit_code)
        except (OSError, RuntimeError, MemoryError) as error:
            if (sentence := _reason(error)) is None:
                raise
            return _report(f"error: {sentence}", 1)
    return 0


def _reason(error: OSError | RuntimeError | MemoryError) -> str | None:
    """Return the sentence for an error of the machine; None for any other error."""
    if isinstance(error, OSError):
        return (_lost_folder() if error.errno == errno.ENOENT else None) or describe_os_error(error)
    first = next(iter(str(error).splitlines()), "")[:120]
    if isinstance(error, MemoryError) or _NO_MEMORY.search(first):
        detail = f" ({first})" if first else ""
        return (
            f"memory ran out{detail}; what was saved before is complete: free memory, or lower "
            "per_device_train_batch_size or max_length, and start the same command again"
        )
    # A collective raises a RuntimeError when another process is gone.
    return f"{peer} ({first})" if (peer := lost_peer()) is not None else None


def _lost_folder() -> str | None:
    """Return the sentence for a working directory that is gone; None where there is one."""
    try:
        os.getcwd()
    except OSError as error:
        return (
            f"the working directory cannot be read ({error.strerror}): it was removed, or this "
            "user may not enter it; change to another folder (cd) and start the command there"
        )
    return None


def _report(sentence: str, code: int) -> int:
    # On a new line, below a progress bar that was interrupted.
    print(f"\n{in_one_piece(sentence)}", file=sys.stderr, flush=True)
    return code
