"""The Parquet contract: read without this package, written whole, null where nothing is known."""

import json
import math
import re
from pathlib import Path

import duckdb
import pandas as pd
import pyarrow.parquet as pq
import pytest

from bora_sweep.errors import InputError
from bora_sweep.runs.results import (
    SCHEMAS,
    objective,
    perplexity,
    read_results,
    read_trial_row,
    trial_rows,
    write_table,
)

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


def blocks(page: str, language: str, run: Path) -> list[str]:
    """The page's code that reads a run's tables, with the run's folder in it."""
    text = (Path(__file__).resolve().parents[2] / page).read_text()
    found = re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)
    return [re.sub(r"RUN\b|runs/…", str(run), block) for block in found if re.search(r"RUN\b|runs/…", block)]


@pytest.mark.parametrize("parents", ["plain", "tau=10/task=x/split=train/trial_id=7/run=b"])
def test_what_the_pages_say_reads_a_run_whatever_its_folders_are_called(tmp_path, parents):
    """Readers may take a folder called key=value for a column, in place of the file's own."""
    run = tmp_path / parents
    for trial_id, tau, nll_nats in (("000", 3.0, 20.0), ("001", math.inf, 10.0)):
        write_table(run, "trials", trial_id, [{"tau": tau, "status": "finished", "method": "map", "lora_rank": 8}])
        write_table(run, "task_scores", trial_id, [{**ROW, "tau": tau, "nll_nats": nll_nats, "perplexity": tau}])
    (query,) = blocks("docs/results.md", "sql", run)
    assert duckdb.sql(query).fetchall() == [(8, 3.0, math.exp(2)), (8, math.inf, math.exp(1))]
    ours, pandas = blocks("docs/results.md", "python", run)
    (readme,) = blocks("README.md", "python", run)
    known: dict = {}
    exec(ours, known)
    assert known["results"].trials["tau"].tolist() == [3.0, math.inf]
    assert known["results"].task_scores["split"].unique().tolist() == ["test"]
    for code in (pandas, readme):
        *_, last = code.strip().splitlines()
        exec(code.replace(last, f"table = {last}"), known)
        assert known["table"].to_dict("index") == {"ann": {3.0: 3.0, math.inf: math.inf}}


def test_a_trial_is_replaced_whole(tmp_path):
    write_table(tmp_path, "trials", "000", [{"status": "running"}])
    write_table(tmp_path, "trials", "000", [{"status": "finished", "epochs": 3}])
    assert [row["status"] for row in trial_rows(tmp_path)] == ["finished"]
    assert read_trial_row(tmp_path, "000")["error"] is None
    assert read_trial_row(tmp_path, "001") is None
    assert not list((tmp_path / "results" / "trials").glob(".*"))


def test_copies_and_what_systems_leave_among_the_tables_are_passed_over(tmp_path):
    """A name that `write_table` gives, and rows of the trial that it names."""
    for table in SCHEMAS:
        write_table(tmp_path, table, "003", [{"status": "finished", "epochs": 3}])
        folder = tmp_path / "results" / table
        whole = (folder / "003.parquet").read_bytes()
        for name in ("003 (1)", "003 copy", "Copy of 003", "003-Kopie", "003.sync-conflict-20260101-1", "004", "._004"):
            (folder / f"{name}.parquet").write_bytes(whole)
        for name in ("._003.parquet", "003 (2).parquet", ".DS_Store", "Thumbs.db", "desktop.ini", "003.parquet~"):
            (folder / name).write_bytes(b"not ours")
        pd.DataFrame({"trial_id": [7], "epochs": ["x"]}).to_parquet(folder / "~$003.parquet")
        pd.DataFrame({"a": [1]}).to_parquet(folder / "notes.parquet")
    assert [row["trial_id"] for row in trial_rows(tmp_path)] == ["003"]
    assert [row["trial_id"] for row in trial_rows(tmp_path, "003")] == ["003"]
    results = read_results(tmp_path)
    assert [len(getattr(results, table)) for table in SCHEMAS] == [1] * len(SCHEMAS)
    (tmp_path / "results" / "trials" / "003.parquet").unlink()
    with pytest.raises(InputError, match="no trial has begun yet"):
        read_results(tmp_path)


