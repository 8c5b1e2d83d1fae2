"""Whole sweeps through the command line: what a run holds at the end, and after an interrupt and a resume."""

import json
import math
import shutil
import signal
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from sweeps import SMALL, finish, here, listening, numbers, start, wait_for
from tiny import make_tokenizer

from bora_sweep.cli import main
from bora_sweep.data.corpus import load_corpus
from bora_sweep.data.encode import Encoder
from bora_sweep.data.task_prompt import with_task_names
from bora_sweep.data.tokens import tokenize
from bora_sweep.runs.results import read_results, trial_rows
from bora_sweep.serve.generate import Prompt
from bora_sweep.serve.load import load_trial

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def sources(corpus_file, model_folder) -> list[str]:
    return [f"data.path={corpus_file}", f"model.name={model_folder}", *SMALL]


@pytest.fixture(scope="module")
def whole(sources, tmp_path_factory) -> tuple[Path, str, set[str]]:
    """An undisturbed sweep on a local Ray: its folder, its output, the addresses at which its processes listened."""
    cwd = tmp_path_factory.mktemp("whole")
    process = start("sweep", *sources, "tracking=tensorboard", "output=run", cwd=cwd)
    wait_for(lambda: any(row["epochs"] for row in trial_rows(cwd / "run")), process)
    addresses = listening(process)
    code, output = finish(process)
    assert code == 0, output
    return cwd / "run", output, addresses


def test_every_task_has_a_perplexity_at_every_trial(whole):
    run, _, _ = whole
    results = read_results(run)
    assert results.trials["status"].tolist() == ["finished"] * 5
    assert results.trials["method"].tolist() == ["zero_shot", "map", "map", "map", "map"]
    assert results.trials["tau"].tolist()[1:3] == [0.0, math.inf]
    scored: Any = results.task_scores[results.task_scores["split"] != "train"]
    assert len(scored) == 5 * 4 * 2
    assert scored["perplexity"].between(1, 1000).all()
    for split in ("validation", "test"):
        sums = scored[scored["split"] == split].groupby("trial_id")[["nll_nats", "num_tokens"]].sum()
        trials: Any = results.trials.set_index("trial_id")
        assert sums["nll_nats"].to_numpy() == pytest.approx(trials[f"{split}_nll_nats"].to_numpy())
        assert trials[f"{split}_perplexity"].to_numpy() == pytest.approx(
            (sums["nll_nats"] / sums["num_tokens"]).map(math.exp).to_numpy()
        )
    shared = scored[scored["tau"] == math.inf]
    assert (shared["distance_to_global"] == 0).all()
    assert json.loads(results.trials["versions"][0])["ray"]


def test_a_sweep_ends_with_a_report_and_prints_where_it_is(whole):
    run, output, _ = whole
    assert "report.md" in output
    assert "test perplexity" in output
    assert (run / "report" / "report.md").exists()
    assert (run / "trials" / "001" / "adapters.safetensors").exists()
    assert not list((run / "trials").glob("*/checkpoint-*"))


def assert_mirrored(run: Path) -> None:
    """The Optuna study holds each value of the search once, with the numbers of the Parquet."""
    storage = JournalStorage(JournalFileBackend(str(run / "optuna" / "journal.log")))
    study = optuna.load_study(study_name=None, storage=storage)
    mirrored = {t.user_attrs["trial_id"]: (t.params["tau"], t.value, t.state.name) for t in study.trials}
    assert len(mirrored) == len(study.trials)
    assert mirrored == {
        row["trial_id"]: (row["tau"], row["validation_nll_nats"] / row["validation_num_tokens"], "COMPLETE")
        for row in trial_rows(run)
        if row["method"] == "map" and 0 < row["tau"] < math.inf
    }


def test_the_optuna_study_and_the_trackers_mirror_the_parquet(whole):
    run, _, _ = whole
    assert_mirrored(run)
    trained = {row["trial_id"] for row in trial_rows(run)}
    assert {path.name for path in (run / "tracking").iterdir()} == trained


def test_status_of_a_sweep_that_has_ended(whole, capsys):
    run, _, _ = whole
    assert main(["status", str(run)]) == 0
    assert "5 of 5 trials finished · best so far" in capsys.readouterr().out


def test_a_local_ray_listens_on_loopback_alone(whole):
    _, _, addresses = whole
    assert addresses
    assert addresses <= {"127.0.0.1", "::ffff:127.0.0.1", "::1"}


