"""The notebook of docs/ runs from its first cell to its last, and what is committed is what a run gave."""

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from made_up_runs import TAUS, write_run
from notebooks import run_notebook

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


def test_it_draws_three_figures(outputs):
    drawn = [output for cell in outputs for output in cell if "image/png" in output.get("data", {})]
    assert len(drawn) == 3


def test_what_is_committed_is_of_a_run_in_order(outputs):
    assert [cell["execution_count"] for cell in committed()] == list(range(1, len(outputs) + 1))
    for cell, now in zip(committed(), outputs, strict=True):
        assert [output["output_type"] for output in cell["outputs"]] == [output["output_type"] for output in now]


def test_no_place_of_a_machine_is_in_it():
    texts = [text for cell in committed() for text in ("".join(cell["source"]), *_texts(cell["outputs"]))]
    assert not [text for text in texts if re.search(r"/(home|root|tmp|work|Users|mnt)/", text)]


def _texts(outputs: list[dict]) -> list[str]:
    return ["".join(lines) for o in outputs for kind, lines in o.get("data", {}).items() if kind != "image/png"]
