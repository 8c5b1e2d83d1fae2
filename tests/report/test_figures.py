"""Figures draw what their data holds; their bytes do not depend on how the user has set matplotlib."""

import hashlib
import math
import os
import subprocess
import sys

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from made_up_runs import write_run
from matplotlib.axes import Axes

from bora_sweep.report import Analysis, Report
from bora_sweep.report.figures.data import (
    BySize,
    distance_data,
    improvement_data,
    level_data,
    pooling_data,
    task_sizes_data,
    tau_curve_data,
)
from bora_sweep.report.figures.draw import draw
from bora_sweep.report.figures.style import MARKERS, plain_style

DRAW = """
import hashlib, sys
import pandas as pd
from bora_sweep.report.figures.data import BySize, Quantity, Series
from bora_sweep.report.figures.draw import draw
from bora_sweep.report.figures.style import render
assert "matplotlib.pyplot" not in sys.modules
values = {"documents": [3, 30, 300.0], "value": [2, 20, 200.0], "low": float("nan"), "high": float("nan")}
points = pd.DataFrame({"series": "best", "task": list("abc"), **values, "is_open": False})
data = BySize(Quantity("a $x$ _ %", "number"), {"best": Series("best", "ink", "circle")}, points, points[:0])
print(hashlib.sha256(b"".join(render(draw(data)))).hexdigest())
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
    return {name: "".join(process.communicate(timeout=500)) for name, process in started.items()}


@pytest.mark.parametrize("name", SETTINGS)
def test_figures_do_not_depend_on_the_users_settings(drawn, name):
    assert drawn[name].splitlines()[:1] == drawn["none"].splitlines(), drawn[name]
    assert len(drawn["none"].strip()) == 64


def test_settings_of_the_process_are_as_before(monkeypatch):
    monkeypatch.setitem(mpl.rcParams, "lines.linewidth", 7.0)
    with plain_style():
        assert mpl.rcParams["lines.linewidth"] == 1.5
    assert mpl.rcParams["lines.linewidth"] == 7.0


@pytest.fixture(scope="module")
def analysis(tmp_path_factory) -> Analysis:
    """Of the ends and five values between, enough for a smooth curve."""
    taus = (None, 0.0, 10.0, 100.0, 1_000.0, 10_000.0, 100_000.0, math.inf)
    return Report(write_run(tmp_path_factory.mktemp("run"), taus=taus)).analysis


def points_of(axes: Axes, marker: str) -> set[tuple[float, float]]:
    """Places of all marks of a kind."""
    return {point for line in axes.lines if line.get_marker() == marker for point in map(tuple, line.get_xydata())}  # type: ignore


def rows_of(frame: pd.DataFrame, *columns: str) -> set[tuple[float, float]]:
    return set(frame[[*columns]].astype(float).itertuples(index=False, name=None))


def test_figure_1_has_a_bar_for_each_task(analysis: Analysis):
    data = task_sizes_data(analysis.summary)
    (axes,) = draw(data).axes
    assert [bar.get_width() for bar in axes.patches] == data.bars["documents"].tolist()  # type: ignore
    assert [label.get_text() for label in axes.get_yticklabels()] == data.bars["task"].tolist()


def test_figure_2_draws_its_data(analysis: Analysis):
    data = tau_curve_data(analysis)
    overall, each = draw(data).axes
    for axes in (overall, each):
        assert points_of(axes, "o") == rows_of(data.fits, "x", "level")
        for marker, role in (("s", "independent"), ("^", "shared")):
            assert points_of(axes, marker) == rows_of(data.fits[data.fits["role"] == role], "x", "level")
        assert list(axes.get_xticks()) == data.axis.ticks["x"].tolist()
    curves = [line.get_xydata() for line in overall.lines]
    assert any(np.array_equal(curve, data.smooth[["x", "level"]]) for curve in curves)
    segments = [segment for collection in each.collections for segment in collection.get_segments()]  # type: ignore
    drawn = {point for segment in segments for point in map(tuple, segment)}
    assert drawn == {(x, value) for row_V in data.tasks_DV for x, value in zip(data.axis.x, row_V, strict=True)}
    assert {text.get_text() for text in overall.texts} >= {data.best_text, *data.references["text"]}


@pytest.mark.parametrize("make", [improvement_data, distance_data, level_data])
def test_figures_3_to_5_draw_their_points_and_lines(analysis: Analysis, make):
    data: BySize = make(analysis)
    (axes,) = draw(data).axes
    assert set(data.points["task"]) == set(analysis.summary.tasks)
    for name, series in data.series.items():
        points = data.points[data.points["series"] == name]
        moved = points.assign(documents=points["documents"] * (1 + 0.01 * series.shift))
        assert points_of(axes, MARKERS[series.marker]) == rows_of(moved, "documents", "value")
        line = data.lines.loc[data.lines["series"] == name, ["documents", "value"]].to_numpy()
        assert any(np.array_equal(drawn.get_xydata(), line) for drawn in axes.lines)


def test_the_data_is_that_of_the_analysis(analysis: Analysis):
    gains, summary = improvement_data(analysis), analysis.summary
    assert gains is not None
    assert gains.points["value"].tolist() == [
        gain.interval.estimate
        for reference in ("independent", "shared")
        for gain in analysis.task_gains
        if gain.reference == reference
    ]
    fits = tau_curve_data(analysis).fits
    assert fits["tau"].tolist() == [summary.settings[m].tau for m in summary.fits]
    assert fits["level"].tolist() == analysis.scores.test_M[summary.fits].tolist()
    assert level_data(analysis).points["value"].tolist() == analysis.scores.test_DM[:, summary.best].tolist()


def of_many(folder, count: int, own_noise: float = 0.05) -> Report:
    sizes = {f"task{n}": 12 + 3 * n for n in range(count)}
    return Report(write_run(folder, taus=(0.0, 1_000.0, math.inf), sizes=sizes, own_noise=own_noise))


def test_figure_6_has_three_marks_and_the_factor_of_each_task_by_size(tmp_path):
    report = of_many(tmp_path, 6)
    analysis, data = report.analysis, pooling_data(report.analysis)
    assert data is not None
    summary, rows = analysis.summary, data.rows
    assert rows["text"].tolist() == summary.tasks == [f"task{n}" for n in reversed(range(6))]
    for role, m in (("independent", summary.independent), ("best", summary.best), ("shared", summary.shared)):
        assert rows[role].tolist() == pytest.approx(analysis.scores.test_DM[:, m].tolist())
    assert rows["factor"].tolist() == [task.estimate for task in analysis.pooling.tasks]  # type: ignore
    (axes,) = draw(data).axes
    for marker, role in (("s", "independent"), ("D", "best"), ("^", "shared")):
        assert points_of(axes, marker) == rows_of(rows.assign(y=range(6)), role, "y")
    assert [label.get_text() for label in axes.get_yticklabels()] == summary.tasks
    written = [text.get_text() for text in axes.texts]
    assert written == ["pooling", *(f"{factor:.2f}".replace("-", "−") for factor in rows["factor"])]
    frame = report.pooling
    assert frame["of"].tolist() == ["all", *6 * ["task"]]
    assert frame["pooling_factor"][1:].tolist() == rows["factor"].tolist()
    assert frame["partial_pooling_perplexity"][1:].tolist() == pytest.approx(rows["best"].tolist())


def test_figure_6_shows_many_tasks_by_groups_of_similar_size(tmp_path):
    analysis = of_many(tmp_path, 90).analysis
    data = pooling_data(analysis)
    assert data is not None
    assert data.is_grouped
    assert len(data.rows) == 20
    assert data.rows["tasks"].sum() == 90
    assert data.rows["documents"].is_monotonic_decreasing
    assert data.rows["text"][0] == f"{12 + 3 * 85} to {12 + 3 * 89} documents, 5 tasks"
    first = analysis.scores.test_DM[:5]
    assert data.rows["shared"][0] == pytest.approx(first[:, analysis.summary.shared].mean())
    (axes,) = draw(data).axes
    assert len(points_of(axes, "D")) == 20
    assert not axes.texts


@pytest.mark.parametrize("taus", [(0.0, 1_000.0), (1_000.0, math.inf), (0.0, math.inf)])
def test_figure_6_needs_both_ends_and_a_fit_between(tmp_path, taus):
    report = Report(write_run(tmp_path, taus=taus))
    assert report.analysis.pooling is None
    assert pooling_data(report.analysis) is None
    assert report.pooling.empty
    assert "figure_6_pooling" not in report.figures
