"""`bora-sweep add`: new tasks beside a run that stays as it is, from files to tables, adapters and text."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from tiny import make_frame
from transformers import AutoModelForCausalLM

import bora_sweep
from bora_sweep.cli import main
from bora_sweep.data.known_documents import read_documents
from bora_sweep.runs.results import read_results, trial_rows
from bora_sweep.train.checkpoint import ADAPTERS, load_adapters

SMALL = ["model.max_tokens=16", "lora.rank=2", "train.max_epochs=2", "train.device=cpu", "train.learning_rate=0.02"]
QUICK = ["train.max_epochs=2"]
NEW = {"eve": 24, "fay": 3, "gus": 1}


@pytest.fixture(scope="module")
def run(corpus_file, model_folder, tmp_path_factory) -> Path:
    """A fit of four tasks."""
    run = tmp_path_factory.mktemp("fitted") / "run"
    assert main(["fit", f"data.path={corpus_file}", f"model.name={model_folder}", *SMALL, f"output={run}"]) == 0
    return run


@pytest.fixture(scope="module")
def new_file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("new") / "new.parquet"
    make_frame(NEW, seed=5).to_parquet(path)
    return path


@pytest.fixture(scope="module")
def added(run, new_file, tmp_path_factory) -> Path:
    """Three tasks added to the fit, of which one is large enough to hold documents out."""
    folder = tmp_path_factory.mktemp("added") / "run"
    before = contents(run)
    assert main(["add", str(run), str(new_file), *QUICK, f"output={folder}"]) == 0
    assert contents(run) == before
    return folder


def contents(folder: Path) -> dict[str, str]:
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*") if path.is_file()}


def test_it_leaves_two_trials_the_tasks_adapters_and_the_theta_of_the_run(run, added):
    results = read_results(added)
    trials = results.trials.set_index("trial_id")
    assert trials["method"].to_dict() == {"add": "add", "global": "add"}
    assert trials["tau"].to_dict() == {"add": 100.0, "global": np.inf}
    assert set(trials["status"]) == {"finished"}
    assert trials.loc["global", "train_tokens"] == 0 < trials.loc["add", "train_tokens"]
    train = {name: json.loads(row)["train"] for name, row in trials["config_json"].items()}["add"]
    assert train["max_grad_norm"] is None  # a clip would move the MAP
    (source,) = set(trials["started_from"])
    assert source == str(run / "trials" / "fit")
    banks, about = load_adapters(added / "trials" / "add")
    of_run, _ = load_adapters(run / "trials" / "fit")
    assert about["tasks"] == list(NEW)
    assert torch.equal(banks["mean_P"], of_run["mean_P"])
    assert ((banks["theta_KP"] - banks["mean_P"]).norm(dim=1) > 0).all()
    scores = results.task_scores[results.task_scores["trial_id"] == "add"]
    assert scores.groupby("task")["split"].agg(set).to_dict() == {
        "eve": {"train", "validation", "test"}, "fay": {"train"}, "gus": {"train"}
    }  # fmt: skip
    assert scores.loc[scores["split"] == "train"].set_index("task")["num_documents"].to_dict() == {
        "eve": 12, "fay": 3, "gus": 1
    }  # fmt: skip


def test_it_names_what_it_stands_on(run, added):
    source = json.loads((added / "added_to.json").read_text())
    assert source["run"] == str(run.absolute())
    assert (source["trial_id"], source["tau"], source["refreshed"]) == ("fit", 100.0, [])
    for path, digest in source["fingerprints"].items():
        assert hashlib.sha256((run / path).read_bytes()).hexdigest() == digest
    assert f"trials/fit/{ADAPTERS}" in source["fingerprints"]
    config = (added / "config.yaml").read_text()
    assert "method: add" in config


def test_a_file_without_a_task_that_is_held_out_leaves_no_score(run, tmp_path, capsys):
    path = tmp_path / "few.parquet"
    make_frame({"fay": 3}, seed=5).to_parquet(path)
    assert main(["add", str(run), str(path), *QUICK, f"output={tmp_path / 'out'}"]) == 0
    assert "None was held out" in capsys.readouterr().out
    for row in trial_rows(tmp_path / "out"):
        for split in ("validation", "test"):
            for column in ("nll_nats", "num_tokens", "perplexity", "macro_perplexity"):
                assert row[f"{split}_{column}"] is None
    assert main(["report", str(tmp_path / "out")]) == 0
    assert main(["status", str(tmp_path / "out")]) == 0
    assert "2 of 2 trials finished" in capsys.readouterr().out


def test_other_commands_take_it(added, tmp_path, capsys):
    assert main(["status", str(added)]) == 0
    assert "ended" in capsys.readouterr().out
    assert main(["report", str(added)]) == 0
    assert "3 tasks added" in capsys.readouterr().out
    page = (added / "report" / "report.md").read_text()
    assert all(task in page for task in NEW)
    assert main(["generate", str(added), "--task", "gus", "--task", "_global", "w1", "--max-new-tokens", "3"]) == 0
    assert "== gus ==" in capsys.readouterr().out
    assert main(["export", str(added), str(tmp_path / "out")]) == 0
    assert set(json.loads((tmp_path / "out" / "tasks.json").read_text())) == set(NEW)
    card = (tmp_path / "out" / "eve" / "README.md").read_text()
    assert "Θ as it is" in card
    assert "an earlier fit" in card


def test_peft_loads_an_exported_task(added, model_folder, tmp_path):
    from peft import PeftModel

    names = bora_sweep.export(added, tmp_path / "out", tasks=["eve"])
    model = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(model_folder), tmp_path / "out" / names["eve"]
    )
    assert any("lora" in name and bool(weight.abs().max() > 0) for name, weight in model.named_parameters())


def test_the_report_says_what_the_tables_say(added):
    frame = pd.read_csv(added / "report" / "tables" / "tasks.csv").set_index("task")
    scores = read_results(added).task_scores.query("split == 'test'").set_index(["trial_id", "task"])["perplexity"]
    assert frame.loc["eve", "test_perplexity"] == pytest.approx(scores["add", "eve"])
    assert frame.loc["eve", "global_test_perplexity"] == pytest.approx(scores["global", "eve"])
    change = scores["add", "eve"] / scores["global", "eve"] - 1
    assert frame.loc["eve", "difference"] == pytest.approx(change)
    assert frame.loc["eve", "low"] < change < frame.loc["eve", "high"]
    assert frame.loc[["fay", "gus"], "difference"].isna().all()
    report = (added / "report" / "report.md").read_text()
    for task, documents in frame["train_documents"].items():
        row = next(line for line in report.split("\n") if line.startswith("| ") and f": {task}" in line)
        fewest, _, most = row.split("|")[1].strip().partition("–")
        assert int(fewest) <= documents <= int(most or fewest)


def test_an_interrupted_add_goes_on_without_the_run(run, new_file, added, tmp_path, capsys, monkeypatch):
    """To the same numbers, by the command that is printed, which needs neither the run nor the name of the file."""
    import shutil

    from bora_sweep.progress import FitProgress

    copy, cut = tmp_path / "copy", tmp_path / "cut"
    shutil.copytree(run, copy)
    with monkeypatch.context() as patch:

        def press_ctrl_c(*_) -> None:
            raise KeyboardInterrupt

        patch.setattr(FitProgress, "on_epoch", press_ctrl_c)
        assert main(["add", str(copy), str(new_file), *QUICK, f"output={cut}"]) == 130
    hint = capsys.readouterr().err.rpartition("bora-sweep ")[2].split()
    assert hint == ["add", "--resume", f"output={cut}"]
    assert {row["trial_id"]: row["status"] for row in trial_rows(cut)} == {"add": "interrupted", "global": "finished"}
    assert main(["status", str(cut)]) == 0
    assert "add --resume" in capsys.readouterr().out
    shutil.rmtree(copy)
    assert main(["fit", "--resume", f"output={cut}"]) == 2
    assert main(hint) == 0
    theirs, ours = (load_adapters(folder / "trials" / "add")[0] for folder in (added, cut))
    assert torch.equal(theirs["theta_KP"], ours["theta_KP"])


def test_python_does_what_the_command_does(run, new_file, added, tmp_path):
    frame = pd.read_parquet(new_file)
    results = bora_sweep.add(run, frame, train={"max_epochs": 2}, output=str(tmp_path / "out"))
    assert isinstance(results, bora_sweep.Results)
    assert (tmp_path / "out" / "data.parquet").exists()
    theirs = read_results(added).document_scores
    pd.testing.assert_frame_equal(
        results.document_scores.drop(columns=["run", "document_id"]), theirs.drop(columns=["run", "document_id"])
    )


def test_documents_that_the_run_trained_on_are_never_scored(run, corpus_file, tmp_path):
    """Of a task by another name, and of a task that is fitted anew."""
    record = read_documents(run)
    trained = set(record.loc[record["split"] == "train", "fingerprint"])
    frame = pd.read_parquet(corpus_file).query("task == 'ann'").assign(task="ann again")
    frame.to_parquet(tmp_path / "renamed.parquet")
    more = pd.concat([frame.assign(task="ann"), make_frame({"ann": 6}, seed=9)])
    more.to_parquet(tmp_path / "more.parquet")
    for name, options in (("renamed", []), ("more", ["--refresh"])):
        out = tmp_path / name
        assert main(["add", str(run), str(tmp_path / f"{name}.parquet"), *options, *QUICK, f"output={out}"]) == 0
        own = read_documents(out).query("not carried")
        assert not trained & set(own.loc[own["split"] != "train", "fingerprint"])
        assert trained & set(own.loc[own["split"] == "train", "fingerprint"])
    assert json.loads((out / "added_to.json").read_text())["refreshed"] == ["ann"]


def test_an_add_may_stand_on_an_add(added, corpus_file, tmp_path, capsys):
    make_frame({"hal": 2}, seed=7).to_parquet(tmp_path / "hal.parquet")
    assert main(["add", str(added), str(tmp_path / "hal.parquet"), *QUICK, f"output={tmp_path / 'second'}"]) == 0
    first, second = (load_adapters(folder / "trials" / "add")[0] for folder in (added, tmp_path / "second"))
    assert torch.equal(first["mean_P"], second["mean_P"])
    make_frame({"ann": 2}, seed=7).to_parquet(tmp_path / "ann.parquet")
    capsys.readouterr()
    assert main(["add", str(added), str(tmp_path / "ann.parquet"), f"output={tmp_path / 'third'}"]) == 2
    assert "a run that" in " ".join(capsys.readouterr().err.split())
    assert main(["add", str(added), str(corpus_file), f"output={tmp_path / 'fourth'}"]) == 2  # the very same documents
    assert "a run that" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["{run}"], "name the file"),
        ([], "name the folder of the run"),
        (["{run}", "{new}", "{new}"], "names the documents already"),
        (["{run}", "nowhere.parquet"], "nowhere.parquet"),
        (["{empty}", "{new}"], "not a run's folder"),
        (["{run}", "{new}", "--trial", "x"], "--trial x"),
        (["{run}", "{new}", "prior.tau=3"], "prior.tau=3"),
        (["{run}", "{new}", "lora.rank=3"], "lora.rank=3"),
        (["{run}", "{new}", "model.max_tokens=8"], "model.max_tokens=8"),
        (["{run}", "{new}", "ray.workers_per_trial=2"], "ray.workers_per_trial=2"),
        (["{run}", "{new}", "train.padding=scored"], "train.padding=scored"),
        (["{run}", "{new}", "train.bank=host"], "train.bank=host: each step of an add"),
        (["{run}", "{new}", "train.tasks_per_batch=1"], "train.tasks_per_batch=1: each step of an add"),
        (["{run}", "{new}", "data.path={new}"], "names the documents too"),
        (["{run}", "{new}", "data.text_column=words"], "words"),
        (["{run}", "{old}"], "task 'ann' (and 3 tasks more)"),
        (["{run}", "{new}", "--resume", "output={run}"], "`fit` began this run"),
        (["{run}", "{new}", "output={run}"], "holds a run already"),
    ],
)
def test_wrong_input_is_refused_in_one_message_and_nothing_is_written(
    arguments, says, run, new_file, corpus_file, tmp_path, capsys
):
    places = {"run": run, "new": new_file, "old": corpus_file, "empty": tmp_path / "empty"}
    arguments = [argument.format(**places) for argument in arguments]
    output = [] if any(argument.startswith("output=") for argument in arguments) else [f"output={tmp_path / 'out'}"]
    before = contents(run)
    assert main(["add", *arguments, *output]) == 2
    printed = " ".join(capsys.readouterr().err.split())
    assert says in printed
    assert printed.count("error:") == 1
    assert not (tmp_path / "out").exists()
    assert contents(run) == before


def test_a_run_that_cannot_be_stood_on_is_refused(run, new_file, tmp_path, capsys):
    import shutil

    for name, harm, says in (
        ("gone", lambda copy: (copy / "trials" / "fit" / ADAPTERS).unlink(), f"no {ADAPTERS}"),
        ("unfinished", lambda copy: shutil.rmtree(copy / "results"), "no trial has begun"),
        ("other base", lambda copy: _edit(copy / "fingerprints.json", "model"), "another base model"),
    ):
        copy = tmp_path / name
        shutil.copytree(run, copy)
        harm(copy)
        assert main(["add", str(copy), str(new_file), f"output={tmp_path / 'out'}"]) == 2
        assert says in " ".join(capsys.readouterr().err.split())
        assert not (tmp_path / "out").exists()


def _edit(path: Path, part: str) -> None:
    content = json.loads(path.read_text())
    content[part] = dict.fromkeys(content[part], "0" * 64)
    path.write_text(json.dumps(content))


def test_a_task_that_was_fitted_anew_leaves_with_the_adapter_that_it_began_from(run, corpus_file, tmp_path):
    assert main(["add", str(run), str(corpus_file), "--refresh", *QUICK, f"output={tmp_path / 'again'}"]) == 0
    begun = load_adapters(tmp_path / "again" / "start")[1]["tasks"]
    assert "ann" in begun
    assert main(["forget", str(tmp_path / "again"), "--task", "ann"]) == 0
    tensors, about = load_adapters(tmp_path / "again" / "start")
    assert about["tasks"] == [task for task in begun if task != "ann"]
    assert len(tensors["theta_KP"]) == len(begun) - 1
    assert "ann" not in json.loads((tmp_path / "again" / "added_to.json").read_text())["refreshed"]


def test_a_task_leaves_an_add_and_no_refit_is_needed(added, tmp_path, capsys):
    shutil.copytree(added, tmp_path / "copy")
    gone, *kept = load_adapters(added / "trials" / "add")[1]["tasks"]
    assert main(["forget", str(tmp_path / "copy"), "--task", gone]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "no other adapter here was fitted with the text that left" in printed
    assert "bora-sweep" not in printed
    tensors, about = load_adapters(tmp_path / "copy" / "trials" / "add")
    assert about["tasks"] == kept
    assert torch.equal(tensors["theta_KP"], load_adapters(added / "trials" / "add")[0]["theta_KP"][1:])


def test_a_tau_that_the_tasks_of_the_run_have_of_their_own_is_not_that_of_new_tasks(
    corpus_file, model_folder, new_file, run, tmp_path
):
    """New tasks get tau; one that is fitted anew keeps its own."""
    where = [f"data.path={corpus_file}", f"model.name={model_folder}", "prior.groups=task"]
    (task, *_) = load_adapters(run / "trials" / "fit")[1]["tasks"]
    scales = f"prior.group_scales.{task}=0.25"
    assert main(["fit", *where, scales, *SMALL, f"output={tmp_path / 'fit'}"]) == 0
    frame = pd.read_parquet(corpus_file)
    both = pd.concat([pd.read_parquet(new_file), frame[frame["task"] == task]])
    both.to_parquet(tmp_path / "both.parquet")
    add = ["add", str(tmp_path / "fit"), str(tmp_path / "both.parquet"), "--refresh", *QUICK]
    assert main([*add, f"output={tmp_path / 'out'}"]) == 0
    scores = read_results(tmp_path / "out").task_scores.query("trial_id == 'add'")
    tau_of = dict(zip(scores["task"], scores["tau"], strict=True))
    assert tau_of == {task: 25.0} | dict.fromkeys(NEW, 100.0)


def test_the_rate_of_an_add_is_a_number(run, new_file, tmp_path, capsys):
    """`auto` fits one model for all; an add begins at Theta, at the rate of its run."""
    assert main(["add", str(run), str(new_file), "train.learning_rate=auto", f"output={tmp_path / 'out'}"]) == 2
    message = " ".join(capsys.readouterr().err.split())
    assert "train.learning_rate=auto, method=add" in message
    assert "give a number" in message
    assert not (tmp_path / "out").exists()
