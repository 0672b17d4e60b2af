"""Fork worker processes that ignore the signals of a run and exit with their parent."""

import multiprocessing
import os
import signal
import threading
import time
from multiprocessing.context import ForkContext, ForkProcess

from sft.system.signals import HANDLED


class _Worker(ForkProcess):
    # A terminal or scheduler signals all processes of a run, which would end the worker during the
    # parent's step. Blocked, not ignored: torch's data loader workers install their own handlers.
    def start(self) -> None:
        self.parent = os.getpid()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED)
        try:
            super().start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def run(self) -> None:
        signal.set_wakeup_fd(-1)  # inherited: the parent would count signals that arrive here
        threading.Thread(target=self._end_with_parent, daemon=True).start()
        super().run()

    def _end_with_parent(self) -> None:
        # A waiting pool does not notice the parent's end, nor does a worker of torch 2.11's data
        # loader that starts to watch its parent after it.
        while os.getppid() == self.parent:
            time.sleep(0.5)
        os._exit(1)


class Workers(ForkContext):
    """A `multiprocessing` context that forks such workers."""

    Process = _Worker


def forks_by_default() -> bool:
    """Whether libraries fork their workers on this platform; on a Mac, forking is not safe."""
    return multiprocessing.get_start_method() == "fork"
