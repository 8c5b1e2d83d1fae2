"""The HTML page: its numbers against the Parquet, and its behaviour in a real browser without a network."""

import base64
import copy
import hashlib
import json
import math
import re
import webbrowser
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from browsers import Opened, chromium
from made_up_runs import HOSTILE, METRICS, SIZES, SMALL, write_run, write_trial

from bora_sweep.cli import main
from bora_sweep.report import Report, write_report
from bora_sweep.report.figures.data import (
    BySize,
    distance_data,
    improvement_data,
    level_data,
    pooling_data,
    tau_curve_data,
)
from bora_sweep.report.html import page as html
from bora_sweep.report.html.axes import count_axis, even_ticks, log_ticks, percent_axis, value_axis
from bora_sweep.report.html.charts import significant
from bora_sweep.report.html.document import to_json
from bora_sweep.report.html.words import words
from bora_sweep.report.text.formats import hours_text, percent_text, perplexity_text, significant_text, visible
from bora_sweep.report.text.tables import overall_table
from bora_sweep.runs.results import read_results, write_table

ASSETS = Path(html.__file__).parent / "assets"
TAUS = (None, 0.0, 10.0, 100.0, 1_000.0, 10_000.0, math.inf)
CONFIG = {"data": {"path": "s3://me:hunter2hunter2@store/x"}, "prior": {"tau": 0.0}, "ray": {"cpus_per_trial": 2}}


def write_whole_run(run: Path, sizes: dict[str, int] = SIZES) -> Path:
    """Finished fits with curves and configurations, and a trial that failed."""
    for n, tau in enumerate(TAUS):
        config = json.dumps(CONFIG | {"prior": {"tau": tau}})
        columns = {"config_json": config, "versions": '{"python": "3.11.7"}', "device": "cpu: x"}
        write_trial(run, tau, sizes=sizes, trial_id=f"{n:03d}", train_tokens=1_000 + n, **columns)
        rows = [
            {"epoch": epoch, "split": split, "nll_nats": 900 * (3 + math.exp(-epoch / 5)) + n, "num_tokens": 900}
            for epoch in range(0 if tau is None else 31)
            for split in ("train", "validation")
        ]
        write_table(run, "curves", f"{n:03d}", rows)
    failed = {"status": "failed", "method": "map", "tau": 5.0, "seed": 0, "error": "RuntimeError: <b>out</b> of memory"}
    write_table(run, "trials", "007", [failed])
    return run


