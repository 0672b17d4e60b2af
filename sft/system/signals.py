"""SIGTERM, SIGINT, SIGUSR1, SIGHUP: the first ends the run at the next step, the second at once.

While a stage trains, a signal is only noted; the trainer saves a checkpoint behind the step and
ends. Everywhere else there is nothing to save, and `Interrupted` is raised where it arrives.

SIGHUP comes from a terminal that was closed. Writing to that terminal fails from then on, so what
would be written there is dropped. Where SIGHUP is ignored at the start (`nohup`), it stays ignored.
torch's launcher of several processes does not ignore it even then (torch 2.11): it passes SIGHUP
on, and ends processes that do not end by themselves.
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
# torch's launcher passes on what a scheduler has sent to all processes already: one request.
ECHO = 2.0
LOST = 10.0  # seconds that a first signal has to be noted and to end what goes on


class Interrupted(BaseException):
    """A signal asked the run to end. Not an Exception, so that nothing upstream swallows it."""

    def __init__(self, signum: int, *, saved: str = "") -> None:
        name = signal.Signals(signum).name
        self.ended = f"stopped by {name}{saved}"
        super().__init__(f"{self.ended}; the same command goes on from there")
        self.exit_code = 128 + signum


@dataclass
class _Requests:
    """What has arrived in this process."""

    first: int = 0
    deferred: bool = False  # whether the trainer looks for it at the end of its step
    raised: bool = False  # whether it became an exception where it arrived
    between: bool = False  # whether it is to become one where `check_interrupt` is called
    echo: float = field(default_factory=lambda: ECHO if "TORCHELASTIC_RUN_ID" in os.environ else 0)


_requests = _Requests()


def requested() -> int:
    """The signal that asked for the end, or 0."""
    return _requests.first


@contextmanager
def handled() -> Iterator[None]:
    """Handle the signals for the time of a command; elsewhere than in the main thread, where Python
    handles none, leave them as they are."""
    global _requests
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _requests = _Requests()
    before = {number: signal.signal(number, _note) for number in HANDLED if not _is_nohup(number)}
    # The handlers wait for the main thread, which may be in a long call; the second signal must
    # not. What the system writes here, it writes when the signal arrives.
    listen, send = socket.socketpair()
    send.setblocking(False)
    hook = sys.unraisablehook
    sys.unraisablehook = partial(_lost, otherwise=hook)
    old = signal.set_wakeup_fd(send.fileno(), warn_on_full_buffer=False)
    threading.Thread(target=_end_at_once, args=(listen,), daemon=True).start()
    try:
        yield
    except Exception as error:
        # Raised in the middle of anything, it may come out as what that made of it.
        if not _requests.raised:
            raise
        raise Interrupted(_requests.first) from error
    finally:
        signal.set_wakeup_fd(old)
        sys.unraisablehook = hook
        send.close()  # which ends the thread
        for number, handler in before.items():
            signal.signal(number, handler)
        _requests = _Requests()


@contextmanager
def at_next_step() -> Iterator[None]:
    """Signals are only noted in here; whoever trains asks `requested`."""
    _requests.deferred = True
    try:
        yield
    finally:
        _requests.deferred = False


@contextmanager
def interruptible(*, at_once: bool = True) -> Iterator[None]:
    """Within `at_next_step`, around what may be left in the middle: a signal ends the block, and
    nothing else, where it arrives, or at the start if it has already; `requested` tells. With
    `at_once` false it ends the block at its next call of `check_interrupt`."""
    _requests.deferred = _requests.between = not at_once
    try:
        if _requests.first:
            raise Interrupted(_requests.first)
        yield
    except Interrupted:
        pass
    except Exception:  # see `handled`
        if not _requests.raised:
            raise
    finally:
        _requests.raised, _requests.deferred, _requests.between = False, True, False


def check_interrupt() -> None:
    """Where a block of `interruptible(at_once=False)` can be left."""
    if _requests.between and _requests.first:
        raise Interrupted(_requests.first)


def _is_nohup(number: int) -> bool:
    return number == signal.SIGHUP and signal.getsignal(number) is signal.SIG_IGN


def _note(signum: int, frame: FrameType | None) -> None:
    if _requests.first:
        return
    _requests.first = signum
    _drop_closed(dict(_outputs().poll(0)))
    if not _requests.deferred:
        _requests.raised = True
        raise Interrupted(signum)
    with suppress(OSError):  # closed since
        print(
            f"\n{signal.Signals(signum).name}: saving a checkpoint after this step; again: at once",
            file=sys.stderr,
            flush=True,
        )


def _outputs() -> select.poll:
    """What reports that stdout or stderr was closed at its other end, and nothing else."""
    poll = select.poll()
    for number in OUTPUTS:
        poll.register(number, 0)
    return poll


def _drop_closed(found: dict[int, int]) -> None:
    """Drop from now on what is written to a closed terminal or to a pipe without a reader: writing
    there raises OSError, which would end a step before its checkpoint.

    Args:
        found: what `poll` has reported, by file descriptor.
    """
    for number in OUTPUTS:
        if found.get(number, 0) & (select.POLLERR | select.POLLHUP):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, number)
            os.close(nowhere)


def _lost(
    unraisable: "sys.UnraisableHookArgs", *, otherwise: Callable[["sys.UnraisableHookArgs"], Any]
) -> None:
    """Raised in a destructor, the exception goes no further: the process ends there, which leaves
    what a kill leaves."""
    if not isinstance(unraisable.exc_value, Interrupted):
        otherwise(unraisable)
        return
    print(f"\n{unraisable.exc_value}", file=sys.stderr, flush=True)
    os._exit(unraisable.exc_value.exit_code)


def _end_at_once(listen: socket.socket) -> None:
    """Wait for a second signal; end the process on it, whatever the main thread does. And on the
    first, where nobody trains and a long call keeps the main thread from noting it."""
    first, since = 0, 0.0
    poll = select.poll()
    poll.register(listen, select.POLLIN)
    with listen:
        while True:
            found = dict(poll.poll(LOST * 1000 if first else None))
            if not found and not _requests.deferred:
                # Not `_requests.first`: a main thread in a long call has not noted it yet.
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
    """Say what ended the process, then end it. Straight to the system: the main thread may hold
    the lock of `sys.stderr`."""
    stop = Interrupted(signum)
    with suppress(OSError):  # nobody reads any more
        os.write(2, f"\n{stop}\n".encode())
    os._exit(stop.exit_code)