def test_results_that_lack_newer_columns_are_read(tmp_path):
    """The columns are there, null; also beside trials that have them."""
    newer = ["lora_variant", "prior_groups", "started_from", "train_tokens", "search_objective", "test_metrics"]
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
    with pytest.raises(InputError, match="is given twice"):
        read_results([str(tmp_path / "one"), tmp_path / "one"])


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(InputError, match="not a run's folder"):
        read_results(tmp_path)


def trial(**columns) -> dict:
    return {"validation_nll_nats": 20.0, "validation_num_tokens": 10, "search_objective": None} | columns


def test_the_objective_follows_what_chose_tau():
    metrics = json.dumps({"accuracy": 0.75, "my_module:score": -3.0, "rouge_l": math.nan, "exact_match": None})
    scored = trial(validation_metrics=metrics)
    assert objective(trial()) == objective(scored) == objective(scored | {"search_objective": "perplexity"}) == 2.0
    assert objective(scored | {"search_objective": math.nan}) == 2.0  # as pandas has a null
    assert objective(scored | {"search_objective": "accuracy"}) == -0.75
    assert objective(scored | {"search_objective": "my_module:score"}) == 3.0
    for missing in ("rouge_l", "exact_match", "other"):
        assert math.isnan(objective(scored | {"search_objective": missing}))
    assert math.isnan(objective(trial(search_objective="accuracy", validation_metrics=None)))
    assert math.isnan(objective(trial(validation_num_tokens=None)))


def test_the_objective_is_of_a_row_as_it_is_read(tmp_path):
    row = trial(search_objective="accuracy", validation_metrics='{"accuracy": 0.5}')
    write_table(tmp_path, "trials", "000", [row])
    assert objective(read_trial_row(tmp_path, "000")) == -0.5
    assert objective(read_results(tmp_path).trials.to_dict("records")[0]) == -0.5
    assert read_results(tmp_path).predictions.empty  # a run without metrics has no such folder


def test_perplexity_is_of_sums():
    assert perplexity(20.0, 10) == pytest.approx(math.exp(2))
    assert math.isnan(perplexity(0.0, 0))
    assert perplexity(1e6, 10) == math.inf


@pytest.mark.parametrize("damage", ["flipped", "cut", "newer"])
def test_a_table_that_is_damaged_or_newer_is_refused_by_name(damage, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        if damage == "newer":
            patch.setattr("bora_sweep.runs.results.FORMAT", 99)
        write_table(tmp_path, "trials", "007", [{"status": "finished"}])
    file = tmp_path / "results" / "trials" / "007.parquet"
    content = bytearray(file.read_bytes())
    if damage == "flipped":
        content[-6] ^= 255
    file.write_bytes(content[: len(content) // 2] if damage == "cut" else content)
    with pytest.raises(InputError, match=r"007\.parquet") as caught:
        read_results(tmp_path)
    assert ("newer" if damage == "newer" else "damaged") in str(caught.value)


def test_no_table_has_a_column_twice():
    for name, schema in SCHEMAS.items():
        assert len(set(schema.names)) == len(schema.names), name


def test_the_trial_of_the_first_seed_comes_before_those_of_seeds_that_were_added(tmp_path):
    for trial_id in ("003-1", "003", "002", "010", "002-1"):
        write_table(tmp_path, "trials", trial_id, [{"status": "finished"}])
    ids = ["002", "002-1", "003", "003-1", "010"]
    assert [row["trial_id"] for row in trial_rows(tmp_path)] == ids
    assert read_results(tmp_path).trials["trial_id"].tolist() == ids
