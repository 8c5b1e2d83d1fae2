"""The Parquet contract: read without this package, written whole, null where nothing is known."""

import math

import duckdb
import pandas as pd
import pyarrow.parquet as pq
import pytest

from bora_sweep.errors import InputError
from bora_sweep.results import SCHEMAS, perplexity, read_results, read_trial_row, trial_rows, write_table

ROW = {"task": "ann", "split": "test", "num_documents": 3, "num_tokens": 10, "nll_nats": 20.0, "tau": math.inf}


def test_pandas_and_duckdb_read_a_table_without_us(tmp_path):
    for trial_id, tau in (("000", 0.0), ("001", math.inf)):
        write_table(tmp_path, "task_scores", trial_id, [{**ROW, "tau": tau}])
    (tmp_path / "results" / "task_scores" / ".002.99.part").write_bytes(b"half a file")
    frame = pd.read_parquet(tmp_path / "results" / "task_scores")
    assert list(frame.columns) == SCHEMAS["task_scores"].names
    assert sorted(frame["tau"]) == [0.0, math.inf]
    rows = duckdb.sql(f"select trial_id, tau from '{tmp_path}/results/task_scores/*.parquet' order by 1").fetchall()
    assert rows == [("000", 0.0), ("001", math.inf)]


def test_a_trial_is_replaced_whole(tmp_path):
    write_table(tmp_path, "trials", "000", [{"status": "running"}])
    write_table(tmp_path, "trials", "000", [{"status": "finished", "epochs": 3}])
    assert [row["status"] for row in trial_rows(tmp_path)] == ["finished"]
    assert read_trial_row(tmp_path, "000")["error"] is None
    assert read_trial_row(tmp_path, "001") is None
    assert not list((tmp_path / "results" / "trials").glob(".*"))


def test_results_that_lack_newer_columns_are_read(tmp_path):
    """The columns are there, null; also beside trials that have them."""
    newer = ["lora_variant", "prior_groups", "started_from", "train_tokens"]
    write_table(tmp_path, "trials", "000", [{"status": "finished", "lora_rank": 8, "train_tokens": 5}])
    path = tmp_path / "results" / "trials" / "000.parquet"
    pq.write_table(pq.read_table(path).drop_columns(newer), path)
    assert read_results(tmp_path).trials[newer].isna().all(axis=None)
    assert [row["started_from"] for row in [read_trial_row(tmp_path, "000"), *trial_rows(tmp_path)]] == [None, None]
    write_table(tmp_path, "trials", "001", [{"lora_variant": "dora", "started_from": "000", "train_tokens": 7}])
    trials = read_results(tmp_path).trials.set_index("trial_id")
    assert list(trials.columns) == [*SCHEMAS["trials"].names[1:], "run"]
    assert trials.loc["001", ["lora_variant", "started_from", "train_tokens"]].tolist() == ["dora", "000", 7]
    assert trials.loc["000", "lora_rank"] == 8


def test_several_runs_are_read_as_one(tmp_path):
    for name in ("one", "two"):
        write_table(tmp_path / name, "trials", "000", [{"status": "finished"}])
    results = read_results([tmp_path / "one", tmp_path / "two"])
    assert results.trials["run"].tolist() == [str(tmp_path / "one"), str(tmp_path / "two")]
    assert results.curves.empty


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(InputError, match="not a run's folder"):
        read_results(tmp_path)


def test_perplexity_is_of_sums():
    assert perplexity(20.0, 10) == pytest.approx(math.exp(2))
    assert math.isnan(perplexity(0.0, 0))
    assert perplexity(1e6, 10) == math.inf
