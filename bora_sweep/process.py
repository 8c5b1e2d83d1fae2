"""This process: orderly stops by a signal, and imports of large packages."""

import gc
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module


@contextmanager
def gc_paused() -> Iterator[None]:
    """Within, Python does not look for garbage.

    torch and Transformers make some hundred thousand objects when they are imported, all of which stay: to go through
    them again and again is a seventh of what their import takes.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def import_matplotlib() -> None:
    """Import matplotlib also where the user's settings of it are broken: it then goes by its own.

    It reads them when it is imported, and ends there at a backend that is not installed here (a notebook leaves
    `MPLBACKEND` to what it starts) and at a file that is no text. Our figures need neither.
    """
    try:
        import_module("matplotlib")
    except (ValueError, OSError):
        for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
            del sys.modules[name]  # what was imported before it ended
        with _environment_without("MPLBACKEND", MATPLOTLIBRC=os.devnull):
            import_module("matplotlib")


@contextmanager
def _environment_without(*names: str, **values: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in (*names, *values)}
    for name in names:
        os.environ.pop(name, None)
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


SIGNALS = (signal.SIGINT, signal.SIGTERM)
ECHO = 1.0
"""Seconds: a terminal's Ctrl-C reaches a launcher and the processes that it launched, and it passes it on to them."""


class Interrupted(KeyboardInterrupt):
    """Asked to stop; raised where a fit stands between two steps."""


@contextmanager
def defer_signals(on_signal: Callable[[], None] = lambda: None) -> Iterator[Callable[[], None]]:
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

    def check_stop() -> None:
        if noted_at is not None:
            raise Interrupted

    try:
        before = {number: signal.signal(number, note) for number in SIGNALS}
    except ValueError:  # not in the main thread, where signals do not arrive
        yield check_stop
        return
    try:
        yield check_stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
