"""Sweeps whose tau is chosen by a metric, on Ray, and functions of the user's own on its workers."""

import json
import math
import subprocess
import sys
from io import StringIO
from pathlib import Path

import optuna
import pytest
from answers import make_answers
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from rich.console import Console
from sweeps import outside

from bora_sweep.cli import main
from bora_sweep.config import load_config
from bora_sweep.runs.folder import create_run
from bora_sweep.runs.results import read_results, trial_rows
from bora_sweep.train.metrics.functions import check_metrics
from bora_sweep.tune import run_sweep

pytestmark = pytest.mark.ray

SETTINGS = [
    "lora.rank=2", "train.learning_rate=0.05", "train.max_epochs=3", "train.batch_size=4", "train.device=cpu",
    "search.num_trials=3", "metric.max_new_tokens=5", "ray.max_concurrent=2",
]  # fmt: skip
CORPUS = make_answers({"ann": 24, "bob": 16, "cid": 12})
SUPPORT = Path(__file__).resolve().parents[1] / "support"


def sweep(run: Path, model_folder: Path, *settings: str) -> bool:
    """A sweep over documents with answers. Returns whether it ended."""
    config = load_config([*SETTINGS, f"model.name={model_folder}", *settings])
    check_metrics(config)
    create_run(config, run)
    return run_sweep(config, CORPUS, run, [], Console(file=StringIO()))


@pytest.mark.usefixtures("ray_here")
def test_tau_is_chosen_by_the_metric_that_the_search_names(tmp_path, model_folder, capsys):
    """What Optuna is told, and what is shown as best, is the mean of the metric on validation."""
    settings = ["metrics=[accuracy,rouge_l]", "search.objective=accuracy", "search.pack=2"]
    assert sweep(tmp_path, model_folder, *settings)
    rows = trial_rows(tmp_path)
    assert {row["status"] for row in rows} == {"finished"}
    accuracy = {row["trial_id"]: json.loads(row["validation_metrics"])["accuracy"] for row in rows}
    study = optuna.load_study(
        study_name=None, storage=JournalStorage(JournalFileBackend(str(tmp_path / "optuna" / "journal.log")))
    )
    told = {trial.user_attrs["trial_id"]: trial.value for trial in study.trials}
    searched = [row["trial_id"] for row in rows if row["method"] == "map" and 0 < row["tau"] < math.inf]
    assert told == {trial_id: -accuracy[trial_id] for trial_id in searched}
    assert len(read_results(tmp_path).predictions) == 2 * len(rows) * len(CORPUS.references.text_N)
    best = max(
        (row for row in rows if row["method"] == "map"),
        key=lambda row: (accuracy[row["trial_id"]], -row["validation_perplexity"]),
    )
    assert main(["status", str(tmp_path)]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert f"validation accuracy {accuracy[best['trial_id']]:.3f}, validation perplexity" in text
    assert f"perplexity {best['validation_perplexity']:.2f}" in text


@pytest.mark.usefixtures("ray_here")
def test_a_function_that_a_worker_cannot_import_fails_each_trial_with_its_name(tmp_path, model_folder, monkeypatch):
    """The driver alone finds it, as where a cluster's workers lack the module: no trial is tried twice."""
    (tmp_path / "here_alone.py").write_text("def score(reference, prediction): return 1.0\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert sweep(tmp_path / "run", model_folder, "metrics=[here_alone:score]", "search.num_trials=0")
    rows = trial_rows(tmp_path / "run")
    assert {(row["status"], row["attempts"]) for row in rows} == {("failed", 1)}
    assert all("here_alone:score cannot be imported on" in row["error"] for row in rows)
    assert all("runtime_env" in row["error"] for row in rows)


def test_the_workers_of_a_local_ray_find_a_function_in_the_working_directory(tmp_path, model_folder):
    """Where the command is an installed script, whose folder is not the working directory."""
    work, scripts = tmp_path / "work", tmp_path / "scripts"
    work.mkdir()
    scripts.mkdir()
    (work / "my_metrics.py").write_text("def score(reference, prediction): return len(reference)\n")
    (scripts / "command.py").write_text(
        "import sys\n"
        f"sys.path[1:1] = [{str(SUPPORT)!r}, {str(Path(__file__).parent)!r}]\n"
        "from pathlib import Path\n"
        "from test_metric_sweep import sweep\n"
        "if __name__ == '__main__':\n"
        f"    settings = ['metrics=[my_metrics:score]', 'search.objective=my_metrics:score', 'search.num_trials=0']\n"
        f"    assert sweep(Path('run').absolute(), Path({str(model_folder)!r}), *settings)\n"
    )
    made = subprocess.run(
        [sys.executable, str(scripts / "command.py")], cwd=work, capture_output=True, text=True, timeout=300,
        env={**outside(), "HOME": str(tmp_path)}, check=False,
    )  # fmt: skip
    assert made.returncode == 0, made.stdout + made.stderr
    found = read_results(work / "run").predictions
    assert len(found) == 3 * len(CORPUS.references.text_N)
    assert found["score"].tolist() == [float(len(text)) for text in found["reference"]]
