"""The page for the person who decides: its words, its numbers, and its form."""

import json
import math
import re
from pathlib import Path

import pytest
from made_up_runs import HOSTILE, SIZES, write_run, write_trial

from bora_sweep.cli import main
from bora_sweep.errors import InputError
from bora_sweep.report.manager import write_manager
from bora_sweep.report.stats.analysis import analyse
from bora_sweep.report.stats.pool_trials import summarise
from bora_sweep.runs.results import read_results, write_table

FORBIDDEN = (
    "tau", "τ", "perplexity", "bootstrap", "prior", "interval", "confidence", "significan", "validation", "p-value",
    "holm", "nats", "theta", "lora", "hyperparameter", "zero-shot", "seed", "epoch", "token", "95%", "standard error",
    "likelihood", "variance", "overfit", "nan",
)  # fmt: skip
MANY = dict.fromkeys(SIZES, (30, 40, 60))
LEVELS = {
    "own": {None: 3.6, 0.0: 3.2, 100.0: 3.0, math.inf: 3.1},
    "one": {None: 3.6, 0.0: 3.15, 5620.0: 3.0, math.inf: 3.0},
    "alone": {None: 3.6, 0.0: 3.0, 100.0: 3.1, math.inf: 3.2},
    "base": {None: 3.0, 0.0: 3.1, 100.0: 3.02, math.inf: 3.01},
    "no_base": {100.0: 3.0},
}


def page_of(run: Path) -> str:
    written = write_manager(run)
    assert isinstance(written, Path)
    assert written == run / "report" / "manager.md"
    return written.read_text()


def write_levels(run: Path, levels: dict[float | None, float], noise: float = 0.05, sizes=MANY) -> Path:
    for tau, level in levels.items():
        write_trial(run, tau, sizes, nats=dict.fromkeys(sizes, level), own_noise=noise)
    return run


@pytest.mark.parametrize("shape", LEVELS)
def test_no_word_of_statistics_or_training(tmp_path: Path, shape: str):
    page = page_of(write_levels(tmp_path / shape, LEVELS[shape]))
    words = re.sub(r"`[^`]*`", "", page).lower()  # a command names a trial
    assert not [word for word in FORBIDDEN if word in words]
    headings = ["brings", "sure", "costs", "tasks gain", "to do next"]
    assert all(any(word in line for line in page.splitlines() if line.startswith("## ")) for word in headings)
    assert len(page) < 4000  # a page


def test_few_documents_are_told_in_the_same_words(tmp_path: Path):
    sizes = dict.fromkeys(SIZES, (6, 1, 1))
    page = page_of(write_levels(tmp_path, LEVELS["own"], noise=0.5, sizes=sizes))
    assert page.split("\n\n")[1].startswith("**It is too early to decide: ")
    assert "Collect more texts." in page
    assert not [word for word in FORBIDDEN if word in re.sub(r"`[^`]*`", "", page).lower()]


def test_a_ratio_of_choices_is_a_ratio_of_perplexities(tmp_path: Path):
    """`as among N, x% more`: N is the perplexity, and x is how far it lies above that of what is served."""
    run = write_levels(tmp_path, LEVELS["own"], noise=0)
    summary = summarise(read_results(run))
    test_M, page = summary.chosen_by.test_M, page_of(run)
    assert f"as if it had to choose among {test_M[summary.best]:.2f} that are equally likely" in page
    assert summary.shared is not None
    assert f"One adapter for all tasks: as among {test_M[summary.shared]:.2f}, which is 10.5% more" in page
    assert test_M[summary.shared] / test_M[summary.best] - 1 == pytest.approx(0.105, abs=5e-4)
    assert "is worse by 10.5% to 10.5%" in page


