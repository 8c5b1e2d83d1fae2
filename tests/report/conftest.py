"""Fixtures of the report's tests."""

import pytest


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are made, but not rendered: for tests of words and numbers."""
    from bora_sweep.report import write
    from bora_sweep.report.paper import markdown

    for module in (write, markdown):
        monkeypatch.setattr(module, "render", lambda _: (b"", b""))
