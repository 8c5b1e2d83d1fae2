"""Stopping in order: a signal is noted, and the fit is told between two steps, when a checkpoint can be written."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(KeyboardInterrupt):
    """Asked to stop; raised where a fit stands between two steps."""


@contextmanager
def noting_signals(on_signal: Callable[[], None] = lambda: None) -> Iterator[Callable[[], None]]:
    """Within, Ctrl-C and SIGTERM (a spot machine's notice) are noted; a second one interrupts at once.

    Args:
        on_signal: Called when the first arrives.

    Yields:
        A function that raises `Interrupted` once a signal has been noted.
    """
    noted = False

    def note(*_: object) -> None:
        nonlocal noted
        if noted:
            raise KeyboardInterrupt
        noted = True
        on_signal()

    def pulse() -> None:
        if noted:
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
