"""Imports of large packages, sooner done, and done whatever the user's settings of them are."""

import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module


@contextmanager
def uncollected() -> Iterator[None]:
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
