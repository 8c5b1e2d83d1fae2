"""A run whose tasks are in groups, from the command line to what other commands make of it."""

import json
import math
import re
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch
from pyarrow import parquet
from tiny import make_frame

from bora_sweep.cli import main
from bora_sweep.first_run import trained_fits
from bora_sweep.model.peft_io import GROUPS
from bora_sweep.runs.folder import config_of
from bora_sweep.runs.results import read_results, trial_rows
from bora_sweep.train.checkpoint import load_adapters, save_adapters
from bora_sweep.tune.trial_table import trial_label

SMALL = ["model.max_tokens=16", "lora.rank=2", "train.max_epochs=1", "train.device=cpu", "train.learning_rate=0.02"]
GROUP_OF = {"ann": "x", "bob": "y", "cid": "y", "dot": "z"}


@pytest.fixture(scope="module")
def groups_file(tmp_path_factory) -> Path:
    """Groups as `bora-sweep groups` writes them."""
    path = tmp_path_factory.mktemp("groups") / "groups.csv"
    pd.DataFrame({"task": [*GROUP_OF], "group": [*GROUP_OF.values()]}).to_csv(path, index=False)
    return path


@pytest.fixture(scope="module")
def run(corpus_file, model_folder, groups_file, tmp_path_factory) -> Path:
    """A fit of four tasks in three groups."""
    run = tmp_path_factory.mktemp("fitted") / "run"
    settings = [f"data.path={corpus_file}", f"data.groups_path={groups_file}", f"model.name={model_folder}"]
    assert main(["fit", *settings, "prior.tau=30", "prior.tau_2=20", *SMALL, f"output={run}"]) == 0
    return run


def test_a_trial_is_labelled_with_both_taus(run):
    (row,) = trial_rows(run)
    assert trial_label(row) == "tau = 30, tau_2 = 20"


@pytest.mark.slow
def test_an_add_to_a_trial_in_which_groups_do_not_matter_is_that_of_two_levels(
    corpus_file, model_folder, groups_file, tmp_path, capsys
):
    make_frame({"eve": 8}).to_parquet(tmp_path / "new.parquet")
    settings = [f"data.path={corpus_file}", f"model.name={model_folder}", "prior.tau=30", *SMALL]
    groups = [f"data.groups_path={groups_file}", "prior.tau_2=inf"]
    found = []
    for name, more in (("grouped", groups), ("plain", [])):
        assert main(["fit", *settings, *more, f"output={tmp_path / name}"]) == 0
        add = ["add", str(tmp_path / name), str(tmp_path / "new.parquet"), "train.max_epochs=1"]
        assert main([*add, f"output={tmp_path / name}-added"]) == 0
        found.append(load_adapters(tmp_path / f"{name}-added" / "trials" / "add")[0]["theta_KP"])
    assert torch.equal(*found)
    capsys.readouterr()
    assert main([*add, f"data.groups_path={groups_file}", f"output={tmp_path / 'out'}"]) == 2
    assert "ties its tasks to Theta alone, and knows of no groups; drop it" in " ".join(capsys.readouterr().err.split())


