"""Curves in a tracker are those of the Parquet, a run for each trial, whoever shares a process with whom."""

import math
import sys
from pathlib import Path

import pytest
import torch
from tiny import make_base, make_corpus

from bora_sweep.cli import main
from bora_sweep.config import Config, load_config, with_values
from bora_sweep.process import Interrupted
from bora_sweep.runs.results import read_results, trial_rows
from bora_sweep.trials import tracking
from bora_sweep.trials.trial import Trial, run_pack

SMALL = ["lora.rank=2", "train.max_epochs=3", "train.patience=9", "train.device=cpu", "train.learning_rate=0.02",
         "train.batch_size=8", "model.max_tokens=16"]  # fmt: skip


def trial(kind: str, trial_id: str, tau: float) -> Trial:
    return Trial(trial_id, with_values(load_config([*SMALL, f"tracking={kind}"]), prior={"tau": tau}))


def run_trials(run: Path, *packs: list[Trial], check_stop=lambda: None) -> None:
    """In this process, as a warm worker does."""
    corpus = make_corpus()
    for pack in packs:
        run_pack(pack, corpus, lambda: make_base(dtype=torch.float32), run, check_stop=check_stop)


def expected(run: Path, trial_id: str) -> dict[str, list[tuple[int, float]]]:
    """(epoch, value) of each curve, by the Parquet."""
    curves, found = read_results(run).curves, {}
    curves = curves[curves["trial_id"] == trial_id]
    for row in curves.to_dict("records"):  # type: ignore[reportCallIssue]
        nats, split = row["nll_nats"] / row["num_tokens"], row["split"]
        found.setdefault(f"{split}/nats_per_token", []).append((row["epoch"], nats))
        found.setdefault(f"{split}/perplexity", []).append((row["epoch"], math.exp(nats)))
    for name in ("log_prior", "learning_rate"):
        found[name] = list(curves.groupby("epoch")[name].last().items())
    return found


def in_event_files(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """As TensorBoard reads them."""
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="pip install 'bora-sweep[tensorboard]'"
    )
    events = accumulator.EventAccumulator(str(folder)).Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def assert_alike(found: dict, wanted: dict) -> None:
    assert found.keys() == wanted.keys()
    for name, points in wanted.items():
        assert [epoch for epoch, _ in found[name]] == [epoch for epoch, _ in points], name
        assert [value for _, value in found[name]] == pytest.approx([value for _, value in points], rel=1e-5), name


def test_each_trial_of_packs_in_one_process_has_a_run_of_its_own(tmp_path):
    both = [trial("tensorboard", "000", 10.0), trial("tensorboard", "001", 1e4)]
    run_trials(tmp_path, both, [trial("tensorboard", "002", 3.0)])
    assert sorted(path.name for path in (tmp_path / "tracking").iterdir()) == ["000", "001", "002"]
    for trial_id in ("000", "001", "002"):
        found = in_event_files(tmp_path / "tracking" / trial_id)
        assert_alike(found, expected(tmp_path, trial_id))
        assert [epoch for epoch, _ in found["validation/perplexity"]] == [0, 1, 2, 3]
    assert in_event_files(tmp_path / "tracking" / "000") != in_event_files(tmp_path / "tracking" / "001")


def test_a_trial_that_was_cut_off_goes_on_and_repeats_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("bora_sweep.trials.trial.ROW_SECONDS", -1.0)
    calls = 0

    def check_stop() -> None:
        nonlocal calls
        calls += 1
        if calls == 12:
            raise Interrupted

    with pytest.raises(Interrupted):
        run_trials(tmp_path, [trial("tensorboard", "000", 10.0)], check_stop=check_stop)
    assert trial_rows(tmp_path)[0]["status"] == "interrupted"
    assert 0 < len(in_event_files(tmp_path / "tracking" / "000")["train/perplexity"]) < 3
    run_trials(tmp_path, [trial("tensorboard", "000", 10.0)])
    assert_alike(in_event_files(tmp_path / "tracking" / "000"), expected(tmp_path, "000"))


def test_a_fit_of_the_command_line_shows_its_configuration_without_secrets(
    corpus_file, model_folder, tmp_path, monkeypatch
):
    monkeypatch.setenv("MY_API_KEY", corpus_file.name)
    given = [f"data.path={corpus_file}", f"model.name={model_folder}", *SMALL, "tracking=tensorboard"]
    assert main(["fit", *given, f"output={tmp_path / 'run'}"]) == 0
    (file,) = (tmp_path / "run" / "tracking" / "fit").iterdir()
    content = file.read_bytes()
    assert b"learning_rate: 0.02" in content
    assert b"/***" in content
    assert corpus_file.name.encode() not in content


