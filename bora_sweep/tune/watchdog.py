"""What a worker process listens to while it fits: the wish to stop, and its own watchdog."""

import math
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from bora_sweep.process import Interrupted
from bora_sweep.runs.storage import Folder

STOP = "stop"
"""A file in the run's folder: all that works on the run writes a checkpoint and ends."""
LOOK_SECONDS, LOOK_REMOTE_SECONDS = 0.2, 2.0


class StopCheck:
    """Called between any two steps: tells the watchdog that the fit lives, and the fit that it is to end.

    Args:
        run: The run's folder, in which a file `stop` means that all shall end.
    """

    def __init__(self, run: Folder) -> None:
        self.stop, self.looked_at, self.beat_at = run / STOP, -math.inf, time.monotonic()
        self.pause = LOOK_SECONDS if isinstance(run, Path) else LOOK_REMOTE_SECONDS

    def __call__(self) -> None:
        """Raises `Interrupted` where the run is to stop."""
        self.beat_at = time.monotonic()
        if self.beat_at - self.looked_at < self.pause:
            return
        self.looked_at = self.beat_at
        if self.is_stopped():
            raise Interrupted

    def is_stopped(self) -> bool:
        """Whether the file is there; not, where the storage does not answer."""
        try:
            return self.stop.exists()
        except Exception:  # each storage has its own for a lost connection; writing results will wait for it
            return False


@contextmanager
def watched(check_stop: StopCheck, timeout: float | None, on_hang: Callable[[str], None]) -> Iterator[None]:
    """Within, the process ends itself where `check_stop` is not called for `timeout` seconds.

    Args:
        check_stop: What the work calls.
        timeout: Seconds; None: for ever.
        on_hang: Called just before, with where the work stands.
    """
    if timeout is None:
        yield
        return
    ended, thread_id = threading.Event(), threading.get_ident()

    def watch() -> None:
        while not ended.wait(min(1.0, timeout / 4)):
            if time.monotonic() - check_stop.beat_at > timeout:
                frame = sys._current_frames().get(thread_id)
                place = "" if frame is None else f", at {frame.f_code.co_filename}:{frame.f_lineno}"
                try:
                    on_hang(f"no step for {timeout:g} s (ray.trial_timeout){place}")
                finally:
                    os._exit(1)

    watcher = threading.Thread(target=watch, name="bora-sweep watchdog", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()