def embedded(page: str) -> dict[str, Any]:
    """The document within the page."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    return json.loads(found[1])


def number(value: float | str | None) -> float:
    return math.nan if value is None else float(value)


def near(values: list[Any]) -> Any:
    """Six digits are kept."""
    return pytest.approx([number(value) for value in values], rel=1e-5, nan_ok=True)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = write_whole_run(tmp_path_factory.mktemp("run"))
    write_report(run)
    return run


@pytest.fixture(scope="module")
def page(run: Path) -> Path:
    return run / "report" / "index.html"


@pytest.fixture(scope="module")
def document(page: Path) -> dict[str, Any]:
    return embedded(page.read_text())


@pytest.fixture(scope="module")
def test_scores(run: Path) -> pd.DataFrame:
    """Nats and tokens of the test documents, by trial and task."""
    scores: Any = read_results(run).document_scores.query("split == 'test'")
    return scores.groupby(["trial_id", "task"])[["nll_nats", "num_tokens"]].sum().astype(float)


@pytest.fixture(scope="module")
def report(run: Path) -> Report:
    return Report(run)


def test_perplexities_are_those_of_the_documents(document: dict[str, Any], test_scores: pd.DataFrame):
    sums = test_scores.groupby("trial_id").sum()
    whole = np.exp(sums["nll_nats"] / sums["num_tokens"])  # type: ignore[reportCallIssue]
    assert document["charts"]["overall"]["fits"]["level"] == near(whole.tolist()[1:])
    by_task = np.exp(test_scores["nll_nats"] / test_scores["num_tokens"]).unstack("trial_id")  # type: ignore
    values, by_task = document["tables"]["tasks"]["values"], by_task.loc[document["tables"]["tasks"]["texts"]["task"]]
    views = document["charts"]["each"]["views"]
    for v, trial_id in enumerate(["001", "002", "003", "004", "005", "006"]):
        change = by_task[trial_id] / by_task["004"] - 1
        assert [row[v] for row in views["absolute"]["values"]] == pytest.approx(by_task[trial_id].tolist(), rel=1e-3)
        assert [row[v] for row in views["relative"]["values"]] == pytest.approx(change.tolist(), rel=1e-3)
    for role, trial_id in (("independent", "001"), ("best", "004"), ("shared", "006")):
        assert values[role] == near(by_task[trial_id].tolist())
        if role != "best":
            assert values[f"gain_{role}"] == near((1 - by_task["004"] / by_task[trial_id]).tolist())


def test_sizes_distances_and_costs_are_those_of_the_tables(document: dict[str, Any], run: Path):
    results, tasks = read_results(run), document["tables"]["tasks"]
    rows = results.task_scores.query("trial_id == '004'").pivot(index="task", columns="split")
    rows = rows.loc[tasks["texts"]["task"]]
    assert tasks["values"]["documents"] == rows["num_documents"]["train"].tolist()
    assert tasks["values"]["distance"] == near(rows["distance_to_global"]["test"].tolist())
    trials, values = results.trials.sort_values("trial_id"), document["tables"]["trials"]["values"]
    for name in ("epochs", "train_tokens", "train_seconds", "tokens_per_second", "test_perplexity", "seed"):
        assert [number(value) for value in values[name]] == near(trials[name].tolist())
    assert [number(value) for value in values["fit"]] == near(trials["tau"].tolist())
    assert document["tables"]["trials"]["texts"]["status"] == trials["status"].tolist()
    assert values["cpu_hours"][1] == pytest.approx(2 * 12.34 / 3600, rel=1e-5)
    assert f"{7 * 12.34:.0f} s" in json.dumps(document["words"]["cost"])


def test_learning_curves_are_those_of_the_table(document: dict[str, Any], run: Path):
    curves, chart = read_results(run).curves, document["charts"]["learning"]
    assert len(chart["curves"]) == 12
    for curve in chart["curves"]:
        trial_id = document["tables"]["trials"]["texts"]["trial_id"][curve["trial"]]
        rows = curves[(curves["trial_id"] == trial_id) & (curves["split"] == curve["split"])].sort_values("epoch")  # type: ignore
        assert curve["epoch"] == list(range(31))
        assert curve["perplexity"] == near(np.exp(rows["nll_nats"] / rows["num_tokens"]).tolist())
    assert chart["roles"] == {"independent": [1], "shared": [6], "best": [4]}


@pytest.mark.parametrize(
    ("chart", "make"), [("gains", improvement_data), ("distance", distance_data), ("level", level_data)]
)
def test_the_page_has_the_points_and_lines_of_figures_3_to_5(document: dict[str, Any], report: Report, chart, make):
    data: BySize = make(report.analysis)
    tasks, shown = document["tables"]["tasks"], document["charts"][chart]
    for name, series in zip(data.series, shown["series"], strict=True):
        points, lines = data.points[data.points["series"] == name], data.lines[data.lines["series"] == name]
        assert tasks["texts"]["task"] == points["task"].tolist()
        assert tasks["values"]["documents"] == points["documents"].tolist()
        for part, column in series["columns"].items():
            assert [number(value) for value in tasks["values"][column]] == near(points[part].tolist())
        assert series["is_open"] in (None, points["is_open"].tolist())
        for part, values in series["line"].items():
            assert values == near(lines[part].tolist()[::3])
    assert shown["has_intervals"] == bool(data.points["low"].notna().any())


def test_the_page_has_the_rows_of_figure_6(document: dict[str, Any], report: Report):
    data, shown = pooling_data(report.analysis), document["charts"]["pooling"]
    assert data is not None
    names = document["tables"]["tasks"]["texts"]["task"]
    assert [names[d] for d in shown["tasks"]] == data.rows["text"].tolist()
    for part, values in shown["rows"].items():
        assert values == near(data.rows[part].tolist())
    assert shown["factors"] is None  # these documents' nats differ by the same between fits


def test_the_page_has_each_tasks_pooling_factor(tmp_path: Path):
    report = Report(write_run(tmp_path, own_noise=0.05))
    document = embedded(write_report(str(tmp_path)).with_name("index.html").read_text())
    factors = [task.estimate for task in report.analysis.pooling.tasks]  # type: ignore
    assert [number(value) for value in document["tables"]["tasks"]["values"]["pooling"]] == near(factors)
    assert document["charts"]["pooling"]["factors"] == document["tables"]["tasks"]["texts"]["pooling"]
    assert "How much tasks borrow." in json.dumps(document["words"]["verdicts"])


def test_the_page_has_the_data_of_figure_2(document: dict[str, Any], report: Report):
    data, shown = tau_curve_data(report.analysis), document["charts"]["overall"]
    for name in ("x", "level", "low", "high"):
        assert shown["fits"][name] == near(data.fits[name].tolist())
        assert shown["smooth"][name] == near(data.smooth[name].tolist()[::4])
    assert shown["fits"]["role"] == data.fits["role"].tolist()
    assert shown["references"]["text"] == data.references["text"].tolist()
    assert shown["x"]["ticks"] == near(data.axis.ticks["x"].tolist())
    assert shown["x"]["texts"] == data.axis.ticks["text"].tolist()
    assert document["charts"]["each"]["places"] == near(data.axis.x.tolist())


def test_every_cell_has_its_text_from_the_report(document: dict[str, Any], report: Report):
    shown, table = document["tables"]["taus"], overall_table(report.analysis)
    assert [column["title"] for column in shown["columns"]] == table.columns
    assert list(zip(*shown["texts"].values(), strict=True)) == [tuple(row) for row in table.rows]
    tasks, gains = document["tables"]["tasks"], report.analysis.task_gains
    assert tasks["texts"]["best"] == [perplexity_text(number(value)) for value in tasks["values"]["best"]]
    independent = [gain for gain in gains if gain.reference == "independent"]
    assert tasks["texts"]["gain_independent"] == [percent_text(gain.interval) for gain in independent]
    for part in document["tables"].values():
        for column in [] if part is None else part["columns"]:
            assert column["kind"] in ("hidden", "interval") or column["name"] in part["texts"]


def test_scripts_write_no_numbers():
    """Python alone computes and formats; the scripts place what it gives them."""
    scripts = "".join(path.read_text() for path in ASSETS.glob("*.js"))
    assert not re.findall(r"toFixed|toPrecision|toExponential|Math\.(?:log|exp|pow)|NumberFormat", scripts)
    assert scripts.count("toLocaleString") == 2  # how many tasks a search has found, and which rows are shown


def test_every_trial_has_its_configuration_without_its_secrets(document: dict[str, Any], page: Path):
    assert "hunter2" not in page.read_text()
    shown = document["configuration"]
    assert shown["trial"] == "004"
    assert shown["differ"] == ["prior.tau"]
    assert ["  tau: 1000.0", True] in shown["lines"]
    assert sum(differs for _, differs in shown["lines"]) == 1
    assert ["python", "3.11.7"] in list(map(list, zip(*document["tables"]["versions"]["texts"].values(), strict=True)))


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (12.3, 12.9), (-0.4, 3.0), (1e-9, 3e-9), (5e3, 9e6)])
def test_even_ticks_lie_within_and_are_told_apart(low: float, high: float):
    ticks, digits = even_ticks(low, high)
    assert 3 <= len(ticks) <= 11
    assert all(low - 1e-9 * (high - low) <= tick <= high * (1 + 1e-9) for tick in ticks)
    assert len({f"{tick:.{digits}f}" for tick in ticks}) == len(ticks)


@pytest.mark.parametrize(("low", "high"), [(1.0, 6.0), (0.03, 2.0), (7.0, 50.0), (2.0, 1e9), (1e-40, 1e40)])
def test_log_ticks_are_a_handful(low: float, high: float):
    ticks = log_ticks(low, high)
    assert 2 <= len(ticks) <= 14
    assert ticks == sorted(ticks)


def test_axes_have_texts_for_their_ticks():
    assert percent_axis("", [-0.1, 0.2])["texts"] == ["−10%", "−5%", "0%", "+5%", "+10%", "+15%", "+20%"]
    assert count_axis("", 2, pad=0.01)["texts"] == ["0", "1", "2"]
    assert value_axis("", [3.0, math.inf, math.nan], [900.0])["texts"] == ["10", "100", "1,000"]
    assert value_axis("", [3.0, math.inf, math.nan], [90.0])["texts"] == ["5", "10", "20", "50", "100"]
    assert value_axis("", [])["type"] == value_axis("", [2.0])["type"] == "linear"


def test_amounts_and_names_are_written_so_that_they_can_be_read():
    assert [hours_text(hours) for hours in (math.nan, 0.001, 0.02, 1.5, 30)] == [
        "–",
        "3.6 s",
        "1.2 min",
        "90 min",
        "30 h",
    ]
    assert [significant_text(value) for value in (3.1, 0.012345, 123.4, 1234.5)] == ["3.10", "0.0123", "123", "1,234"]
    assert [visible(name) for name in ("ann", "a\nb", "\u202ex", "  ", "")] == ["ann", "a␊b", "‹U+202E›x", "␠␠", "␠"]


def test_same_results_same_bytes(run: Path, page: Path):
    before = page.read_bytes()
    write_report(run)
    assert page.read_bytes() == before


def test_only_what_the_policy_names_may_run(page: Path):
    text = page.read_text()
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', text)
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy
    parts = re.findall(r"<script>(.*?)</script>", text, re.DOTALL) + re.findall(
        r"<style>(.*?)</style>", text, re.DOTALL
    )
    assert len(parts) == 3
    for part in parts:
        assert f"'sha256-{base64.b64encode(hashlib.sha256(part.encode()).digest()).decode()}'" in policy
    assert not re.findall(r"<(?:link|img|iframe|object)\b|\bsrc=|@import|url\(", text.replace(parts[0], ""))


@pytest.mark.parametrize("text", ["</script><script>alert(1)</script>", "<!--", "]]>", "\u2028", "\ud800", "&amp;"])
def test_no_text_leaves_its_json(text: str):
    written = to_json({"name": [text]})
    assert not set(written) & set("<>&\u2028")
    assert written.isascii()
    assert json.loads(written) == {"name": [text]}


def test_the_reports_markdown_becomes_what_a_reader_sees():
    markdown = (
        "# A\n\n**τ = 1** and *so* [on](tables/a.csv); a\\_b &#60;i&#62; `x --y`.\n\n| a |\n| --- |\n| 1 |\n\n"
        "> **Note.** 2."
    )
    assert words(markdown) == [
        [
            ("strong", "τ = 1"),
            ("", " and "),
            ("em", "so"),
            ("", " "),
            ("tables/a.csv", "on"),
            ("", "; a_b <i> "),
            ("code", "x --y"),
            ("", "."),
        ],
        [("strong", "Note."), ("", " 2.")],
    ]


# In a browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as opened:
        yield opened


@pytest.fixture
def opened(browser: Any, page: Path) -> Iterator[Opened]:
    opened = Opened(browser, page)
    yield opened
    assert opened.troubles == []  # no message, no request, no exception
    opened.context.close()


@pytest.mark.slow
def test_the_answer_comes_first_and_everything_is_drawn(opened: Opened):
    answer = opened.page.locator("#answer-tau").inner_text().replace("\xa0", " ")
    assert answer.startswith("τ = 1,000 gives test perplexity ")
    assert "below one model per task (τ = 0)" in answer
    assert "[" in answer
    heading = opened.page.locator("h1").inner_text().replace("\xa0", " ")
    assert heading.startswith("So far (7 of 8 trials finished): serve each task's own adapter (τ = 1,000): 3.9% ")
    assert opened.page.locator(".chart svg").count() == 8
    assert opened.page.locator("#trial-table tbody tr").count() == 8
    assert "RuntimeError: <b>out</b> of memory" in (opened.page.locator("#trial-table").text_content() or "")
    assert "tau: 1000.0  # differs between trials" in opened.page.locator("#config").inner_text()
    assert opened.page.locator(".note").inner_text().startswith("Note.")  # a trial has failed


@pytest.mark.slow
@pytest.mark.parametrize("chart", ["#chart-each", "#chart-sizes", "#chart-gains", "#chart-distance", "#chart-pooling"])
def test_hovering_reads_a_task_and_a_click_keeps_it(opened: Opened, chart: str):
    page, tip = opened.page, opened.page.locator("#tip")
    assert not tip.is_visible()
    found = opened.point(chart, 0.6)
    name = tip.locator("strong").inner_text()
    assert name in SIZES
    assert f"training documents: {SIZES[name]}" in tip.inner_text()
    page.mouse.click(*found)
    assert page.locator("#kept button").first.inner_text().startswith(name)
    assert page.locator("#task-table [aria-pressed=true]").text_content() == name  # far from the chart, not laid out
    assert name in page.locator("#chart-each").inner_text()
    page.mouse.move(1, 1)
    assert not tip.is_visible()
    page.locator("#kept button").first.click()
    assert page.locator("#task-table [aria-pressed=true]").count() == 0


@pytest.mark.slow
def test_everything_goes_by_the_keyboard(opened: Opened):
    page = opened.page
    page.keyboard.press("Tab")
    assert page.evaluate("() => document.activeElement.className") == "skip"
    page.locator("#chart-each").focus()
    assert page.locator("#chart-each").get_attribute("aria-label").startswith("Test perplexity of each of 5 tasks")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert page.locator("#tip strong").inner_text() == "ada"  # most training documents first: eve, ada
    assert page.locator("#announced").inner_text().startswith("ada, training documents: 40")
    page.keyboard.press("Enter")
    assert page.locator("#task-table [aria-pressed=true]").inner_text() == "ada"
    page.keyboard.press("Escape")
    assert not page.locator("#tip").is_visible()
    page.locator("#task-table button.name", has_text="cy").focus()
    page.keyboard.press("Space")
    assert page.locator("#task-table [aria-pressed=true]").all_inner_texts() == ["ada", "cy"]
    page.locator("#task-table thead button").first.focus()
    assert page.evaluate("() => getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.keyboard.press("Enter")
    assert opened.column("task-table", 0) == sorted(SIZES)


@pytest.mark.slow
def test_the_table_sorts_searches_and_filters(opened: Opened, document: dict[str, Any]):
    page = opened.page
    heads = page.locator("#task-table thead th")
    assert opened.column("task-table", 0) == sorted(SIZES, key=lambda name: -SIZES[name])
    for n in range(heads.count()):
        button = heads.nth(n).locator("button")
        if button.inner_text() == "Documents":
            button.click()
            assert heads.nth(n).get_attribute("aria-sort") == "ascending"
            assert opened.column("task-table", 0) == sorted(SIZES, key=lambda name: SIZES[name])
            button.click()
        if button.inner_text().replace("\xa0", " ") == "τ = 0":
            button.click()
            values = [float(text) for text in opened.column("task-table", n)]
            assert values == sorted(values, reverse=True)
            assert sum(heads.nth(m).get_attribute("aria-sort") is not None for m in range(heads.count())) == 1
    page.fill("#search", "E")
    assert sorted(opened.column("task-table", 0)) == ["dee", "eve"]
    assert page.locator("#found").inner_text() == "2 of 5 tasks"
    page.fill("#search", "")
    texts = document["tables"]["tasks"]["texts"]
    verdicts = dict(zip(texts["task"], texts["verdict_independent"], strict=True))
    for verdict, shown in (("gains", "▲ gains"), ("loses", "▼ loses"), ("no evidence", "no evidence")):
        page.select_option("#filter", f"independent/{verdict}")
        assert set(opened.column("task-table", 0)) == {name for name in SIZES if verdicts[name] == shown}


@pytest.mark.slow
def test_trials_are_read_and_kept_in_the_learning_curves(opened: Opened):
    opened.point("#chart-learning", 0.5)
    assert opened.page.locator("#tip strong").inner_text().startswith("τ = ")
    opened.page.locator("#trial-table button.name").nth(2).click()
    assert opened.page.locator("#trial-table [aria-pressed=true]").inner_text() == "002"


def contrast(one: str, other: str) -> float:
    """WCAG 2's ratio of two colours as `rgb(r, g, b)`."""

    def light(color: str) -> float:
        channels = [int(part) / 255 for part in re.findall(r"\d+", color)[:3]]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted([light(one), light(other)])
    return (high + 0.05) / (low + 0.05)