def test_tasks_that_certainly_gain_and_lose_are_named(tmp_path: Path):
    levels = {**dict.fromkeys(MANY, 3.0), "ada": 2.8, "bo": 3.3}
    for tau, nats in ((0.0, dict.fromkeys(MANY, 3.3)), (100.0, levels), (math.inf, dict.fromkeys(MANY, 3.05))):
        write_trial(tmp_path, tau, MANY, nats=nats, own_noise=0.05)
    page = page_of(tmp_path)
    better = next(line for line in page.splitlines() if line.startswith("- certainly better"))
    assert better.startswith("- certainly better: 4 tasks, ada (2")
    assert "- certainly worse: 1 task, bo (3" in page
    gains = analyse(summarise(read_results(tmp_path))).task_gains
    ada = next(gain for gain in gains if gain.task == "ada" and gain.reference == "shared")
    assert f"ada ({100 * ada.interval.estimate:.1f}% fewer)" in better


def test_a_metric_is_told_as_a_share_of_answers(tmp_path: Path):
    run = write_run(tmp_path, sizes=MANY, metrics=("accuracy",))
    for trial in read_results(run).trials["trial_id"]:
        row = read_results(run).trials.query("trial_id == @trial").drop(columns="run")
        write_table(run, "trials", trial, row.assign(search_objective="accuracy"))
    page = page_of(run)
    assert "the share of answers that are right is " in page
    assert re.search(r"One adapter for all tasks: [\d.]+%, which is [\d.]+ points fewer than the recommended", page)


def test_the_page_is_one_file_without_scripts_whatever_names_hold(tmp_path: Path):
    sizes = dict.fromkeys(HOSTILE, (30, 10, 20))
    nats = {name: 2.5 + 0.01 * n for n, name in enumerate(HOSTILE)}
    run = tmp_path / "<b>$r"
    for tau, add in ((0.0, 0.3), (100.0, 0.0), (math.inf, 0.2)):
        write_trial(run, tau, sizes, nats={name: level + add for name, level in nats.items()}, own_noise=0.02)
    page_of(run)
    html = (run / "report" / "manager.html").read_text()
    assert "<script" not in html
    assert "<b>" not in html
    assert "http:" not in html
    assert "https:" not in html
    assert html.count("<h2>") == 5


def test_the_command_prints_the_advice_and_refuses_the_paper(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run = write_levels(tmp_path, LEVELS["one"])
    assert main(["report", str(run), "--for", "manager"]) == 0
    assert capsys.readouterr().out.startswith("**Serve one adapter for all tasks.**")
    assert main(["report", str(run), "--for", "manager", "--against", "paper"]) == 2
    assert "drop one of them" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("shape", "told"),
    [("own", "the best one was the last"), ("one", "the best one for an adapter of each task was the last")],
)
def test_an_edge_is_of_the_recommended_setting_or_says_whose_it_is(tmp_path: Path, shape: str, told: str):
    run = write_levels(tmp_path, LEVELS[shape])
    write_trial(run, 10_000.0, MANY, nats=dict.fromkeys(MANY, 3.09), own_noise=0.05)
    assert f"Try settings beyond those tried: {told} of its range." in page_of(run)


@pytest.mark.parametrize(("truncate", "kept"), [("end", "their beginnings"), ("prompt", "what was kept of them")])
def test_what_was_cut_is_told_by_its_share(tmp_path: Path, truncate: str, kept: str):
    config = json.dumps({"data": {"truncate": truncate}})
    for tau, level in LEVELS["own"].items():
        nats = dict.fromkeys(MANY, level)
        write_trial(tmp_path, tau, MANY, nats=nats, own_noise=0.05, cut_token_fraction=0.345, config_json=config)
    page = page_of(tmp_path)
    assert "parts of them, 34.5% of all text, were cut off and not used. The numbers on this page are of " in page
    assert f" are of {kept} alone." in page
    assert page.count("Compared with the recommendation, ") == 1


def test_a_run_of_add_is_refused(tmp_path: Path):
    write_trial(tmp_path, 100.0, method="add", trial_id="add")
    with pytest.raises(InputError, match="which chooses nothing"):
        write_manager(tmp_path)
