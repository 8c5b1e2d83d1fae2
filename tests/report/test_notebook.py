"""The notebook of docs/ runs from its first cell to its last, and what is committed is what a run gave."""

import base64
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from made_up_runs import HOSTILE, TAUS, write_run
from notebooks import run_notebook

from bora_sweep import Comparison, Report
from bora_sweep.runs.results import perplexity, read_results, trial_rows, write_table

NOTEBOOK = Path(__file__).resolve().parents[2] / "docs" / "analysis.ipynb"


@pytest.fixture(scope="module")
def outputs(tmp_path_factory) -> list[list[dict]]:
    """Of each code cell, on a run whose best tau is 1,000."""
    run = write_run(tmp_path_factory.mktemp("run"))
    scores: Any = read_results(run).task_scores.groupby(["trial_id", "split"])[["nll_nats", "num_tokens"]].sum()
    for row in trial_rows(run):
        for split in ("validation", "test"):
            row[f"{split}_perplexity"] = perplexity(*scores.loc[row["trial_id"], split])
        write_table(run, "trials", row["trial_id"], [row])
    for tau in TAUS:
        rows = [
            {"epoch": epoch, "split": "validation", "nll_nats": 100 * (3 + math.exp(-epoch)), "num_tokens": 100}
            for epoch in range(4)
        ]
        write_table(run, "curves", f"tau={tau:g}-0", rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RUN", str(run))
        return [cell["outputs"] for cell in run_notebook(NOTEBOOK)["cells"] if cell["cell_type"] == "code"]


def committed() -> list[dict]:
    return [cell for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]


def test_it_finds_what_is_in_the_results(outputs):
    texts = ["".join(output.get("text", output.get("data", {}).get("text/plain", ""))) for (output, *_) in outputs]
    assert any("tau = 1,000 is best on validation" in text for text in texts)
    assert any(text.startswith("**τ = 1,000 gives test perplexity") for text in texts)


def test_it_draws_four_figures_and_one_with_the_report(outputs):
    drawn = [output for cell in outputs for output in cell if "image/png" in output.get("data", {})]
    assert len(drawn) == 4
    pages = ["".join(output.get("data", {}).get("text/html", "")) for cell in outputs for output in cell]
    assert sum('<img alt="Line plot of test perplexity' in page for page in pages) == 1
    assert any("7 trials (7 finished)" in page or "6 trials (6 finished)" in page for page in pages)


def test_what_is_committed_is_of_a_run_in_order(outputs):
    assert [cell["execution_count"] for cell in committed()] == list(range(1, len(outputs) + 1))
    for cell, now in zip(committed(), outputs, strict=True):
        assert [output["output_type"] for output in cell["outputs"]] == [output["output_type"] for output in now]


def test_no_place_of_a_machine_is_in_it():
    texts = [text for cell in committed() for text in ("".join(cell["source"]), *_texts(cell["outputs"]))]
    assert not [text for text in texts if re.search(r"/(home|root|tmp|work|Users|mnt)/", text)]


def _texts(outputs: list[dict]) -> list[str]:
    return ["".join(lines) for o in outputs for kind, lines in o.get("data", {}).items() if kind != "image/png"]


def pictures(html: str) -> list[bytes]:
    return [base64.b64decode(text) for text in re.findall(r'src="data:image/png;base64,([^"]*)"', html)]


def test_names_from_the_data_are_text_in_a_notebook(tmp_path: Path):
    run = write_run(tmp_path / "<i>run", sizes={name: 12 + n for n, name in enumerate(HOSTILE)})
    other = write_run(tmp_path / "other", sizes={name: 12 + n for n, name in enumerate(HOSTILE)})
    report = Report(run)
    shown = [read_results(run), report, report.figures, Comparison([run, other])]
    for html in (one._repr_html_() for one in shown):
        assert not re.search(r"<(script|i|b|a)\b", html)
    assert "&lt;i&gt;run" in shown[0]._repr_html_()


def test_results_say_what_they_hold(tmp_path: Path):
    run = write_run(tmp_path / "run")
    for row in trial_rows(run):
        tokens = {f"{split}_num_tokens": 1_000 for split in ("validation", "test")}
        write_table(run, "trials", row["trial_id"], [row | tokens | {"validation_perplexity": 20.5}])
    results = read_results(run)
    assert repr(results).endswith("run: 6 trials (6 finished), 5 tasks, 51 validation and 77 test documents)")
    html = results._repr_html_()
    assert "Best on validation by perplexity: tau = 1,000, trial tau=1000-0, validation perplexity 20.5, " in html
    assert html.count("<tr") == 7
    for n in range(9):
        write_table(tmp_path / "run", "trials", f"more{n}", [{"status": "running", "method": "map", "tau": 3.0 + n}])
    html = read_results(tmp_path / "run")._repr_html_()
    assert "15 trials (9 running, 6 finished)" in html
    assert "… and 5 more in" in html
    assert html.count("<tr") == 11


def test_reports_and_comparisons_have_a_short_name(tmp_path: Path):
    run = write_run(tmp_path / "run", metrics=("accuracy",))
    other = write_run(tmp_path / "other")
    report = Report(run)
    assert repr(report).startswith(f"Report({run}: 6 trials (6 finished), 5 tasks, ")
    assert repr(report).endswith(", best tau = 1000)")
    assert repr(report.of("accuracy")) == "MeasureReport(accuracy: best tau = 1000)"
    assert repr(Comparison([run, other])) == "Comparison(run, other)"


def test_results_without_a_finished_fit_can_be_shown(tmp_path: Path):
    write_table(tmp_path, "trials", "0", [{"status": "running", "method": "map", "tau": 3.0, "seed": 0}])
    html = read_results(tmp_path)._repr_html_()
    assert "1 trial (1 running), 0 tasks" in html
    assert "Best on" not in html


@pytest.mark.usefixtures("real_pictures")
def test_figures_show_themselves_and_each_other(tmp_path: Path):
    figures = Report(write_run(tmp_path)).figures
    html = figures._repr_html_()
    assert len(pictures(html)) == len(figures) == 6
    assert html.count("<figcaption>") == 6
    assert "tables/" not in html
    for figure in figures.values():
        assert figure._repr_png_() == figure._repr_png_()  # type: ignore[reportAttributeAccessIssue]
        assert figure._repr_png_().startswith(b"\x89PNG")  # type: ignore[reportAttributeAccessIssue]