def test_a_task_leaves_and_a_group_with_it_that_has_no_other(run, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    before, _ = load_adapters(copy / "trials" / "fit")
    assert main(["forget", str(copy), "--task", "ann", "--task", "bob"]) == 0
    tensors, about = load_adapters(copy / "trials" / "fit")
    assert (about["tasks"], about["groups"]) == (["cid", "dot"], ["y", "z"])
    assert about["group_of"] == {"cid": "y", "dot": "z"}
    assert torch.equal(tensors["theta_KP"], before["theta_KP"][[2, 3]])
    assert torch.equal(tensors["theta_GP"], before["theta_GP"][[1, 2]])
    assert main(["export", str(copy), str(tmp_path / "out")]) == 0
    assert json.loads((tmp_path / "out" / GROUPS).read_text())["tasks"] == {"cid": "y", "dot": "z"}


@pytest.mark.parametrize("merge", [[], ["--merge"]], ids=["adapters", "merged"])
def test_a_groups_folder_has_what_a_tasks_has(run, merge, tmp_path):
    """The same files, and a card with the perplexity over the group's tasks and code that loads the folder."""
    out = tmp_path / "out"
    assert main(["export", str(run), str(out), *merge]) == 0
    files = {name: {path.name for path in (out / name).iterdir()} for name in ("_group_y", "bob", "_global")}
    assert files["_group_y"] == files["bob"] == files["_global"]
    card = (out / "_group_y" / "README.md").read_text()
    assert "for group y (Θ_g)" in card
    assert "This is Θ_g of one group, for a task of that group" in card
    assert '"_group_y"' in card or "'_group_y'" in card
    scores = read_results(run).task_scores.query("task in ['bob', 'cid']")
    sums = pd.DataFrame(scores.groupby("split")[["nll_nats", "num_tokens", "num_documents"]].sum()).to_dict("index")
    shown = re.search(r"\| each task's own adapter \(τ = 30\) \| ([\d.,]+) \| ([\d.,]+) \|", card)
    assert shown is not None
    values = [math.exp(sums[split]["nll_nats"] / sums[split]["num_tokens"]) for split in ("validation", "test")]
    assert [float(text.replace(",", "")) for text in shown.groups()] == pytest.approx(values, rel=1e-3)
    assert f"| {sums['train']['num_documents']} ({sums['train']['num_tokens']} tokens) |" in card
    assert "groups.json" in (out / "README.md").read_text()

    before = (out / "_group_x" / "README.md").read_text(), (out / "_group_z" / "README.md").read_text()
    assert main(["forget", str(out), "--task", "bob"]) == 0
    card = (out / "_group_y" / "README.md").read_text()
    assert "Perplexity" not in card
    assert "Tasks have left" in card
    assert before == ((out / "_group_x" / "README.md").read_text(), (out / "_group_z" / "README.md").read_text())
    for path in out.rglob("*"):
        if path.suffix == ".parquet":
            assert "bob" not in pd.read_parquet(path).to_csv(), path
        elif path.suffix in (".md", ".json") and path.name != "tokenizer.json":
            assert "bob" not in path.read_text(), path


def test_a_groups_card_at_the_limit_says_that_it_is_its_tasks_adapter(corpus_file, model_folder, groups_file, tmp_path):
    run, out = tmp_path / "run", tmp_path / "out"
    settings = [f"data.path={corpus_file}", f"data.groups_path={groups_file}", f"model.name={model_folder}", *SMALL]
    assert main(["fit", *settings, "prior.tau=inf", "prior.tau_2=20", f"output={run}"]) == 0
    assert main(["export", str(run), str(out)]) == 0
    card = (out / "_group_y" / "README.md").read_text()
    assert "the one adapter of its tasks" in card
    assert "| this adapter (τ = ∞) |" in card
    assert "each under this adapter" in card


def test_a_task_leaves_an_export_and_a_group_with_it_that_has_no_other(run, tmp_path):
    out = tmp_path / "out"
    assert main(["export", str(run), str(out)]) == 0
    assert main(["forget", str(out), "--task", "ann", "--task", "bob"]) == 0
    index = json.loads((out / GROUPS).read_text())
    assert index["tasks"] == {"cid": "y", "dot": "z"}
    assert {path.name for path in out.glob("_group_*")} == {*index["groups"].values()} == {"_group_y", "_group_z"}


def test_text_is_generated_by_a_groups_adapter(run, capsys):
    assert main(["generate", str(run), "w1", "--task", "_group_y", "--max-new-tokens", "2"]) == 0
    assert "_group_y" in capsys.readouterr().out
    assert main(["generate", str(run), "w1", "--task", "_group_w"]) == 2


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("task,group\nann,x\nbob,y\ncid,y\n", "has no row of task 'dot'; add one with its group"),
        ("task,group\nann,x\nbob,y\ncid,y\ndot,z\nann,y\n", "task 'ann' is in group 'x' and in group 'y'"),
        ("task,party\nann,x\n", "has no column 'group'"),
        ("task,group\nann,x\nbob,\ncid,y\ndot,z\n", "column 'group' has no value in 1 row, the first is row 1"),
        (None, "no such file"),
    ],
)
def test_a_wrong_file_of_groups_is_refused_in_one_message(content, says, corpus_file, model_folder, tmp_path, capsys):
    path = tmp_path / "groups.csv"
    if content is not None:
        path.write_text(content)
    settings = [f"data.path={corpus_file}", f"data.groups_path={path}", f"model.name={model_folder}"]
    assert main(["fit", *settings, "prior.tau_2=20", *SMALL, f"output={tmp_path / 'out'}"]) == 2
    told = " ".join(capsys.readouterr().err.split())
    assert says in told
    assert "groups.csv" in told
    assert not (tmp_path / "out").exists()