@pytest.mark.slow
@pytest.mark.parametrize("system", ["light", "dark"])
@pytest.mark.parametrize("chosen", ["", "light", "dark"])
def test_both_schemes_can_be_read(browser: Any, page: Path, system: str, chosen: str):
    opened = Opened(browser, page, color_scheme=system)
    if chosen:
        opened.page.locator(f"#scheme input[value={chosen}]").check(force=True)
    probe = """(names) => names.map((name) => {
        const box = document.body.appendChild(document.createElement("i"));
        box.style.color = `var(--${name})`;
        return getComputedStyle(box).color;
    })"""
    texts = ["ink", "soft", "accent", "best", "shared", "independent", "floor", "pick"]
    paper, wash, note, task, *colors = opened.page.evaluate(probe, ["paper", "wash", "note", "task", *texts])
    is_dark = (chosen or system) == "dark"
    assert (contrast(paper, "rgb(0, 0, 0)") < 3) == is_dark
    assert min(contrast(paper, color) for color in colors) >= 4.5
    assert min(contrast(wash, color) for color in colors[:2]) >= 4.5
    assert contrast(note, colors[0]) >= 4.5
    assert contrast(paper, task) >= 3
    axis = opened.page.locator("#chart-overall svg text", has_text="Precision").first
    assert axis.evaluate("(text) => getComputedStyle(text).fill") == colors[0]
    assert opened.troubles == []
    opened.context.close()


