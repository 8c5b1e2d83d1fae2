"""What a Python process needs around its work: imports of large packages, and an orderly stop by a signal."""

import gc
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module

SIGNALS = (signal.SIGINT, signal.SIGTERM)
ECHO_SECONDS = 1.0
"""A launcher passes Ctrl-C on to its processes, which have already received it. Such an echo is ignored."""


@contextmanager
def gc_paused() -> Iterator[None]:
    """Pause the garbage collector.

    The imports of torch and Transformers create some hundred thousand objects that all stay. Searching them again and
    again takes a seventh of the time of these imports.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def import_matplotlib() -> None:
    """Import matplotlib, and without the user's settings where these are broken.

    The import fails if `MPLBACKEND` names a backend that is not installed, which a notebook may leave in the
    environment, and if the settings file is not text. Our figures need neither.
    """
    try:
        import_module("matplotlib")
    except (ValueError, OSError):
        for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
            del sys.modules[name]  # modules that were imported before the error
        with _environment(without=("MPLBACKEND",), MATPLOTLIBRC=os.devnull):
            import_module("matplotlib")


@contextmanager
def _environment(*, without: tuple[str, ...], **values: str) -> Iterator[None]:
    """Set environment variables, remove those in `without`, and restore all afterwards."""
    before = {name: os.environ.get(name) for name in (*without, *values)}
    for name in without:
        os.environ.pop(name, None)
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


class Interrupted(KeyboardInterrupt):
    """A signal asked the process to stop. It is raised between two steps of a fit."""


@contextmanager
def defer_signals(on_signal: Callable[[], None] = lambda: None) -> Iterator[Callable[[], None]]:
    """Record Ctrl-C and SIGTERM (the notice of a spot machine) instead of stopping; a second signal stops at once.

    Args:
        on_signal: Called when the first signal arrives.

    Yields:
        A function that raises `Interrupted` once a signal has been recorded.
    """
    signalled_at: float | None = None

    def record(*_: object) -> None:
        nonlocal signalled_at
        if signalled_at is not None:
            if time.monotonic() - signalled_at > ECHO_SECONDS:
                raise KeyboardInterrupt
            return
        signalled_at = time.monotonic()
        on_signal()

    def check_stop() -> None:
        if signalled_at is not None:
            raise Interrupted

    try:
        before = {number: signal.signal(number, record) for number in SIGNALS}
    except ValueError:  # only the main thread may handle signals
        yield check_stop
        return
    try:
        yield check_stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
