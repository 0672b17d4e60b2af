"""Handlers for SIGTERM, SIGINT, SIGUSR1 and SIGHUP: the first ends the run, the second at once.

While a stage trains, the first signal is recorded; the trainer saves a checkpoint after the step
and ends. Elsewhere there is nothing to save, and `Interrupted` is raised where the signal arrives.

SIGHUP comes from a closed terminal. Writing there fails from then on, so output is redirected to
/dev/null. If SIGHUP is ignored at the start (`nohup`), it stays ignored here; torch's launcher of
several processes passes it on regardless and kills processes that do not end (torch 2.11).
"""

import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from types import FrameType
from typing import Any, NoReturn

HANDLED = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)
OUTPUTS = (1, 2)  # file descriptors of stdout and stderr
# Seconds in which a second signal counts as the first one: torch's launcher passes on a signal that
# a scheduler has already sent to all processes.
ECHO = 2.0
GRACE = 10.0  # seconds for the main thread to handle the first signal


class Interrupted(BaseException):
    """A signal ended the run. A BaseException, so that libraries do not swallow it."""

    def __init__(self, signum: int, *, saved: str = "") -> None:
        name = signal.Signals(signum).name
        self.ended = f"stopped by {name}{saved}"
        super().__init__(f"{self.ended}; the same command continues from there")
        self.exit_code = 128 + signum


@dataclass
class _Requests:
    """The signals that this process has received."""

    first: int = 0
    deferred: bool = False  # the trainer checks at the end of its step
    raised: bool = False  # it became an exception where it arrived
    between: bool = False  # it becomes one in `check_interrupt`
    echo: float = field(default_factory=lambda: ECHO if "TORCHELASTIC_RUN_ID" in os.environ else 0)


_requests = _Requests()


def requested() -> int:
    """Return the signal that requested the end, or 0."""
    return _requests.first


@contextmanager
def handled() -> Iterator[None]:
    """Handle the signals during a command; does nothing outside the main thread."""
    global _requests
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _requests = _Requests()
    nohup = {signal.SIGHUP} if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else set()
    before = {number: signal.signal(number, _note) for number in HANDLED if number not in nohup}
    # Python runs handlers in the main thread, which may be in a long call. The system writes to
    # this socket as soon as a signal arrives.
    listen, send = socket.socketpair()
    send.setblocking(False)
    hook = sys.unraisablehook
    sys.unraisablehook = partial(_lost, otherwise=hook)
    old = signal.set_wakeup_fd(send.fileno(), warn_on_full_buffer=False)
    threading.Thread(target=_end_at_once, args=(listen,), daemon=True).start()
    try:
        yield
    except Exception as error:
        # Code that was interrupted may have converted `Interrupted` to another exception.
        if not _requests.raised:
            raise
        raise Interrupted(_requests.first) from error
    finally:
        signal.set_wakeup_fd(old)
        sys.unraisablehook = hook
        send.close()  # ends the thread
        for number, handler in before.items():
            signal.signal(number, handler)
        _requests = _Requests()


@contextmanager
def at_next_step() -> Iterator[None]:
    """Only record signals in this block; the trainer polls `requested`."""
    _requests.deferred = True
    try:
        yield
    finally:
        _requests.deferred = False


def run_until_signal(block: Callable[[], object], *, at_once: bool = True) -> None:
    """Within `at_next_step`, run `block`; a signal ends the block, but not the program.

    The block ends where the signal arrives, or does not start if the signal came earlier. With
    `at_once` false, it ends at its next call of `check_interrupt`.
    """
    _requests.deferred = _requests.between = not at_once
    try:
        if not _requests.first:
            block()
    except Interrupted:
        pass
    except Exception:  # see `handled`
        if not _requests.raised:
            raise
    finally:
        _requests.raised, _requests.deferred, _requests.between = False, True, False


def check_interrupt() -> None:
    """Raise `Interrupted` in `run_until_signal(block, at_once=False)` after a signal."""
    if _requests.between and _requests.first:
        raise Interrupted(_requests.first)


def _note(signum: int, frame: FrameType | None) -> None:
    if _requests.first:
        return
    _requests.first = signum
    _drop_closed(dict(_outputs().poll(0)))
    if not _requests.deferred:
        _requests.raised = True
        raise Interrupted(signum)
    name = signal.Signals(signum).name
    with suppress(OSError):  # closed meanwhile
        sys.stderr.write(f"\n{name}: saving a checkpoint after this step; again: at once\n")
        sys.stderr.flush()


def _outputs() -> select.poll:
    """Return a poll object that reports only that stdout or stderr was closed by its reader."""
    poll = select.poll()
    for number in OUTPUTS:
        poll.register(number, 0)
    return poll


def _drop_closed(found: dict[int, int]) -> None:
    """Redirect a closed stdout or stderr to /dev/null; `found` are poll events by file descriptor.

    Otherwise writing raises OSError, which would end a step before its checkpoint.
    """
    for number in OUTPUTS:
        if found.get(number, 0) & (select.POLLERR | select.POLLHUP):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, number)
            os.close(nowhere)


def _lost(
    unraisable: "sys.UnraisableHookArgs", *, otherwise: Callable[["sys.UnraisableHookArgs"], Any]
) -> None:
    """End the process for an `Interrupted` raised in a destructor, where it cannot propagate."""
    if not isinstance(unraisable.exc_value, Interrupted):
        otherwise(unraisable)
        return
    print(f"\n{unraisable.exc_value}", file=sys.stderr, flush=True)
    os._exit(unraisable.exc_value.exit_code)


def _end_at_once(listen: socket.socket) -> None:
    """End the process on a second signal, even if the main thread is blocked.

    On the first one, if no stage trains and a long call keeps the main thread from handling it.
    """
    first, since = 0, 0.0
    poll = select.poll()
    poll.register(listen, select.POLLIN)
    with listen:
        while True:
            found = dict(poll.poll(GRACE * 1000 if first else None))
            if not found and not _requests.deferred:
                # Not `_requests.first`, which a main thread in a long call has not set yet.
                _end(first)
            _drop_closed(found)
            if listen.fileno() not in found:
                continue
            received = listen.recv(1)
            if not received:
                return
            if received[0] not in HANDLED:
                continue
            now = time.monotonic()
            if first and now - since >= _requests.echo:
                _end(received[0])
            if not first:
                first, since = received[0], now
                poll = _outputs()
                poll.register(listen, select.POLLIN)


def _end(signum: int) -> NoReturn:
    """Print the reason and end the process."""
    stop = Interrupted(signum)
    with suppress(OSError):  # closed by its reader
        # Not through `sys.stderr`: the main thread may hold its lock.
        os.write(2, f"\n{stop}\n".encode())
    os._exit(stop.exit_code)
