"""`bora-sweep add` to a run whose tasks are in groups: a new task joins its group, in tables and adapters."""

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from tiny import make_frame

from bora_sweep.cli import main
from bora_sweep.report.text.formats import perplexity_text
from bora_sweep.runs.results import read_results
from bora_sweep.train.checkpoint import load_adapters

SMALL = ["model.max_tokens=16", "lora.rank=2", "train.max_epochs=2", "train.device=cpu", "train.learning_rate=0.02"]
OLD = {"ann": "x", "bob": "y", "cid": "y", "dot": "z"}
NEW = {"eve": "y", "fay": "new", "gus": "x"}
SIZES = {"eve": 24, "fay": 8, "gus": 3}


@pytest.fixture(scope="module")
def run(corpus_file, model_folder, tmp_path_factory) -> Path:
    """A fit of four tasks in three groups."""
    folder = tmp_path_factory.mktemp("fitted")
    return fit_run(folder, corpus_file, model_folder, "prior.tau=30", "prior.tau_2=20")


def fit_run(folder: Path, corpus_file, model_folder, *settings: str) -> Path:
    table_of(OLD).to_csv(folder / "groups.csv", index=False)
    where = [f"data.path={corpus_file}", f"data.groups_path={folder / 'groups.csv'}", f"model.name={model_folder}"]
    assert main(["fit", *where, *settings, *SMALL, f"output={folder / 'run'}"]) == 0
    return folder / "run"


def table_of(groups: dict[str, str]) -> pd.DataFrame:
    return pd.DataFrame({"task": [*groups], "group": [*groups.values()]})


@pytest.fixture(scope="module")
def new(tmp_path_factory) -> Path:
    """Documents of three tasks: two of groups that the run has, one of a group that it has not."""
    folder = tmp_path_factory.mktemp("new")
    frame = make_frame(SIZES, seed=5)
    frame.assign(sort=frame["task"].map(NEW)).to_parquet(folder / "new.parquet")
    table_of(OLD | NEW).to_csv(folder / "groups.csv", index=False)
    return folder


