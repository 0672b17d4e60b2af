"""Forked worker processes that leave signals to their parent, and end when it does.

A terminal or a scheduler sends a signal to all processes of a run. In a worker it would end the
worker, which ends the step of the parent, or count as a second signal in the parent.
"""

import multiprocessing
import os
import signal
import threading
import time
from multiprocessing.context import ForkContext, ForkProcess

from sft.system.signals import HANDLED


class _Worker(ForkProcess):
    """The signals are blocked before the fork, and stay so in the worker: torch's worker of a data
    loader sets handlers of its own."""

    def start(self) -> None:
        self.parent = os.getpid()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED)
        try:
            super().start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def run(self) -> None:
        signal.set_wakeup_fd(-1)  # the parent's, which would count what arrives here
        threading.Thread(target=self._end_with_parent, daemon=True).start()
        super().run()

    def _end_with_parent(self) -> None:
        """End when the parent is gone: a pool that waits does not notice it, nor does a worker of a
        data loader that begins to watch its parent later than that (torch 2.11)."""
        while os.getppid() == self.parent:
            time.sleep(0.5)
        os._exit(1)


class Workers(ForkContext):
    """The start method `fork` with workers as above; a `multiprocessing` context."""

    Process = _Worker


def forks_by_default() -> bool:
    """Whether libraries fork their workers here, which is not safe on a Mac."""
    return multiprocessing.get_start_method() == "fork"
