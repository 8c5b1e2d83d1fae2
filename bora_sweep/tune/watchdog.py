"""What a worker process checks while it fits: whether the run is to stop, and whether its own fit hangs."""

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from bora_sweep.process import Interrupted
from bora_sweep.runs.requests import STOP_FILE, Poll, is_there
from bora_sweep.runs.storage import Folder


class StopCheck:
    """Called between any two steps: ends the fit where the run is to stop, and notes that the fit makes progress.

    Args:
        run: The run's folder, in which `STOP_FILE` means that all fits are to end.
    """

    def __init__(self, run: Folder) -> None:
        self.stop_file, self.poll, self.called_at = run / STOP_FILE, Poll(run), time.monotonic()

    def __call__(self) -> None:
        """Raises `Interrupted` where the run is to stop."""
        self.called_at = time.monotonic()
        if self.poll.is_due() and is_there(self.stop_file):
            raise Interrupted


@contextmanager
def watchdog(check_stop: StopCheck, timeout: float | None, on_hang: Callable[[str], None]) -> Iterator[None]:
    """Within, the process ends itself where `check_stop` is not called for `timeout` seconds.

    Args:
        check_stop: The fit calls it between any two steps.
        timeout: Seconds; None: no limit.
        on_hang: Called just before the process ends, with the line of code at which the fit hangs.
    """
    if timeout is None:
        yield
        return
    ended, thread_id = threading.Event(), threading.get_ident()

    def watch() -> None:
        while not ended.wait(min(1.0, timeout / 4)):
            if time.monotonic() - check_stop.called_at > timeout:
                frame = sys._current_frames().get(thread_id)
                place = "" if frame is None else f", at {frame.f_code.co_filename}:{frame.f_lineno}"
                try:
                    on_hang(f"no step for {timeout:g} s (ray.trial_timeout){place}")
                finally:
                    os._exit(1)

    thread = threading.Thread(target=watch, name="bora-sweep watchdog", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
