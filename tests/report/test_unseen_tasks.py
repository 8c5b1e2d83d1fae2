"""What the report says of tasks without text."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from made_up_runs import SIZES, write_run

from bora_sweep.report import write_report
from bora_sweep.report.stats.pool_trials import summarise
from bora_sweep.report.stats.unseen import unseen_tasks
from bora_sweep.runs.results import SCHEMAS, read_results, write_table


def fill(run: Path, trial_id: str, factor_of: dict[str, float]) -> pd.DataFrame:
    """Write `unseen_nll_nats` of a trial, its nats times a factor for each task; returns its test rows."""
    scores = read_results(run).task_scores
    rows = scores.loc[scores["trial_id"] == trial_id].drop(columns="run").reset_index(drop=True)
    rows["unseen_nll_nats"] = rows["nll_nats"] * [factor_of[task] for task in rows["task"]]
    write_table(run, "task_scores", trial_id, rows)
    return rows.loc[rows["split"] == "test"]


def test_the_line_has_the_level_of_the_tasks_that_were_left_out(tmp_path):
    run = write_run(tmp_path)
    assert "Tasks without text" not in write_report(run).read_text()
    assert summarise(read_results(run)).unseen is None
    factors = dict(zip(SIZES, [1.02, 1.06, 1.04, 1.10, 1.05], strict=True))
    fill(run, "tau=100-0", dict.fromkeys(SIZES, 2.0))  # not the best fit
    rows = fill(run, "tau=1000-0", factors)
    unseen = summarise(read_results(run)).unseen
    assert unseen is not None
    assert unseen.num_tasks == len(SIZES)
    level = math.exp(rows["unseen_nll_nats"].sum() / rows["num_tokens"].sum())
    own = math.exp(rows["nll_nats"].sum() / rows["num_tokens"].sum())
    assert unseen.level.estimate == pytest.approx(level)
    assert unseen.own == pytest.approx(own)
    assert unseen.above_own.estimate == pytest.approx(level / own - 1)
    assert 0 < unseen.above_own.low < unseen.above_own.high
    page = write_report(run).read_text()
    assert f"served by `_global`, can expect a test perplexity of {level:.2f} [" in page
    assert f"above the {own:.2f} that they have with text of their own; the base model alone has" in page
    assert f"test perplexity of {level:.2f} [" in (run / "report" / "index.html").read_text()


def test_its_interval_holds_the_level_of_the_tasks_that_may_come():
    """Tasks are drawn anew, each with its own nats per token and amount of text: the intervals are over tasks."""
    rng, hits = np.random.default_rng(0), 0
    for _ in range(200):
        tokens = rng.integers(50, 150, 15)
        nats = tokens * rng.normal(2.5, 0.2, 15)
        rows = {"run": "r", "trial_id": "t", "split": "test", "num_tokens": tokens, "unseen_nll_nats": nats}
        level = unseen_tasks(pd.DataFrame({**rows, "nll_nats": 0.9 * nats}), [("r", "t")]).level
        hits += level.low <= math.exp(2.5) <= level.high
    assert 0.90 <= hits / 200 <= 0.99


def test_results_of_an_older_release_read_as_not_computed(tmp_path):
    """Their files have no such column."""
    run = write_run(tmp_path, taus=(100.0,))
    file = next((run / "results" / "task_scores").glob("*.parquet"))
    pd.read_parquet(file).drop(columns="unseen_nll_nats").to_parquet(file)
    assert "unseen_nll_nats" in SCHEMAS["task_scores"].names
    assert read_results(run).task_scores["unseen_nll_nats"].isna().all()
    assert summarise(read_results(run)).unseen is None
