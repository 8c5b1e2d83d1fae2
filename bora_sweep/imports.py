"""Imports of large packages, sooner done."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


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
