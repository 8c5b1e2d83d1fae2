"""Methods compared, each with what it was made from; and fits of other ranks, variants and groups."""

import json
import math
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up_runs import SIZES, table_after, write_run, write_trial

from bora_sweep.report import write_report
from bora_sweep.report.stats.method_comparison import compare_methods, training_cost
from bora_sweep.report.stats.pool_trials import summarise
from bora_sweep.runs.results import read_results


def write_method(
    run: Path, trial_id: str, method: str, above: float, tau: float | None = None, **columns: object
) -> None:
    """A finished trial, `above` nats per token over the fit at tau = 1,000 in every document."""
    nats = {task: 3.0 + 0.05 * d + above for d, task in enumerate(SIZES)}
    write_trial(run, tau, trial_id=trial_id, nats=nats, method=method, **columns)


def write_methods(run: Path) -> Path:
    """Of every kind: BoRA stands 0.04 nats per token below shared, 0.13 below independent."""
    for tau in (None, 0.0, math.inf):
        write_trial(run, tau, train_tokens=1_000 if tau is not None else 0)
    for tau in (100.0, 1_000.0, 10_000.0):
        write_trial(run, tau, train_tokens=100, started_from="tau=inf-0")
    write_method(run, "rank-32", "map", 0.03, tau=math.inf, lora_rank=32, train_tokens=2_000)
    write_method(run, "rank-2", "map", 0.09, tau=math.inf, lora_rank=2, train_tokens=500)
    write_method(run, "tuned", "fine_tuned", 0.01, tau=0.0, started_from="tau=inf-0", train_tokens=10)
    write_method(run, "merged", "ties", 0.4, started_from="tau=0-0", train_tokens=0, train_seconds=0.0)
    for tau, above in ((100.0, 0.035), (1_000.0, 0.045)):
        write_method(run, f"alternated-{tau:g}", "pfedme", above, tau=tau, train_tokens=300)
    groups = json.dumps({"attention": 10.0, "mlp": math.inf})
    write_method(run, "grouped", "map", -0.05, tau=1_000.0, prior_groups=groups, train_tokens=100)
    return run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_methods(tmp_path)


def test_each_method_has_a_row_in_order_of_test(run: Path):
    page = write_report(run).read_text()
    rows = table_after(page, "## Methods compared")
    assert [row[0] for row in rows[1:]] == [
        "BoRA, τ = 10 (attention), ∞ (mlp)",
        "BoRA, τ = 1,000",
        "shared, then fine-tuned per task",
        "one model for all (τ = ∞), rank 32, best of 2, 8, 32",
        "pFedMe, τ = 100",
        "one model for all (τ = ∞)",
        "one model per task (τ = 0)",
        "merged: TIES",
        "zero-shot",
    ]
    assert "Of the methods compared, the best on validation is: BoRA, τ = 10 (attention), ∞ (mlp)." in page
    assert rows[0][4] == "Test vs τ = 1,000"
    assert rows[2][4] == "0"
    assert rows[6][4] == "+4.1% [+4.1, +4.1]"
    numbers = pd.read_csv(run / "report" / "tables" / "methods.csv")
    assert numbers["test_perplexity"].is_monotonic_increasing
    assert (numbers["test_low"] < numbers["test_perplexity"]).all()


def test_costs_are_those_of_all_that_a_fit_was_made_from_and_of_its_search(run: Path):
    rows = table_after(write_report(run).read_text(), "## Methods compared")
    tokens = {row[0].split(",")[0]: (row[5], row[6]) for row in reversed(rows[1:])}
    assert rows[2][5:] == ["1,100", "1,300", "24.7", "49.4"]  # three values of tau, all begun at the shared fit
    assert tokens["shared"] == ("1,010", "1,010")
    assert tokens["merged: TIES"] == ("1,000", "1,000")
    assert tokens["pFedMe"] == ("300", "600")
    assert rows[4][5:7] == ["2,000", "3,500"]
    assert tokens["zero-shot"] == ("0", "0")


def test_the_curve_over_tau_is_of_one_structure(run: Path):
    summary = summarise(read_results(run))
    assert summary.structure == (8, "lora", None, None)
    assert [summary.settings[m].tau for m in summary.fits] == [0, 100, 1_000, 10_000, math.inf]
    assert summary.best_tau == 1_000
    assert len(table_after(write_report(run).read_text(), "## Table 1")) == 1 + 1 + 5 + 1  # zero-shot, fits, floor
    columns = pd.read_csv(run / "report" / "tables" / "table_a1.csv").columns
    assert "tau=inf" in columns
    assert "tau=inf lora_rank=32 lora_variant=lora" in columns
    rows = table_after((run / "report" / "report.md").read_text(), "## Trials")
    told = {
        "∞, rank 32",
        "fine-tuned, τ = 0",
        "ties",
        "pfedme, τ = 100",
        "10 (attention), ∞ (mlp)",
        "zero-shot",
        "1,000",
    }
    assert told <= {row[2] for row in rows}