@pytest.mark.slow
def test_paper_is_white_and_holds_every_row(browser: Any, page: Path):
    opened = Opened(browser, page, color_scheme="dark")
    opened.page.emulate_media(media="print", color_scheme="dark")
    assert opened.page.evaluate("() => getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert not opened.page.locator("nav").is_visible()
    assert opened.page.locator("#task-table").evaluate("(box) => box.scrollHeight <= box.clientHeight + 1")
    assert opened.page.pdf(format="A4").startswith(b"%PDF")
    opened.context.close()


@pytest.mark.slow
def test_a_narrow_window_scrolls_one_way(browser: Any, page: Path):
    opened = Opened(browser, page)
    opened.page.set_viewport_size({"width": 380, "height": 800})
    opened.page.wait_for_function("() => document.documentElement.scrollWidth === 380")
    assert opened.troubles == []
    opened.context.close()


@pytest.mark.slow
def test_hostile_names_are_read_and_do_nothing(browser: Any, tmp_path: Path):
    names = [
        *HOSTILE,
        "Ann",
        "ANN",
        "שלום עולם",
        "<!--",
        "</script><script>alert(2)</script>",
        "<img src=x onerror=alert(3)>",
    ]
    run = write_whole_run(tmp_path / "<b>run", sizes={name: 10 + i for i, name in enumerate(names)})
    write_report(run)
    opened = Opened(browser, run / "report" / "index.html")
    shown = opened.column("task-table", 0)
    assert len(set(shown)) == len(names)
    assert {"<script>alert(1)</script>", "Ann", "ANN", "שלום עולם", "🙂 👩\u200d👧", "x" * 300, "␠␠"} <= set(shown)
    assert "‹U+202E›right to left" in shown
    long = opened.page.locator("#task-table button.name", has_text="x" * 300)
    assert long.get_attribute("title") == "x" * 300
    assert long.evaluate("(name) => name.clientWidth < 220 && name.scrollHeight > name.clientHeight")
    for n in range(len(names)):
        opened.page.locator("#task-table button.name").nth(n).click()
    assert opened.page.locator("#kept bdi").count() == len(names)
    assert opened.page.locator("#run").inner_text() == "<b>run"
    assert opened.page.locator("main script, main img, main b").count() == 0
    opened.page.fill("#search", "<SCRIPT>")
    assert len(opened.column("task-table", 0)) == 2
    assert opened.troubles == []
    opened.context.close()


@pytest.mark.slow
def test_an_unfinished_run_has_a_page(browser: Any, tmp_path: Path):
    write_run(tmp_path, taus=(100.0,), floor=None)
    write_table(tmp_path, "trials", "later", [{"status": "running", "method": "map", "tau": 3.0, "seed": 0}])
    write_report(tmp_path)
    opened = Opened(browser, tmp_path / "report" / "index.html")
    assert opened.page.locator(".state.running").count() == 1
    assert "No trial has a learning curve yet." in opened.page.locator("#learning").inner_text()
    assert "Needs a finished fit at τ" in opened.page.locator("#figures").inner_text().replace("\xa0", " ")
    assert opened.troubles == []
    opened.context.close()


def enlarge(document: dict[str, Any], tasks: int, trials: int, taus: int) -> dict[str, Any]:
    """The same page with as many tasks, trials and values of tau."""
    rng, large = np.random.default_rng(0), copy.deepcopy(document)
    tables, charts = large["tables"], large["charts"]
    for name, count in (("tasks", tasks), ("trials", trials)):
        for columns in (tables[name]["values"], tables[name]["texts"]):
            for column, values in columns.items():
                columns[column] = [values[1 + i % (len(values) - 1)] for i in range(count)]
    tables["tasks"]["texts"]["task"] = [f"customer {i:04d} of the northern branch" for i in range(tasks)]
    tables["tasks"]["values"]["documents"] = np.sort(rng.integers(5, 500, tasks))[::-1]
    tables["trials"]["texts"]["trial_id"] = [f"{i:03d}" for i in range(trials)]
    large["are_few"] = False
    low, high = charts["each"]["x"]["domain"]
    charts["each"] |= {"places": np.linspace(low, high, taus), "parts": [(0, taus, False)]}
    values_DV = np.exp(rng.normal(3, 0.4, (tasks, 1)) + rng.normal(0, 0.03, (tasks, taus)))
    for view, values in (("absolute", values_DV), ("relative", 100 * (values_DV / values_DV[:, :1] - 1))):
        charts["each"]["views"][view] = {"values": significant(values), "y": value_axis(view, values)}
    epochs = {"epoch": list(range(40)), "perplexity": np.exp(rng.normal(3, 0.1, 40))}
    splits = [(i, split) for i in range(trials) for split in ("train", "validation")]
    charts["learning"]["curves"] = [{"trial": i, "split": split, **epochs} for i, split in splits]
    return large


@pytest.mark.slow
def test_a_thousand_tasks_and_a_hundred_trials(browser: Any, document: dict[str, Any], tmp_path: Path):
    path = tmp_path / "index.html"
    path.write_bytes(html.page(enlarge(document, tasks=1_000, trials=100, taus=24)))
    assert path.stat().st_size < 2_000_000
    opened = Opened(browser, path)
    assert len(opened.column("task-table", 0)) == 100
    opened.point("#chart-each", 0.5)
    assert opened.page.locator("#tip strong").inner_text().startswith("customer ")
    opened.page.fill("#search", "0042")
    assert opened.column("task-table", 0) == ["customer 0042 of the northern branch"]
    assert opened.troubles == []
    opened.context.close()


@pytest.fixture(scope="module")
def metrics_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a run whose tau was chosen by accuracy, with tasks without test documents."""
    run = tmp_path_factory.mktemp("metrics")
    write_run(run, taus=TAUS, sizes=SMALL, metrics=METRICS, metric_best=100.0, search_objective="accuracy")
    write_report(run)
    return run / "report" / "index.html"


def test_the_page_has_every_other_measure_by_the_numbers_of_its_report(metrics_page: Path):
    document, report = embedded(metrics_page.read_text()), Report(metrics_page.parents[1])
    assert document["measure"] == "Accuracy"
    assert [part["title"] for part in document["measures"]] == ["Perplexity", "my_module:score", "ROUGE-L"]
    tasks = document["tables"]["tasks"]
    for part, name in zip(document["measures"], ("perplexity", "my_module:score", "rouge_l"), strict=True):
        analysis, end = report.of(name).analysis, f"_{name.replace(':', '.')}"
        assert part["charts"]["overall"]["fits"]["level"] == near(
            analysis.scores.test_M[analysis.summary.fits].tolist()
        )
        assert list(zip(*part["table"]["texts"].values(), strict=True)) == [*map(tuple, overall_table(analysis).rows)]
        gains = {gain.task: gain for gain in analysis.task_gains if gain.reference == "shared"}
        expected = [gains[task].interval.estimate if task in gains else math.nan for task in tasks["texts"]["task"]]
        assert [number(value) for value in tasks["values"][f"gain_shared{end}"]] == near(expected)
        assert [one["columns"]["value"] for one in part["charts"]["gains"]["series"]] == [
            f"gain_independent{end}",
            f"gain_shared{end}",
        ]
    heads = [column["title"] for column in document["tables"]["trials"]["columns"]]
    assert {"Validation, perplexity", "Test, accuracy", "Validation, ROUGE-L", "Test, my_module:score"} <= set(heads)
    assert all(column["kind"] == "hidden" for column in tasks["columns"] if column["name"].endswith("_rouge_l"))


def test_a_page_without_metrics_has_no_other_measures(document: dict[str, Any]):
    assert document["measures"] == []
    assert document["measure"] == "Perplexity"


@pytest.mark.slow
def test_other_measures_are_drawn_and_read(browser: Any, metrics_page: Path, page: Path):
    opened = Opened(browser, metrics_page)
    assert opened.page.locator("#answer-tau").inner_text().startswith("τ\xa0=\xa0100 gives test accuracy ")
    assert opened.page.locator("#measures h3").all_inner_texts() == ["Perplexity", "my_module:score", "ROUGE-L"]
    assert opened.page.locator("#measures .chart svg").count() == 9
    assert opened.page.locator("#chart-level").is_visible()
    opened.point("#chart-0-gains", 0.6)
    assert "test perplexity " in opened.page.locator("#tip").inner_text()
    opened.point("#chart-2-each", 0.6)
    assert "test ROUGE-L " in opened.page.locator("#tip").inner_text()
    opened.page.locator("#scale input[value=absolute]").check(force=True)
    opened.page.locator("#chart-each").focus()
    seen = set()
    for _ in SMALL:
        opened.page.keyboard.press("ArrowRight")
        seen.add(opened.page.locator("#tip strong").inner_text())
    assert seen == set(SIZES)  # a task without test documents has no curve
    opened.page.locator("#task-table button.name", has_text="gil").click()  # and is kept without one
    assert opened.page.locator("#task-table [aria-pressed=true]").inner_text() == "gil"
    opened.page.set_viewport_size({"width": 380, "height": 800})
    opened.page.wait_for_function("() => document.documentElement.scrollWidth === 380")
    assert opened.troubles == []
    opened.context.close()
    plain = Opened(browser, page)
    assert not plain.page.locator("#measures").is_visible()
    assert not plain.page.locator("#measures-link").is_visible()
    plain.context.close()


def test_report_prints_where_the_page_is_and_opens_it(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    opened: list[str] = []
    monkeypatch.setattr(webbrowser, "open", lambda address: bool(opened.append(address)) or len(opened) == 1)
    assert main(["report", str(run)]) == 0
    assert f"page: {run / 'report' / 'index.html'}" in capsys.readouterr().out
    assert opened == []
    assert main(["report", str(run), "--open"]) == 0
    assert opened == [(run / "report" / "index.html").as_uri()]
    assert "no browser" not in capsys.readouterr().err
    assert main(["report", str(run), "--open"]) == 0
    assert "no browser found" in capsys.readouterr().err
    assert main(["report", "s3://bucket/run", "--open"]) == 2
    assert "copy s3://bucket/run/report/index.html" in capsys.readouterr().err
