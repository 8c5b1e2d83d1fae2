"""Pages in Chromium, without a network."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
]


@contextmanager
def chromium() -> Iterator[Any]:
    """Chromium as the system has it, with an empty profile of its own."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs Playwright's client: pip install playwright")
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if path is None:
        pytest.skip("no Chromium here: apt-get install chromium")
    with playwright.sync_playwright() as client:
        browser = client.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


class Opened:
    """A page in the browser; what it logs, asks for and throws is kept."""

    def __init__(self, browser: Any, path: Path, **context: Any) -> None:
        self.context = browser.new_context(viewport={"width": 1280, "height": 900}, **context)
        self.page = self.context.new_page()
        self.troubles: list[str] = []
        self.page.on("console", lambda message: self.troubles.append(message.text))
        self.page.on("pageerror", lambda error: self.troubles.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.troubles.append(dialog.message), dialog.dismiss()))
        self.page.on("request", lambda asked: asked.url == path.as_uri() or self.troubles.append(asked.url))
        self.page.goto(path.as_uri())
        self.page.wait_for_function("() => document.documentElement.dataset.drawn", timeout=60_000)

    def column(self, table: str, n: int) -> list[str]:
        """Texts of a column of a table's rows that are seen."""
        return self.page.locator(f"#{table} tbody tr:not([hidden])").evaluate_all(
            "(rows, n) => rows.map((row) => row.children[n].textContent)", n
        )

    def place(self, chart: str, x: float, y: float) -> tuple[float, float]:
        """The point of the window at fractions of a chart's plot."""
        self.page.locator(chart).scroll_into_view_if_needed()
        box = self.page.locator(f"{chart} svg").bounding_box()
        return box["x"] + x * box["width"], box["y"] + y * box["height"]

    def point(self, chart: str, x: float) -> tuple[float, float]:
        """Move the pointer down the chart to the first thing that it reads; returns where."""
        for y in np.linspace(0.08, 0.9, 40):
            self.page.mouse.move(*self.place(chart, x, float(y)))
            if self.page.locator("#tip").is_visible():
                return self.place(chart, x, float(y))
        raise AssertionError(f"nothing to read in {chart}")