@pytest.mark.usefixtures("ray_here")
def test_a_sweep_that_lost_trials_is_resumed_with_the_same_numbers(whole, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(whole[0], run)
    lost = [path for trial in ("001", "004") for path in (run / "results").glob(f"*/{trial}.parquet")]
    assert len(lost) == 2 * len(list((run / "results").iterdir()))
    for path in lost:
        path.unlink()
    code, output = here("sweep", "--resume", f"output={run}")
    assert code == 0, output
    for name, table in numbers(run).items():
        pd.testing.assert_frame_equal(table, numbers(whole[0])[name])


@pytest.mark.slow
@pytest.mark.usefixtures("ray_here")
def test_an_interrupted_sweep_is_resumed_with_the_same_numbers(sources, whole, tmp_path):
    process = start("sweep", *sources, "output=run", cwd=tmp_path)
    run = tmp_path / "run"
    wait_for(lambda: any(row["status"] == "finished" for row in trial_rows(run)), process)
    process.send_signal(signal.SIGINT)
    code, output = finish(process)
    assert code == 130, output
    assert "--resume output=" in output
    before = {row["trial_id"]: row for row in trial_rows(run)}
    assert {row["status"] for row in before.values()} <= {"finished", "interrupted"}

    code, output = here("sweep", "--resume", f"output={run}")
    assert code == 0, output
    for row in trial_rows(run):
        earlier = before.get(row["trial_id"])
        if earlier is not None and earlier["status"] == "finished":
            assert row == earlier  # not run again
    assert_mirrored(run)
    for name, table in numbers(run).items():
        pd.testing.assert_frame_equal(table, numbers(whole[0])[name])


@pytest.mark.usefixtures("ray_here")
@pytest.mark.parametrize("pack", ["3", pytest.param("auto", marks=pytest.mark.slow)])
def test_a_packed_sweep_has_the_trials_of_separate_fits(pack, sources, whole, tmp_path):
    code, output = here("sweep", *sources, f"search.pack={pack}", f"output={tmp_path / 'run'}")
    assert code == 0, output
    assert "pack: 3" in (tmp_path / "run" / "config.yaml").read_text() or pack == "auto"
    assert "auto" not in (tmp_path / "run" / "config.yaml").read_text().partition("pack")[2].partition("\n")[0]
    packed, solo = read_results(tmp_path / "run").trials, read_results(whole[0]).trials
    for name in ("trial_id", "status", "method", "tau", "seed", "epochs", "best_epoch", "train_tokens"):
        assert packed[name].tolist() == pytest.approx(solo[name].tolist(), nan_ok=True), name
    assert packed["test_nll_nats"].to_numpy() == pytest.approx(solo["test_nll_nats"].to_numpy(), rel=1e-4)  # float32


@pytest.mark.usefixtures("ray_here")
def test_a_diverged_trial_keeps_its_best_epoch_and_the_sweep_goes_on(sources, tmp_path):
    coupled = ["prior.parametrization=centered", "train.lr_per_tau=1", "search.taus=[1e-3,1e30]", "search.num_trials=0"]
    code, output = here("sweep", *sources, *coupled, "ray.max_concurrent=1", f"output={tmp_path / 'run'}")
    assert code == 0, output
    rows = {row["tau"]: row for row in trial_rows(tmp_path / "run") if row["method"] == "map"}
    assert rows[1e30]["stopped_by"] == "divergence"
    assert all(part in rows[1e30]["error"] for part in ("1e+30", "loss is nan at step", "learning rate"))
    assert rows[1e30]["error"] in output.replace("\n", " ")
    assert rows[1e30]["test_perplexity"] > 1
    assert {row["status"] for row in rows.values()} == {"finished"}
    assert "report.md" in output


@pytest.mark.usefixtures("ray_here")
def test_baselines_are_trials_of_the_sweep_and_start_from_the_trial_that_they_need(sources, tmp_path):
    names = ["zero_shot", "independent", "shared", "learnt", "fine_tuned", "average", "ties", "dare", "pfedme", "vi"]
    names += ["fedsa", "shared_wide", "task_prompt"]
    more = [f"search.baselines=[{','.join(names)}]", "search.ranks=[2,4]", "search.estimate_tau=true"]
    code, output = here("sweep", *sources, *more, "ray.max_concurrent=1", f"output={tmp_path / 'run'}")
    assert code == 0, output
    rows = {row["trial_id"]: row for row in trial_rows(tmp_path / "run")}
    assert {row["status"] for row in rows.values()} == {"finished"}
    assert len(rows) == len(names) + 1 + 2
    by_method = {row["method"]: row for row in rows.values()}
    independent, shared = (next(r for r in rows.values() if r["tau"] == tau) for tau in (0.0, math.inf))
    assert by_method["fine_tuned"]["started_from"] == shared["trial_id"]
    assert {by_method[name]["started_from"] for name in ("average", "ties", "dare")} == {independent["trial_id"]}
    assert by_method["fine_tuned"]["validation_nll_nats"] <= shared["validation_nll_nats"] + 1e-3
    (learnt,) = (row for row in rows.values() if row["tau_learnt"])
    assert learnt["method"] == "map"
    between = [row for row in rows.values() if row["method"] == "map" and 0 < row["tau"] < math.inf and row != learnt]
    best = min(between, key=lambda row: row["validation_perplexity"])
    assert by_method["pfedme"]["tau"] == by_method["vi"]["tau"] == best["tau"]
    shared_ranks = [row["lora_rank"] for row in rows.values() if row["method"] == "map" and row["tau"] == math.inf]
    assert sorted(shared_ranks) == [2, 4]
    assert by_method["shared_wide"]["lora_rank"] == by_method["shared_wide"]["lora_alpha"] == 4 * 2
    assert {by_method[name]["started_from"] for name in ("fedsa", "shared_wide", "task_prompt")} == {None}
    assert shared["tau_low"] <= shared["tau_estimate"] <= shared["tau_high"]
    results = read_results(tmp_path / "run")
    tokens = results.document_scores.pivot_table(
        index=["split", "document_id"], columns="trial_id", values="num_tokens"
    )
    assert tokens.nunique(axis=1).eq(1).all()  # also with the task's name before each text
    scores = results.task_scores
    assert scores.query("trial_id == @by_method['vi']['trial_id']")["posterior_std"].gt(0).all()
    report = (tmp_path / "run" / "report" / "report.md").read_text()
    assert all(word in report for word in ("TIES", "DARE", "pFedMe", "FedSA: A shared", "one wide model for all"))
    assert "one model for all, with the task's name before each text" in report
    code, output = here("export", tmp_path / "run", tmp_path / "out", "--trial", by_method["fedsa"]["trial_id"])
    assert "_global has the A of all tasks and B = 0" in " ".join(output.split())
    check_prompts(tmp_path / "run", by_method["task_prompt"]["trial_id"])


def check_prompts(run: Path, trial_id: str) -> None:
    """What `generate` gives a fit with names before its texts is how the sequences began that it was trained on."""
    loaded, tokenizer = load_trial(run, trial_id), make_tokenizer()
    corpus = load_corpus(loaded.config.data)
    plain = tokenize(corpus, tokenizer, loaded.config.model.max_tokens)
    named = with_task_names(loaded.config, plain, Encoder(tokenizer))
    for n, (task, text) in enumerate(zip(corpus.documents["task"], corpus.documents["text"], strict=True)):
        sequence = named.tokens[named.offsets[n] : named.offsets[n + 1] - 1].tolist()
        given = Prompt(text).tokens(Encoder(tokenizer), loaded, task)
        assert given == sequence
        assert len(given) > len(text.split()) + 1


@pytest.mark.slow
@pytest.mark.usefixtures("ray_here")
def test_an_interrupted_path_is_resumed(sources, tmp_path):
    arguments = [*sources, "search.mode=path", "search.num_trials=3", "search.ranks=[3]", "output=run"]
    run = tmp_path / "run"
    process = start("sweep", *arguments, cwd=tmp_path)
    wait_for(lambda: any(row["trial_id"] == "002.01" for row in trial_rows(run)), process)
    process.send_signal(signal.SIGINT)
    code, output = finish(process)
    assert code == 130, output
    code, output = here("sweep", "--resume", f"output={run}")
    assert code == 0, output
    rows = {row["trial_id"]: row for row in trial_rows(run)}
    assert set(rows) == {
        "000",
        "001",
        *(f"{head}{tail}" for head in ("002", "003") for tail in ("", ".01", ".02", ".03")),
    }
    assert {row["status"] for row in rows.values()} == {"finished"}
    assert {row["lora_rank"] for trial_id, row in rows.items() if trial_id.startswith("003")} == {3}


@pytest.mark.usefixtures("ray_here")
def test_a_sweep_whose_trials_no_node_can_hold_is_refused(sources, tmp_path):
    code, output = here("sweep", *sources, "ray.workers_per_trial=3", f"output={tmp_path / 'run'}")
    assert code == 2, output
    assert "ray.workers_per_trial=3" in output
    assert trial_rows(tmp_path / "run") == []


@pytest.mark.usefixtures("ray_here")
def test_the_embedded_sweep_shows_the_u_and_the_floor(tmp_path):
    """The best tau beats both ends on test, by intervals that exclude 0, and no model beats the true source."""
    embedded = str(Path(__file__).resolve().parents[2] / "conf" / "embedded.yaml")
    few = ["search.num_trials=0", "search.taus=[150]"]
    code, output = here("sweep", embedded, *few, f"output={tmp_path / 'run'}")
    assert code == 0, output
    report = tmp_path / "run" / "report"
    table = pd.read_csv(report / "tables" / "table_1.csv").query("method == 'map'").set_index("tau")
    assert table["best"].idxmax() == 150
    assert (table.loc[[0.0, math.inf], "relative_difference_to_best_low"] > 0).all()
    assert table.loc[150, "test_perplexity"] < table.loc[[0.0, math.inf], "test_perplexity"].min()
    assert (table["floor_test_perplexity"] < table["test_perplexity"]).all()
    assert "floor (the true source)" in (report / "report.md").read_text()