def test_without_a_tracker_nothing_is_written(tmp_path):
    run_trials(tmp_path, [Trial("000", load_config(SMALL))])
    assert not (tmp_path / "tracking").exists()


def test_a_tracker_that_fails_ends_no_fit(tmp_path, monkeypatch):
    class Broken:
        def __init__(self, *_: object) -> None:
            raise ConnectionError("the server is away")

    monkeypatch.setitem(tracking.SINKS, "mlflow", Broken)
    run_trials(tmp_path, [trial("mlflow", "000", 10.0)])
    (row,) = trial_rows(tmp_path)
    assert row["status"] == "finished"
    assert row["notes"] == "tracking=mlflow ended: ConnectionError: the server is away"


def test_mlflow_has_a_run_for_each_trial(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow", reason="pip install 'bora-sweep[mlflow]'")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr("bora_sweep.trials.trial.ROW_SECONDS", -1.0)
    both = [trial("mlflow", "000", 10.0), trial("mlflow", "001", 1e4)]
    run_trials(tmp_path, both, [trial("mlflow", "002", 3.0)])
    client = mlflow.MlflowClient((tmp_path / "tracking" / "mlruns").as_uri())
    (experiment,) = [found for found in client.search_experiments() if found.name == tmp_path.name]
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert sorted(runs) == ["000", "001", "002"]
    for trial_id, run in runs.items():
        assert run.info.status == "FINISHED"
        assert float(run.data.params["prior.tau"]) == trial_rows(tmp_path, trial_id)[0]["tau"]
        history = {name: client.get_metric_history(run.info.run_id, name) for name in run.data.metrics}
        found = {name: [(metric.step, metric.value) for metric in metrics] for name, metrics in history.items()}
        assert_alike(found, expected(tmp_path, trial_id))


class FakeWandB:
    """Stands in for wandb, which no test talks to: what it was asked, by run."""

    def __init__(self) -> None:
        self.runs: dict[str, dict] = {}

    def init(self, project: str, **asked: object) -> "FakeWandB._Run":
        self.runs[str(asked["name"])] = {"project": project, **asked, "steps": [], "finished": False}
        return FakeWandB._Run(self.runs[str(asked["name"])])

    class _Run:
        def __init__(self, held: dict) -> None:
            self.held = held

        def log(self, values: dict, step: int) -> None:
            self.held["steps"].append((step, values))

        def finish(self) -> None:
            self.held["finished"] = True


def test_wandb_is_asked_for_a_run_for_each_trial_and_stays_offline(tmp_path, monkeypatch):
    fake = FakeWandB()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    run_trials(tmp_path, [trial("wandb", "000", 10.0), trial("wandb", "001", 1e4)])
    assert sorted(fake.runs) == ["000", "001"]
    assert fake.runs["000"]["id"] != fake.runs["001"]["id"]
    for trial_id, held in fake.runs.items():
        assert (held["mode"], held["group"], held["finished"]) == ("offline", tmp_path.name, True)
        found: dict[str, list[tuple[int, float]]] = {}
        for step, values in held["steps"]:
            for name, value in values.items():
                found.setdefault(name, []).append((step, value))
        assert_alike(found, expected(tmp_path, trial_id))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (["tracking=wandb"], "pip install 'bora-sweep[wandb]'"),
        (["tracking=aim"], "tracking=aim"),
        (["tracking=tensorboard", "output=memory://runs/a"], "set tracking=mlflow or wandb"),
    ],
)
def test_a_tracker_that_cannot_be_had_is_refused_at_once(
    settings, says, corpus_file, model_folder, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr("bora_sweep.trials.tracking.find_spec", lambda name: None if name == "wandb" else object())
    given = [f"data.path={corpus_file}", f"model.name={model_folder}", *SMALL, f"output={tmp_path / 'run'}", *settings]
    assert main(["fit", *given]) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_tracker_changes_no_result(tmp_path):
    run_trials(tmp_path / "with", [trial("tensorboard", "000", 10.0)])
    run_trials(tmp_path / "without", [Trial("000", with_tau(10.0))])
    nats = [read_results(tmp_path / name).document_scores["nll_nats"].tolist() for name in ("with", "without")]
    assert nats[0] == nats[1]


def with_tau(tau: float) -> Config:
    return with_values(load_config(SMALL), prior={"tau": tau})
