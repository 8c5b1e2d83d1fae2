"""Where a run tells its user what happens: a console, the logger `bora_sweep`, and in a notebook one output.

What is printed on a `LoggedConsole` is logged too, at `INFO`, notes at `WARNING` and errors at `ERROR`, also where the
console is quiet. The package adds no handler that prints, so that nothing is said twice unless a program asks for it.
"""

import io
import logging
import time
from importlib import import_module
from typing import Any

from rich.console import Console, RenderableType
from rich.text import Text

from bora_sweep.errors import redact

LOGGER = logging.getLogger("bora_sweep")
LEVELS = {"[bold red]": logging.ERROR, "[red]": logging.WARNING, "[yellow]": logging.WARNING}
"""Of a line with such markup; else `INFO`."""
REFRESH_SECONDS = 0.25


class LoggedConsole(Console):
    """A console whose lines are logged."""

    def print(self, *objects: Any, **options: Any) -> None:
        """Print; text is logged, tables and bars are not."""
        for text in objects:
            if isinstance(text, str):
                log(text)
        super().print(*objects, **options)


def log(markup: str) -> None:
    """Log a line of rich's markup as plain text, without secrets."""
    level = next((level for mark, level in LEVELS.items() if mark in markup), logging.INFO)
    LOGGER.log(level, "%s", redact(Text.from_markup(markup).plain.strip()))


class NotebookOutput:
    """One output of a notebook's cell, which changes in place. It exists once something is shown."""

    def __init__(self) -> None:
        self._handle: Any = None
        self._shown_at = 0.0

    def show(self, html: str, text: str, *, at_once: bool = False) -> None:
        """Show HTML, and `text` where that cannot be shown; nothing soon after the last time unless `at_once`."""
        now = time.monotonic()
        if not at_once and now - self._shown_at < REFRESH_SECONDS:
            return
        self._shown_at, shown = now, {"text/html": html, "text/plain": text}
        if self._handle is None:
            self._handle = import_module("IPython.display").display(shown, raw=True, display_id=True)
        else:
            self._handle.update(shown, raw=True)


def as_html(rendered: RenderableType, width: int = 110) -> tuple[str, str]:
    """HTML and text of what rich can show."""
    console = Console(record=True, width=width, file=io.StringIO(), force_jupyter=False)
    console.print(rendered)
    text = console.export_text(clear=False)
    return console.export_html(inline_styles=True, code_format='<pre style="line-height: 1.2">{code}</pre>'), text
