"""Exit code of a command, and the sentence for an expected error."""

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

# torch raises a RuntimeError, of which its CUDA one is a subclass, where memory runs out.
_NO_MEMORY = re.compile(r"can't allocate memory|out of memory", re.IGNORECASE)


def run_command(work: Callable[[], None], *, goes_on: bool = True) -> int:
    """Do `work`, with stdout and stderr that show any text safely; returns the exit code.

    2 for a mistake that the user can mend, 1 for a disk that did not take a write, memory that ran
    out or a process of the run that was lost, 128 + n where signal n asked for the end. Anything
    else raises.

    Args:
        goes_on: whether the same command, started again, finds what this one has done.
    """
    with safe_streams():
        try:
            with handled(), ending_with_launcher():
                if (sentence := _lost_folder()) is not None:
                    raise UserError(sentence)
                work()
                sys.stdout.flush()  # while what it raises is still said in a sentence
        except UserError as error:
            return _say(f"error: {error}", 2)
        except Interrupted as stop:
            return _say(str(stop) if goes_on else stop.ended, stop.exit_code)
        except (OSError, RuntimeError, MemoryError) as error:
            if (sentence := _reason(error)) is None:
                raise
            return _say(f"error: {sentence}", 1)
    return 0


def _reason(error: OSError | RuntimeError | MemoryError) -> str | None:
    """The sentence for what the machine lacks; None where the error says nothing of the kind."""
    if isinstance(error, OSError):
        return (_lost_folder() if error.errno == errno.ENOENT else None) or describe_os_error(error)
    first = next(iter(str(error).splitlines()), "")[:120]
    if isinstance(error, MemoryError) or _NO_MEMORY.search(first):
        detail = f" ({first})" if first else ""
        return (
            f"memory ran out{detail}; what was saved before is complete: free memory, or lower "
            "per_device_train_batch_size or max_length, and start the same command again"
        )
    # What a collective raises when the other end is gone.
    return f"{peer} ({first})" if (peer := lost_peer()) is not None else None


def _lost_folder() -> str | None:
    """The sentence for a working directory that is gone: relative paths and libraries need one."""
    try:
        os.getcwd()
    except OSError as error:
        return (
            f"the working directory cannot be read ({error.strerror}): it was removed, or this "
            "user may not enter it; change to another folder (cd) and start the command there"
        )
    return None


def _say(sentence: str, code: int) -> int:
    # On a line of its own, below a progress bar that was cut off.
    print(f"\n{in_one_piece(sentence)}", file=sys.stderr, flush=True)
    return code
