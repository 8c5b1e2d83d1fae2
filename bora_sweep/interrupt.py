"""Stopping in order: a signal is noted, and the fit is told between two steps, when a checkpoint can be written."""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

SIGNALS = (signal.SIGINT, signal.SIGTERM)
ECHO = 1.0
"""Seconds: a terminal's Ctrl-C reaches a launcher and the processes that it launched, and it passes it on to them."""


class Interrupted(KeyboardInterrupt):
    """Asked to stop; raised where a fit stands between two steps."""


@contextmanager
def noting_signals(on_signal: Callable[[], None] = lambda: None) -> Iterator[Callable[[], None]]:
    """Within, Ctrl-C and SIGTERM (a spot machine's notice) are noted; a second one, later, interrupts at once.

    Args:
        on_signal: Called when the first arrives.

    Yields:
        A function that raises `Interrupted` once a signal has been noted.
    """
    noted_at: float | None = None

    def note(*_: object) -> None:
        nonlocal noted_at
        if noted_at is not None:
            if time.monotonic() - noted_at > ECHO:
                raise KeyboardInterrupt
            return
        noted_at = time.monotonic()
        on_signal()

    def pulse() -> None:
        if noted_at is not None:
            raise Interrupted

    try:
        before = {number: signal.signal(number, note) for number in SIGNALS}
    except ValueError:  # not in the main thread, where signals do not arrive
        yield pulse
        return
    try:
        yield pulse
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