def test_describe_shows_the_groups(corpus_file, groups_file, capsys):
    assert main(["data", "describe", f"data.path={corpus_file}", f"data.groups_path={groups_file}"]) == 0
    assert "3 groups of tasks: y (2), x (1), z (1)" in " ".join(capsys.readouterr().out.split())


@pytest.mark.slow
def test_results_from_before_there_were_groups_are_read(corpus_file, model_folder, tmp_path):
    run = tmp_path / "run"
    assert main(["fit", f"data.path={corpus_file}", f"model.name={model_folder}", *SMALL, f"output={run}"]) == 0
    assert main(["report", str(run)]) == 0
    report = (run / "report" / "report.md").read_text()
    for table, newer in (("trials", ["tau_2", "tau_learnt"]), ("task_scores", ["group"])):
        (path,) = (run / "results" / table).glob("*.parquet")
        parquet.write_table(parquet.read_table(path).drop_columns(newer), path)
    tensors, about = load_adapters(run / "trials" / "fit")
    save_adapters(run / "trials" / "fit", tensors, {k: v for k, v in about.items() if k not in ("groups", "group_of")})
    shutil.rmtree(run / "report")
    assert main(["report", str(run)]) == 0
    assert (run / "report" / "report.md").read_text() == report
    assert main(["export", str(run), str(tmp_path / "out")]) == 0
    assert not (tmp_path / "out" / GROUPS).exists()
    assert main(["forget", str(run), "--task", "ann"]) == 0
    assert load_adapters(run / "trials" / "fit")[1]["tasks"] == ["bob", "cid", "dot"]


@pytest.mark.slow
def test_a_fit_by_a_column_is_that_by_a_file(run, corpus_file, model_folder, tmp_path):
    frame = pd.read_parquet(corpus_file)
    frame.assign(party=frame["task"].map(GROUP_OF)).to_parquet(tmp_path / "parties.parquet")
    settings = [f"data.path={tmp_path / 'parties.parquet'}", "data.group_column=party", f"model.name={model_folder}"]
    assert main(["fit", *settings, "prior.tau=30", "prior.tau_2=20", *SMALL, f"output={tmp_path / 'run'}"]) == 0
    one, other = (load_adapters(folder / "trials" / "fit") for folder in (run, tmp_path / "run"))
    assert one[1]["group_of"] == other[1]["group_of"] == GROUP_OF
    assert torch.equal(one[0]["theta_KP"], other[0]["theta_KP"])


@pytest.mark.slow
def test_a_sweep_has_fits_of_two_and_of_three_levels(corpus_file, model_folder, groups_file, tmp_path, capsys):
    run = tmp_path / "run"
    settings = [f"data.path={corpus_file}", f"data.groups_path={groups_file}", f"model.name={model_folder}", *SMALL]
    sweep = ["search.num_trials=4", "search.baselines=[independent,shared,per_group,learnt]", f"output={run}"]
    assert main(["sweep", *settings, *sweep]) == 0
    rows = trial_rows(run)
    assert len(rows) == trained_fits(config_of(run), len(GROUP_OF)) == 8
    assert {row["status"] for row in rows} == {"finished"}
    assert [row["tau_learnt"] for row in rows].count(True) == 1
    assert len({row["train_tokens"] for row in rows}) == 1  # of an epoch, also where each group is its own fit
    labels = {trial_label(row) for row in rows}
    assert {"tau = 0", "tau = inf", "tau = inf, tau_2 = 0"} <= labels
    assert sum("tau_2" in label for label in labels) == 4
    assert "three levels (τ" in (run / "report" / "report.md").read_text()
    capsys.readouterr()
    assert main(["status", str(run)]) == 0
    assert "tau_2" in capsys.readouterr().out
