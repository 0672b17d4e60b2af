"""Code that came with a model or a task, ended when it does not end by itself."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def cpu_seconds(limit: float) -> Iterator[None]:
    """Raise TimeoutError in what takes more than `limit` seconds of this process's own time.

    Python code alone can be interrupted so, and in the main thread alone; elsewhere nothing is
    limited. Of limits inside each other the innermost counts.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(signum: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"it took more than {limit:g} seconds")

    before = signal.signal(signal.SIGVTALRM, end)
    signal.setitimer(signal.ITIMER_VIRTUAL, limit)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