def test_validation_chooses_among_ranks_and_values_of_tau(run: Path):
    summary = summarise(read_results(run))
    for method in compare_methods(summary):
        tried = [summary.settings[m].objective for m in method.candidates]
        assert summary.settings[method.setting].objective == min(tried)


def test_fits_over_tau_alone_need_no_comparison(tmp_path: Path):
    assert "Methods compared" not in write_report(write_run(tmp_path)).read_text()
    assert not (tmp_path / "report" / "tables" / "methods.csv").exists()


def test_a_grouped_fit_alone_makes_a_report(tmp_path: Path):
    write_method(tmp_path, "000", "map", 0.0, tau=10.0, prior_groups='{"attention": 10.0}', lora_variant="dora")
    assert "It is the only value fitted." in write_report(tmp_path).read_text()


@pytest.mark.parametrize(("groups", "against"), [(None, "τ = ∞"), ('{"attention": 10.0}', "τ = 10 (attention)")])
def test_without_bora_at_one_tau_methods_are_compared_with_the_next_best(
    tmp_path: Path, groups: str | None, against: str
):
    write_run(tmp_path, taus=(None, 0.0, math.inf))
    write_method(tmp_path, "merged", "average", 0.4)
    if groups:
        write_method(tmp_path, "grouped", "map", 0.0, tau=10.0, prior_groups=groups)
    rows = table_after(write_report(tmp_path).read_text(), "## Methods compared")
    assert rows[0][4] == f"Test vs {against}"
    assert [row[4] for row in rows[1:]].count("0") == 1


def test_older_results_stand_beside_newer_ones(tmp_path: Path):
    """Null where a column was not written yet: of plain LoRA, and tokens by the rate."""
    write_run(tmp_path, lora_variant=None, train_tokens=None)
    write_trial(tmp_path, 300.0, lora_variant="lora", train_tokens=1)
    write_method(tmp_path, "merged", "dare", 0.4, started_from="tau=0-0", train_tokens=0, train_seconds=0.0)
    rows = table_after(write_report(tmp_path).read_text(), "## Methods compared")
    assert len(rows) == 1 + 5
    assert {row[5] for row in rows[1:]} == {f"{12.34 * 45_678.9:,.0f}"}
    assert len(summarise(read_results(tmp_path)).fits) == 6


@pytest.mark.parametrize(
    ("trial_id", "said"), [("tuned", "shared, then fine-tuned per task"), ("alternated-100", "pFedMe")]
)
def test_every_method_shown_at_the_cap_is_a_warning(run: Path, trial_id: str, said: str):
    row = read_results(run).trials.set_index("trial_id").loc[trial_id]
    above = {"tuned": 0.01, "alternated-100": 0.035}[trial_id]
    write_method(run, trial_id, row["method"], above, tau=row["tau"], stopped_by="max_epochs", best_epoch=30)
    assert f"may still have been improving: {said}" in write_report(run).read_text()


def ledger(sources: dict[str, str | None], **columns: list[float]) -> pd.DataFrame:
    rows = {"run": "r", "trial_id": list(sources), "started_from": list(sources.values())}
    return pd.DataFrame(rows).assign(**{"train_tokens": 1.0, "train_seconds": 2.0, "tokens_per_second": 3.0} | columns)


@given(st.lists(st.sets(st.integers(0, 9)), min_size=10, max_size=10), st.sets(st.integers(0, 9), min_size=1))
@settings(max_examples=30, deadline=None)
def test_each_trial_is_counted_once_however_it_is_reached(parents: list[set[int]], asked: set[int]):
    trials = ledger({str(i): ",".join(str(j) for j in sorted(js) if j < i) or None for i, js in enumerate(parents)})
    reached = set(asked)
    for i in range(9, -1, -1):
        reached |= {j for j in parents[i] if j < i} if i in reached else set()
    spent = training_cost(trials, [("r", str(i)) for i in asked])
    assert (spent.train_tokens, spent.train_seconds) == (len(reached), 2 * len(reached))


def test_a_cost_that_is_not_known_is_not_a_number():
    assert math.isnan(training_cost(ledger({"a": "gone"}), [("r", "a")]).train_tokens)
    untold = training_cost(ledger({"a": "b, c", "b": None, "c": None}, train_tokens=[1, math.nan, 1]), [("r", "a")])
    assert untold.train_tokens == 1 + 6 + 1
