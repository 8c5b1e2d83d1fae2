"""A refused run leaves nothing, and says so in one message; documents that are named without `data.path=`."""

import json
import shutil
from pathlib import Path
from typing import get_args

import pytest
from rich.console import Console
from safetensors.torch import load_file, save_file

from bora_sweep.cli import main
from bora_sweep.config.search import Baseline
from bora_sweep.prepare import prepare_sweep
from bora_sweep.runs.folder import config_of

SMALL = ["model.max_tokens=16", "lora.rank=2", "train.max_epochs=1", "train.device=cpu"]


@pytest.fixture(scope="module")
def models(model_folder, tmp_path_factory) -> dict[str, Path]:
    """Folders of a model that runs, one without a weight, and one that needs code of its own."""
    folder = tmp_path_factory.mktemp("models")
    for name in ("broken", "coded"):
        shutil.copytree(model_folder, folder / name)
    weights = load_file(folder / "broken" / "model.safetensors")
    weights.pop(next(name for name in weights if "fc1" in name))
    save_file(weights, folder / "broken" / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "coded" / "config.json").read_text())
    config |= {"model_type": "of_its_own", "auto_map": {"AutoConfig": "code.Config"}}
    (folder / "coded" / "config.json").write_text(json.dumps(config))
    return {"model": model_folder, "broken": folder / "broken", "coded": folder / "coded"}


@pytest.mark.parametrize("command", ["fit", "sweep"])
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["prior.penalty=tensor_norm", "train.solver=proximal"], "needs the squared distance"),
        (["data.path={corpus}", "model.name=./nowhere"], "no such folder"),
        (["data.path={corpus}", "model.name={broken}"], "which would be random"),
        (["data.path={corpus}", "model.name={coded}"], "cannot be loaded"),
        (["data.path={corpus}", "model.name={model}", "lora.target_modules=[nope]"], "nope"),
        (["data.path={corpus}", "model.name={model}", "data.text_column=txt"], "txt"),
        (
            ["data.path={corpus}", "model.name={model}", "search.unseen_folds=2", "ray.workers_per_trial=2"],
            "one process",
        ),
        (["data.path=nowhere.parquet", "model.name={model}"], "nowhere.parquet"),
    ],
)
def test_a_refused_run_leaves_nothing(command, arguments, says, corpus_file, models, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    filled = [argument.format(corpus=corpus_file, **models) for argument in arguments]
    for output in ([], ["output=mine/run"]):
        assert main([command, *filled, *SMALL, *output]) == 2
        said = capsys.readouterr().err
        assert says in said
        assert "run folder" not in said
        assert list(tmp_path.iterdir()) == []


def test_documents_are_named_without_the_key(corpus_file, model_folder, tmp_path, capsys):
    assert main(["fit", str(corpus_file), f"model.name={model_folder}", *SMALL, f"output={tmp_path / 'run'}"]) == 0
    assert f"run folder: {tmp_path / 'run'}" in capsys.readouterr().err
    assert config_of(tmp_path / "run").data.path == str(corpus_file)
    assert main(["plan", str(corpus_file), f"model.name={model_folder}", *SMALL, "--card", "1GB"]) == 0
    assert "4 tasks" in capsys.readouterr().out


@pytest.mark.parametrize(
    "command", [["fit"], ["sweep"], ["plan", "--card", "l4"], ["add", "RUN"], ["data", "describe"]]
)
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["{corpus}", "data.path={corpus}"], "names the documents too; drop one of the two"),
        (["nowhere.csv"], "nowhere.csv: no such file or folder; give a file"),
        (["serach.num_trials"], "no such file or folder; a setting has a value, as in search.num_trials=…"),
        (["serach.num_trials=3"], "did you mean 'search'?"),
        (["nowhere.yaml"], "nowhere.yaml: no such file"),
        (["s3://bucket/x.csv"], "copy it to this machine"),
    ],
)
def test_documents_that_are_named_wrongly(command, arguments, says, corpus_file, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    if command[0] == "add" and arguments[0] in ("serach.num_trials=3", "nowhere.yaml", "s3://bucket/x.csv"):
        return  # the run is looked at first
    assert main([*command, *(argument.format(corpus=corpus_file) for argument in arguments)]) == 2
    said = capsys.readouterr().err
    assert says in said
    assert said.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", [["fit"], ["sweep"], ["plan", "--card", "l4"], ["add", "RUN"]])
def test_two_corpora_are_refused(command, corpus_file, capsys):
    assert main([*command, str(corpus_file), "other.csv"]) == 2
    assert f"other.csv: {corpus_file} names the documents already" in capsys.readouterr().err


@pytest.mark.parametrize("rate", ["auto", "0.01"])
def test_a_sweep_with_every_baseline_is_not_refused(rate, corpus_file, model_folder, tmp_path):
    """Each fit's settings are checked before the first begins, also where the range test has not chosen the rate."""
    names = ",".join(name for name in get_args(Baseline) if name != "per_group")
    settings = [
        f"data.path={corpus_file}", f"model.name={model_folder}", "train.device=cpu", f"train.learning_rate={rate}",
        f"search.baselines=[{names}]", f"output={tmp_path / 'run'}",
    ]  # fmt: skip
    prepared = prepare_sweep(settings, False, Console(quiet=True))
    assert prepared.config.train.learning_rate == (rate if rate == "auto" else float(rate))
