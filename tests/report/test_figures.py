"""Figures are the same to the byte whatever the user's matplotlib is set to, and are drawn where it is set wrongly."""

import hashlib
import os
import subprocess
import sys

import pytest

DRAW = """
import hashlib, sys
import numpy as np
from bora_sweep.report import figures
assert "matplotlib.pyplot" not in sys.modules
@figures.plain_style()
def draw():
    return figures.by_size(np.array([3, 30, 300.0]), np.array([2, 20, 200.0]), "a $x$ _ %", None)
parts = figures.render(draw())
print(hashlib.sha256(b"".join(parts)).hexdigest())
"""
RC = """text.usetex: True
font.family: serif
lines.linewidth: 9
svg.fonttype: none
savefig.bbox: tight
axes.grid: True
"""
SETTINGS = {
    "none": {},
    "a backend that is not here": {"MPLBACKEND": "module://nowhere.backend_inline"},
    "a matplotlibrc": {"MATPLOTLIBRC": RC.encode()},
    "one that is no text": {"MATPLOTLIBRC": b"font.family: \xff\xfe\n"},
    "one with keys of another time": {"MATPLOTLIBRC": b"text.nothing: 3\nlines.linewidth: wide\n"},
    "warnings are errors": {"PYTHONWARNINGS": "error::UserWarning,error::DeprecationWarning:matplotlib"},
}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> dict[str, str]:
    """What each prints, all side by side."""
    folder = tmp_path_factory.mktemp("settings")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MPL", "MATPLOTLIB"))}
    started = {}
    for name, settings in SETTINGS.items():
        own = dict(settings)
        if isinstance(content := settings.get("MATPLOTLIBRC"), bytes):
            file = folder / hashlib.sha256(content).hexdigest()
            file.write_bytes(content)
            own["MATPLOTLIBRC"] = str(file)
        started[name] = subprocess.Popen(
            [sys.executable, "-c", DRAW], env=clean | own, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
    return {name: "".join(process.communicate(timeout=120)) for name, process in started.items()}


@pytest.mark.parametrize("name", SETTINGS)
def test_figures_do_not_depend_on_the_users_settings(drawn, name):
    assert drawn[name].splitlines()[:1] == drawn["none"].splitlines(), drawn[name]
    assert len(drawn["none"].strip()) == 64


def test_settings_of_the_process_are_as_before(monkeypatch):
    import matplotlib as mpl

    from bora_sweep.report.figures import draw as figures

    monkeypatch.setitem(mpl.rcParams, "lines.linewidth", 7.0)
    with figures.plain_style():
        assert mpl.rcParams["lines.linewidth"] == 1.5
    assert mpl.rcParams["lines.linewidth"] == 7.0
