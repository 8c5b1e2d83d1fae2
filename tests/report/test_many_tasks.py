"""Reports of many tasks: text and figures that show the extremes, and nothing lost from the CSV and the page."""

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from browsers import Opened, chromium
from made_up_runs import table_after, write_run

from bora_sweep.report import Report, write_report
from bora_sweep.report.figures.data import distance_data, improvement_data, level_data, tau_curve_data
from bora_sweep.report.stats.many_tasks import EXTREMES, MOST_DRAWN, drawn_tasks, extreme_gains, extreme_levels
from bora_sweep.report.text.captions import captioned_figures

NUM_TASKS = MOST_DRAWN + 40
NAMES = [f"customer {d:04d}" for d in range(NUM_TASKS)]
TAUS = (0.0, 1_000.0, 10_000.0, math.inf)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tasks of different sizes, the last two without test documents, in an order that is not that of their names."""
    rng, folder = np.random.default_rng(0), tmp_path_factory.mktemp("many")
    sizes = {name: (int(size), 1, 3) for name, size in zip(NAMES, rng.integers(3, 90, NUM_TASKS), strict=True)}
    sizes |= dict.fromkeys(NAMES[-2:], (4, 1, 0))
    shift = dict(zip(NAMES, rng.normal(0, 0.1, NUM_TASKS), strict=True))
    for tau in TAUS:
        nats = {name: 3.0 + (shift[name] if tau == 1_000.0 else 0.1) for name in NAMES}
        write_run(folder, taus=(tau,), sizes=sizes, nats=nats)
    write_report(folder)
    return folder


@pytest.fixture(scope="module")
def report(run: Path) -> Report:
    return Report(run)


@pytest.fixture(scope="module")
def gains(run: Path) -> pd.DataFrame:
    """Figure 3 as numbers."""
    return pd.read_csv(str(run / "report" / "tables" / "improvements.csv"))


def test_the_csv_has_every_task_and_the_markdown_the_extremes(run: Path, gains: pd.DataFrame):
    text = (run / "report" / "report.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) < 250
    assert len(set(re.findall(r"customer \d{4}", text))) < 80
    assert len(gains) == 2 * (NUM_TASKS - 2)
    assert len(pd.read_csv(str(run / "report" / "tables" / "table_a1.csv"))) == NUM_TASKS
    for reference, name in (("independent", "one model per task"), ("shared", "one model for all")):
        own = gains.loc[gains["reference"] == reference].sort_values(by="improvement")
        for heading, rows in (
            (f"**Largest gains over {name}", own.iloc[::-1].query("improvement > 0")),
            (f"**Largest losses against {name}", own.query("improvement < 0")),
        ):
            shown = [row[0] for row in table_after(text, heading)[1:]]
            assert shown == rows["task"].head(EXTREMES).tolist()
            assert len(shown) == EXTREMES
    for name in ("table_2", "table_a1"):
        assert (run / "report" / "tables" / f"{name}.tex").read_text(encoding="utf-8").count("customer") < 60


def test_a_row_of_an_extreme_has_the_tasks_own_numbers(run: Path, report: Report, gains: pd.DataFrame):
    text = (run / "report" / "report.md").read_text(encoding="utf-8")
    for row in table_after(text, "**Largest losses against one model for all")[1:]:
        own = gains.query("task == @row[0] and reference == 'shared'").iloc[0]
        assert float(row[6].split("%")[0].replace("−", "-")) == pytest.approx(100 * own["improvement"], abs=0.05)
        level = report.by_task.set_index("task").loc[row[0], "tau=1000"]
        assert float(row[2].split(" ")[0]) == pytest.approx(level, abs=0.005)


def test_columns_of_intervals_are_those_of_one_task_at_a_time(report: Report):
    analysis, m = report.analysis, report.summary.best
    for d, level in enumerate(analysis.task_levels.levels(m)):
        np.testing.assert_array_equal(
            (level.estimate, level.low, level.high), list(vars(analysis.task_levels.level(d, m)).values())
        )
    reference = report.summary.shared
    assert reference is not None
    differences = analysis.task_differences(m, reference)
    own = {gain.task: gain.interval for gain in analysis.task_gains if gain.reference == "shared"}
    for d in analysis.tested[::50]:
        assert own[report.summary.tasks[d]].estimate == pytest.approx(-differences.difference(d).estimate, rel=1e-12)


def test_figures_draw_the_extremes_and_others_of_every_size(report: Report):
    analysis = report.analysis
    drawn = drawn_tasks(analysis)
    assert len(set(drawn)) == MOST_DRAWN
    assert set(drawn) <= set(analysis.tested)
    for groups in (extreme_gains(analysis), extreme_levels(analysis)):
        assert all(set(group) <= set(drawn) for group in groups.values())
    assert np.diff([0, *drawn, NUM_TASKS - 1]).max() <= 4  # in order of size
    names = {report.summary.tasks[d] for d in drawn}
    for data in (improvement_data(analysis), distance_data(analysis), level_data(analysis)):
        assert data is not None
        assert set(data.points["task"]) == names
    curve = tau_curve_data(analysis)
    assert [analysis.tested[row] for row in curve.drawn] == drawn
    assert curve.each_title == f"{MOST_DRAWN} of {NUM_TASKS - 2} tasks"


def test_numbers_and_lines_are_of_all_tasks(report: Report):
    assert report.analysis.trends["improvement_shared"].num_tasks == NUM_TASKS - 2
    macro = report.by_task["tau=1000"].mean()
    assert report.analysis.macro(report.summary.best).estimate == pytest.approx(macro, rel=1e-12)
    few = f"Of {NUM_TASKS - 2} tasks {MOST_DRAWN} are drawn one by one"
    assert sum(few in figure.caption for figure in captioned_figures(report.analysis)) == 4


def test_few_tasks_are_drawn_and_listed_as_ever(tmp_path: Path):
    write_run(tmp_path, taus=(0.0, 1_000.0, math.inf))
    page = write_report(tmp_path)
    analysis = Report(tmp_path).analysis
    assert drawn_tasks(analysis) == analysis.tested
    assert "Largest" not in page.read_text(encoding="utf-8")
    document = _document(page.parent / "index.html")
    assert document["charts"]["each"]["drawn"] is None
    assert document["charts"]["each"]["heading"] == "Each of 5 tasks"


def _document(page: Path) -> dict[str, Any]:
    found = re.search(r'id="data">(.*?)</script>', page.read_text(encoding="utf-8"), re.DOTALL)
    assert found is not None
    return json.loads(found[1])


def test_the_page_has_all_tasks_in_few_bytes_each(run: Path, report: Report, gains: pd.DataFrame):
    document = _document(run / "report" / "index.html")
    tasks, charts = document["tables"]["tasks"], document["charts"]
    assert tasks["texts"]["task"] == report.summary.tasks
    by_task = gains.query("reference == 'shared'").set_index("task")["improvement"].reindex(report.summary.tasks)
    shown = np.array([np.nan if value is None else value for value in tasks["values"]["gain_shared"]])
    np.testing.assert_allclose(shown, by_task, rtol=1e-5)
    for name in ("each", "gains", "distance", "level", "sizes"):
        assert charts[name]["drawn"] == drawn_tasks(report.analysis)
    assert len(charts["each"]["views"]["relative"]["values"]) == NUM_TASKS
    assert len(json.dumps(document)) < 600 * NUM_TASKS + 60_000


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as opened:
        yield opened


@pytest.mark.slow
def test_a_long_table_is_seen_in_windows_searched_and_sorted(browser: Any, run: Path, report: Report):
    opened = Opened(browser, run / "report" / "index.html")
    page = opened.page
    assert len(opened.column("task-table", 0)) == 100
    assert page.locator(".scroller:has(#task-table) + .pager output").inner_text() == "rows 1 to 100"
    assert page.locator("#found").inner_text() == f"{NUM_TASKS} of {NUM_TASKS} tasks"
    seen = opened.column("task-table", 0)
    more, back = (
        page.locator(".scroller:has(#task-table) + .pager button").nth(1),
        page.locator(".scroller:has(#task-table) + .pager button").nth(0),
    )
    for _ in range(NUM_TASKS // 100):
        more.click()
        seen += opened.column("task-table", 0)
    assert seen == report.summary.tasks  # most training documents first
    assert more.is_disabled()
    back.click()
    assert opened.column("task-table", 0) == report.summary.tasks[400:500]
    hidden = next(
        task for d, task in enumerate(report.summary.tasks) if d >= 100 and d not in drawn_tasks(report.analysis)
    )
    page.fill("#search", hidden.upper())
    assert opened.column("task-table", 0) == [hidden]
    page.locator("#task-table button.name").click()  # a task that no figure draws is drawn once it is kept
    assert hidden in page.locator("#chart-each").inner_text()
    page.fill("#search", "")
    page.locator("#task-table thead button").first.click()
    assert opened.column("task-table", 0) == sorted(NAMES)[:100]
    assert opened.troubles == []
    opened.context.close()
