"""Tasks of one size, legends, and the names of columns: what is drawn and named is what there is."""

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from made_up_runs import SIZES, TAUS, write_run, write_trial
from matplotlib.figure import Figure

from bora_sweep.report import Analysis, Report, write_report
from bora_sweep.report.figures.data import BySize, distance_data, improvement_data, level_data, tau_curve_data
from bora_sweep.report.figures.draw import draw
from bora_sweep.report.figures.legends import by_size_legend, tau_legend
from bora_sweep.report.frames import _tau_names
from bora_sweep.report.html.axes import document_axis
from bora_sweep.report.text.formats import short_names

EQUAL = dict.fromkeys(SIZES, 24)
BY_SIZE = [improvement_data, distance_data, level_data]


@pytest.fixture(scope="module")
def equal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("equal"), sizes=EQUAL)


@pytest.fixture(scope="module")
def analysis(equal: Path) -> Analysis:
    return Report(equal).analysis


def legend_of(figure: Figure) -> list[str]:
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


@pytest.mark.parametrize("make", BY_SIZE)
def test_tasks_of_one_size_stand_one_beside_another_with_their_names(analysis: Analysis, make):
    data: BySize = make(analysis)
    first = data.points.drop_duplicates("task").sort_values("value")
    assert data.places == {task: place for place, task in enumerate(first["task"], start=1)}
    assert data.x_title == "Tasks, each with 24 training documents"
    figure = draw(data)
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_xticklabels()] == first["task"].tolist()
    points = [x for line in axes.lines for x in line.get_xdata() if line.get_marker() in "o^"]  # type: ignore
    assert {round(x) for x in points} == set(range(1, len(EQUAL) + 1))
    assert legend_of(figure) == [text for _, _, text in by_size_legend(data)]
    assert "trend with its 95% band" not in legend_of(figure)


def test_the_page_has_them_at_the_same_places(equal: Path, analysis: Analysis):
    write_report(equal)
    text = (equal / "report" / "index.html").read_text()
    document: Any = json.loads(re.findall(r'id="data">(.*?)</script>', text, re.DOTALL)[0])
    for chart, make in zip(("gains", "distance", "level"), BY_SIZE, strict=True):
        data: BySize = make(analysis)  # type: ignore[reportAssignmentType]
        shown, places = document["charts"][chart], data.places
        assert places is not None
        assert shown["places"] == [places[task] for task in analysis.summary.tasks]
        assert shown["x"]["title"] == data.x_title
        assert shown["x"]["ticks"] == []
        assert [tuple(entry) for entry in shown["legend"]] == by_size_legend(data)
    tau = document["tables"]["tasks"]
    assert "Distance at τ = 1,000" in [column["title"] for column in tau["columns"]]
    assert document["charts"]["distance"]["y"]["title"] == "Distance to the global adapter at τ = 1,000"
    assert document["charts"]["distance"]["tip"] == [
        ["distance to the global adapter at τ = 1,000: ", {"of": "distance"}]
    ]
    report = (equal / "report" / "report.md").read_text()
    assert "Training documents of each of 5 tasks: 24 each." in report
    assert "by the task's number of training documents" not in report
    assert "Lines are least squares" not in report


@pytest.mark.parametrize("sizes", [(3, 4), (1, 6), (2, 2), (7, 8), (5, 40), (1, 1), (30, 9_000)])
def test_numbers_of_documents_have_ticks_at_whole_numbers(tmp_path: Path, sizes: tuple[int, int]):
    low, high = sizes
    between = [low + (high - low) * n // 4 for n in range(5)]
    axis = document_axis("", between)
    assert axis["ticks"]
    assert all(tick == round(tick) and text.replace(",", "") == str(round(tick)) for tick, text in
               zip(axis["ticks"], axis["texts"], strict=True))  # fmt: skip
    write_run(tmp_path, sizes={name: (size, 3, 4) for name, size in zip(SIZES, between, strict=True)})
    for figure in (Report(tmp_path).figures[name] for name in ("figure_5_perplexity_by_size", "figure_1_task_sizes")):
        (axes,) = figure.axes
        figure.canvas.draw()
        low, high = axes.get_xlim()
        texts = [label.get_text() for label in axes.get_xticklabels() if low <= label.get_position()[0] <= high]
        assert texts
        assert not [text for text in texts if "." in text]


def test_the_legend_of_figure_2_names_what_is_drawn(tmp_path: Path):
    """A run whose best fit is the shared one: no triangle is drawn, and none is in the legend."""
    nats = {0.0: 3.5, 100.0: 3.3, 1_000.0: 3.2, math.inf: 3.0}
    for tau, level in nats.items():
        write_trial(tmp_path, tau, nats=dict.fromkeys(SIZES, level), floor=None)
    data = tau_curve_data(Report(tmp_path).analysis)
    assert [(color, mark, text) for color, mark, text in tau_legend(data, "test perplexity", "")] == [
        ("independent", "square", "one model per task (τ = 0)"),
        ("best", "diamond", "best, τ = ∞"),
        ("ink", "dot", "other values of τ"),
        ("task", "band", "95% interval of each τ alone"),
        ("ink", "line", "test perplexity of all tasks"),
        ("ink", "line-dotted", "to the ends of τ"),
        ("task", "line-thin", "one task"),
    ]


def test_the_legend_of_figure_3_has_open_marks_where_there_is_no_verdict(tmp_path: Path):
    data = improvement_data(Report(write_run(tmp_path)).analysis)
    assert data is not None
    for name, series in data.series.items():
        is_open = set(data.points.loc[data.points["series"] == name, "is_open"])
        marks = {mark for color, mark, _ in by_size_legend(data) if color == series.color}
        assert marks == {f"open-{series.marker}" if one else series.marker for one in is_open}


def test_columns_are_named_by_tau_as_it_is_written(tmp_path: Path):
    taus = (0.0, 17.782794100389228, 5623.413251903491, 1e-4, math.inf)
    frame = Report(write_run(tmp_path, taus=taus)).by_task
    names = ["tau=0", "tau=0.0001", "tau=17.8", "tau=5620", "tau=inf"]
    assert [name for name in frame if name.startswith("tau=")] == [f"{n}{end}" for n in names for end in
                                                                  ("", " low", " high")]  # fmt: skip
    write_report(tmp_path)
    header = (tmp_path / "report" / "tables" / "table_a1.csv").read_text().splitlines()[0]
    assert header.split(",") == list(frame)


@pytest.mark.parametrize("taus", [{17.81, 17.82, 17.8, 5.0}, {1.0, 1.0000001}, {999.6, 1000.4, 1001.0}, set(TAUS)])
def test_no_two_values_have_one_name(taus: set[float]):
    names = _tau_names(taus)
    assert len(set(names.values())) == len(taus)
    for tau, name in names.items():
        assert float(name.removeprefix("tau=")) == pytest.approx(tau, rel=0.005)


def test_long_names_keep_what_tells_them_apart():
    names = ["the northern branch of Ada", "the northern branch of Bo", "the northern branch of Adam"]
    assert short_names(names, 12) == ["…Ada", "…Bo", "…Adam"]
    assert short_names(["Ada", "Adam"], 12) == ["Ada", "Adam"]
    assert short_names(["abcdefghijklmnop"], 8) == ["abcdefg…"]
    assert short_names(["one long name of two", "another long name of two"], 12) == ["one long na…", "another lon…"]
