"""Advice about training: what stopped too early, what was trained too far, what lies at an edge."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_up_runs import SIZES, write_run, write_trial

from bora_sweep.report.manager import write_manager
from bora_sweep.report.stats.analysis import analyse
from bora_sweep.report.stats.learning import LearningCurve
from bora_sweep.report.stats.method_comparison import compare_methods
from bora_sweep.report.stats.pool_trials import summarise
from bora_sweep.report.stats.recommendation import recommend
from bora_sweep.report.text.notes import warnings
from bora_sweep.runs.results import read_results, write_table
from bora_sweep.runs.storage import read_bytes


def write_curve(run: Path, trial_id: str, validation: list[float], train: list[float]) -> None:
    """Perplexities by epoch, from epoch 0 on; of training from epoch 1 on."""
    series = (("validation", validation, 0), ("train", train, 1))
    rows = [
        {"epoch": first + n, "split": split, "nll_nats": 50 * math.log(value), "num_tokens": 50}
        for split, values, first in series
        for n, value in enumerate(values)
    ]
    write_table(run, "curves", trial_id, rows)


def notes_of(run: Path) -> str:
    """The notes of its report."""
    summary = summarise(read_results(run))
    return warnings(summary, compare_methods(summary), recommend(analyse(summary)).served.setting)


@pytest.mark.parametrize(("best_epoch", "is_told"), [(30, True), (29, False), (12, False)])
def test_still_improving_only_where_the_last_epoch_is_the_best(tmp_path: Path, best_epoch: int, is_told: bool):
    write_run(tmp_path)
    write_trial(tmp_path, 1_000.0, stopped_by="max_epochs", best_epoch=best_epoch)
    assert ("may still have been improving" in notes_of(tmp_path)) == is_told


def test_no_patience_left_is_no_sign_of_improvement(tmp_path: Path):
    write_run(tmp_path)
    write_trial(tmp_path, 1_000.0, stopped_by="patience", best_epoch=30)
    assert "may still have been improving" not in notes_of(tmp_path)


@pytest.mark.parametrize("stopped_by", ["user", "patience"])
def test_a_fit_that_a_user_ended_is_told(tmp_path: Path, stopped_by: str):
    write_run(tmp_path)
    write_trial(tmp_path, math.inf, stopped_by=stopped_by, best_epoch=1)
    told = "ended these fits, and they might have become better: τ = ∞ (one model for all)"
    assert (told in notes_of(tmp_path)) == (stopped_by == "user")
    assert ("ended by hand" in str(read_bytes(write_manager(tmp_path)))) == (stopped_by == "user")


def test_overfitting_is_told_from_its_epoch_with_a_remedy(tmp_path: Path):
    write_run(tmp_path)
    write_curve(tmp_path, "tau=0-0", [20, 14, 12, 13, 15], [18, 13, 10, 8])
    notes = notes_of(tmp_path)
    assert "τ = 0 (one model per task): from epoch 2 on, 12.00 to 15.00 at epoch 4 (+25.0%)" in notes
    assert "lower train.learning_rate or a smaller lora.rank" in notes
    assert notes.count("> **Note.**") == 1


def test_a_first_epoch_that_is_the_best_had_too_large_steps(tmp_path: Path):
    write_run(tmp_path)
    write_curve(tmp_path, "tau=1000-0", [20, 12, 12.1, 12.2, 12.3, 12.4], [18, 13, 10, 8, 7])
    notes = notes_of(tmp_path)
    assert "τ = 1,000 (the best): from epoch 1 on" in notes
    assert "epoch 1 is as good as none: the steps are too large for it" in notes
    assert "as may a larger τ" in notes


@pytest.mark.parametrize(
    ("trial", "validation", "train"),
    [
        ("tau=0-0", [20, 14, 12, 12.1, 12.3], [18, 13, 10, 8]),  # what patience lets by
        ("tau=0-0", [20, 14, 12, 13, 15], [18, 13, 14, 15]),  # training rose too: it diverges, it does not overfit
        ("tau=100-0", [20, 14, 12, 13, 15], [18, 13, 10, 8]),  # a fit that nobody acts on
        ("tau=0-0", [20], []),
    ],
)
def test_what_needs_no_word_has_none(tmp_path: Path, trial: str, validation: list[float], train: list[float]):
    write_run(tmp_path)
    write_curve(tmp_path, trial, validation, train)
    assert "Note." not in notes_of(tmp_path)


@pytest.mark.parametrize("seed", range(20))
def test_overfitting_is_what_a_loop_finds(seed: int):
    rng = np.random.default_rng(seed)
    validation, train = 10 + rng.random((2, 8))
    validation[rng.random(8) < 0.2] = np.nan
    found = LearningCurve(np.arange(8), np.r_[np.nan, train[1:]], validation).overfitting
    scored = [e for e in range(8) if not math.isnan(validation[e])]
    lowest = min(scored, key=lambda e: validation[e])
    first, last = max(lowest, 1), scored[-1]
    expected = lowest < last and last > first and train[last] < train[first]
    assert (found is not None) == expected
    if found is not None:
        assert (found.epoch, found.last_epoch) == (lowest, last)
        assert found.rise == pytest.approx(validation[last] / validation[lowest] - 1)


@pytest.mark.parametrize(
    ("rates", "said"), [((1e-3, 3e-3, 1e-2), None), ((3e-3, 1e-2), "lowest"), ((1e-3, 3e-3), "highest")]
)
def test_a_best_learning_rate_at_the_edge_of_those_tried_is_told(
    tmp_path: Path, rates: tuple[float, ...], said: str | None
):
    write_run(tmp_path)
    for rate in set(rates) - {3e-3}:
        worse = dict.fromkeys(SIZES, 3.5)
        write_trial(tmp_path, 1_000.0, nats=worse, trial_id=f"rate-{rate:g}", learning_rate=rate)
    notes = notes_of(tmp_path)
    assert (f"the learning rate 0.003 is the {said} of those tried" in notes) == (said is not None)
    assert ("of those tried" in notes) == (said is not None)


@pytest.mark.parametrize(
    ("own", "others", "said"),
    [(1e-2, 3e-3, "highest"), (1e-3, 3e-3, "lowest"), (3e-3, 3e-3, None)],
)
def test_a_searched_rate_at_the_edge_of_those_tried_at_all_tau_is_told(
    tmp_path: Path, own: float, others: float, said: str | None
):
    for tau in (0.0, 100.0, 1_000.0, 10_000.0, math.inf):
        write_trial(tmp_path, tau, learning_rate=own if tau == 1_000.0 else others)
    notes = notes_of(tmp_path)
    assert (f"The best fit has the {said} learning rate tried, {own:.3g}" in notes) == (said is not None)
    assert ("search.learning_rates" in notes) == (said is not None)


@pytest.mark.parametrize(("own", "said"), [(1e-6, "lowest"), (1e-5, None), (1e-4, "highest")])
def test_a_coupled_rate_at_the_edge_of_those_tried_is_told(tmp_path: Path, own: float, said: str | None):
    config: dict[float, Any] = {0.0: 1e-6, 100.0: 1e-4, 1_000.0: own, 10_000.0: 2e-5, math.inf: 3e-5}
    for tau, rate in config.items():
        write_trial(tmp_path, tau, config_json=json.dumps({"train": {"lr_per_tau": rate}}))
    notes = notes_of(tmp_path)
    assert (f"The best fit has the {said} train.lr_per_tau tried" in notes) == (said is not None)
    assert ("lr_per_tau" in notes) == (said is not None)


@pytest.mark.parametrize(("best", "is_told"), [(32, True), (8, False), (2, False)])
def test_a_best_rank_that_is_the_highest_is_told(tmp_path: Path, best: int, is_told: bool):
    write_run(tmp_path)
    for rank in (2, 32):
        level = 2.9 if rank == best else 3.5
        write_trial(tmp_path, math.inf, nats=dict.fromkeys(SIZES, level), trial_id=f"rank-{rank}", lora_rank=rank)
    assert (f"rank {best} is the highest tried" in notes_of(tmp_path)) == is_told