@pytest.fixture(scope="module")
def added(run, new, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("added") / "out"
    assert add(run, new / "new.parquet", out, f"data.groups_path={new / 'groups.csv'}") == 0
    return out


def add(run: Path, file: Path, out: Path, *settings: str) -> int:
    return main(["add", str(run), str(file), "train.max_epochs=2", *settings, f"output={out}"])


def said(capsys) -> str:
    return " ".join(capsys.readouterr().err.split())


def test_a_new_task_is_tied_to_the_theta_g_of_its_group(run, added):
    before, about_run = load_adapters(run / "trials" / "fit")
    banks, about = load_adapters(added / "trials" / "add")
    assert about["groups"] == [*about_run["groups"], "new"]
    assert about["group_of"] == NEW
    assert torch.equal(banks["mean_P"], before["mean_P"])
    torch.testing.assert_close(banks["theta_GP"], torch.cat([before["theta_GP"], before["mean_P"][None]]))
    prior = json.loads(read_results(added).trials.set_index("trial_id").loc["add", "config_json"])["prior"]
    assert (prior["tau"], prior["tau_2"]) == (30.0, 20.0)
    assert prior["group_scales"] == {"fay": pytest.approx(1 / (1 / 30 + 1 / 20) / 30)}


def test_its_tables_have_the_scores_under_theta_under_theta_g_and_under_own_adapters(run, added):
    results = read_results(added)
    trials = results.trials.set_index("trial_id")
    assert trials["tau"].to_dict() == {"global": float("inf"), "group": float("inf"), "add": 30.0}
    assert trials["tau_2"].to_dict() == {"global": float("inf"), "group": 20.0, "add": 20.0}
    theta_of = {trial: load_adapters(added / "trials" / trial)[0]["theta_KP"] for trial in ("global", "group")}
    before, _ = load_adapters(run / "trials" / "fit")
    torch.testing.assert_close(theta_of["global"], before["mean_P"].expand(3, -1))
    torch.testing.assert_close(
        theta_of["group"], torch.stack([before["theta_GP"][1], before["mean_P"], before["theta_GP"][0]])
    )
    scores = results.task_scores.set_index("trial_id")
    assert dict(zip(scores.loc["add", "task"], scores.loc["add", "group"], strict=True)) == NEW
    tau_of = dict(zip(scores.loc["add", "task"], scores.loc["add", "tau"], strict=True))
    assert tau_of == {"eve": 30.0, "fay": pytest.approx(12.0), "gus": 30.0}


def test_the_report_stands_each_task_beside_its_group(added):
    frame = pd.read_csv(added / "report" / "tables" / "tasks.csv").set_index("task")
    scores = read_results(added).task_scores.query("split == 'test'").set_index(["trial_id", "task"])["perplexity"]
    names = {"global_test_perplexity": "global", "group_test_perplexity": "group", "test_perplexity": "add"}
    for column, trial_id in names.items():
        assert frame.loc["eve", column] == pytest.approx(scores[trial_id, "eve"])
    assert frame.loc["eve", "difference"] == pytest.approx(scores["add", "eve"] / scores["group", "eve"] - 1)
    assert frame["group"].to_dict() == NEW
    report = (added / "report" / "report.md").read_text()
    assert "under the Θ_g of their groups as they are" in report
    assert "1 task of 1 group which the run has not" in report
    header = next(line for line in report.split("\n") if line.startswith("| task | group |"))
    row = next(line for line in report.split("\n") if line.startswith("| eve |"))
    of_column = dict(zip(header.split(" | "), row.split(" | "), strict=True))
    assert of_column["own adapter"] == perplexity_text(frame.loc["eve", "test_perplexity"])
    assert of_column["under Θ"] == perplexity_text(frame.loc["eve", "global_test_perplexity"])
    assert of_column["under Θ\\_g"] == perplexity_text(frame.loc["eve", "group_test_perplexity"])


def test_other_commands_take_it(added, tmp_path, capsys):
    assert main(["status", str(added)]) == 0
    assert "3 of 3 trials finished" in capsys.readouterr().out
    assert main(["export", str(added), str(tmp_path / "out")]) == 0
    groups = json.loads((tmp_path / "out" / "groups.json").read_text())
    assert groups["tasks"] == NEW
    assert set(groups["groups"]) == {"x", "y", "z", "new"}
    card = (tmp_path / "out" / "eve" / "README.md").read_text()
    assert "its group's Θ\\_g as it is" in card
    assert "Θ_g ∼ N(Θ, I/τ₂)" in card
    assert main(["generate", str(added), "--task", "_group_x", "--task", "eve", "w1", "--max-new-tokens", "3"]) == 0


def test_the_groups_may_be_a_column_of_the_new_file(run, new, added, tmp_path):
    assert add(run, new / "new.parquet", tmp_path / "out", "data.group_column=sort") == 0
    by_column, by_file = (load_adapters(folder / "trials" / "add")[0] for folder in (tmp_path / "out", added))
    assert torch.equal(by_column["theta_KP"], by_file["theta_KP"])


def test_without_them_the_groups_of_the_run_are_asked_for_the_task(run, new, tmp_path, capsys):
    assert add(run, new / "new.parquet", tmp_path / "out") == 2
    message = said(capsys)
    assert f"data.groups_path={run.parent / 'groups.csv'}: has no row of task 'eve'" in message
    assert "add one with its group" in message
    assert not (tmp_path / "out").exists()


def test_tasks_are_added_to_an_add_in_turn(run, added, tmp_path, capsys):
    """Its trial has the groups of the whole run; what it did not know it still does not know."""
    settings = [f"data.groups_path={tmp_path / 'groups.csv'}"]
    table_of({"hal": "z", "ida": "new"}).to_csv(tmp_path / "groups.csv", index=False)
    make_frame({"hal": 8, "ida": 8}, seed=6).to_parquet(tmp_path / "more.parquet")
    assert add(added, tmp_path / "more.parquet", tmp_path / "second", *settings) == 0
    assert "1 task of 1 group that" in said(capsys)
    assert add(run, tmp_path / "more.parquet", tmp_path / "first", *settings) == 0
    first, second = (load_adapters(tmp_path / name / "trials" / "add") for name in ("first", "second"))
    assert torch.equal(first[0]["theta_KP"], second[0]["theta_KP"])
    assert torch.equal(first[0]["theta_GP"], second[0]["theta_GP"])


def test_a_task_is_fitted_anew_from_its_adapter_and_may_be_in_another_group_now(run, corpus_file, tmp_path, capsys):
    frame = pd.read_parquet(corpus_file)
    frame[frame["task"] == "ann"].to_parquet(tmp_path / "ann.parquet")
    table_of({"ann": "z"}).to_csv(tmp_path / "groups.csv", index=False)
    assert (
        add(run, tmp_path / "ann.parquet", tmp_path / "out", "--refresh", f"data.groups_path={tmp_path / 'groups.csv'}")
        == 0
    )
    assert "task 'ann' was of group 'x', and is of group 'z' now" in said(capsys)
    before, _ = load_adapters(run / "trials" / "fit")
    start, about = load_adapters(tmp_path / "out" / "start")
    assert (about["tasks"], about["groups"]) == (["ann"], ["x", "y", "z"])
    assert torch.equal(start["theta_KP"][0], before["theta_KP"][0])
    assert load_adapters(tmp_path / "out" / "trials" / "add")[1]["group_of"] == {"ann": "z"}


def test_a_group_that_is_not_known_cannot_be_joined_where_nothing_passes_between_groups(
    corpus_file, model_folder, new, tmp_path, capsys
):
    run = fit_run(tmp_path, corpus_file, model_folder, "prior.tau=30", "prior.tau_2=0")
    settings = [f"data.groups_path={new / 'groups.csv'}"]
    assert add(run, new / "new.parquet", tmp_path / "out", *settings) == 2
    assert "task 'fay': is of group 'new'" in said(capsys)
    assert not (tmp_path / "out").exists()
    assert add(run, new / "new.parquet", tmp_path / "out", *settings, "data.exclude_tasks=[fay]") == 0
    banks, about = load_adapters(tmp_path / "out" / "trials" / "add")
    assert about["tasks"] == ["eve", "gus"]
    assert (banks["theta_KP"] - banks["theta_GP"][[1, 0]]).norm(dim=1).min() > 0


def test_at_tau_inf_each_new_task_has_the_adapter_of_its_group(corpus_file, model_folder, new, tmp_path):
    run = fit_run(tmp_path, corpus_file, model_folder, "prior.tau=inf", "prior.tau_2=20")
    assert add(run, new / "new.parquet", tmp_path / "out", f"data.groups_path={new / 'groups.csv'}") == 0
    banks, _ = load_adapters(tmp_path / "out" / "trials" / "add")
    before, _ = load_adapters(run / "trials" / "fit")
    expected = torch.stack([before["theta_GP"][1], before["mean_P"], before["theta_GP"][0]])
    torch.testing.assert_close(banks["theta_KP"], expected)


def test_a_task_leaves_and_the_groups_stay_which_other_tasks_decided(added, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(added, copy)
    assert main(["forget", str(copy), "--task", "gus", "--task", "fay"]) == 0
    banks, about = load_adapters(copy / "trials" / "add")
    assert about["tasks"] == ["eve"]
    assert about["groups"] == ["x", "y", "z", "new"]
    assert len(banks["theta_GP"]) == 4
    config = yaml.safe_load((copy / "config.yaml").read_text())
    assert config["prior"]["group_scales"] == {}
    assert config["data"]["exclude_tasks"] == ["gus", "fay"]
