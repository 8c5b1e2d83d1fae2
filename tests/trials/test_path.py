"""The path: which values it fits, how each begins, and that one which was cut off ends as if it had not been."""

import math
import shutil

import pytest
from tiny import make_base, make_corpus

from bora_sweep.config import load_config
from bora_sweep.runs.results import read_results, trial_rows, write_table
from bora_sweep.train.checkpoint import load_adapters
from bora_sweep.trials.path import next_tau, run_path

SETTINGS = [
    "lora.rank=2",
    "lora.target_modules=null",
    "train.device=cpu",
    "train.batch_size=6",
    "train.max_epochs=6",
    "train.patience=2",
    "train.learning_rate=0.02",
    "search.mode=path",
    "search.num_trials=4",
    "search.tau_high=1e4",
]


def walk(curve, count: int, low: float = 1.0, high: float = 1e5) -> list[float]:
    """The values that a path would fit where validation is `curve` of tau."""
    nats_of = {math.inf: curve(math.inf)}
    for _ in range(count):
        tau = next_tau(nats_of, low, high)
        assert tau not in nats_of
        assert low <= tau <= high
        nats_of[tau] = curve(tau)
    return list(nats_of)


def bowl(at: float):
    return lambda tau: min(abs(math.log10(tau) - at), 9.0) if tau < math.inf else 8.0


def test_tau_falls_by_decades_until_validation_has_turned_and_then_the_grid_is_halved_around_the_best():
    values = walk(bowl(3.3), 8)
    assert values[:6] == pytest.approx([math.inf, 1e5, 1e4, 1e3, 1e2, 1e1])
    assert values[6:] == pytest.approx([10**3.5, 10**3.25, 10**3.375])


@pytest.mark.parametrize("at", [0.2, 1.4, 2.6, 3.9, 4.9])
def test_the_best_value_is_closed_in_on_wherever_it_lies(at):
    found = min(walk(bowl(at), 12)[1:], key=bowl(at))
    assert abs(math.log10(found) - at) < 0.3


@pytest.mark.parametrize(("low", "high"), [(1.0, 1e5), (3.0, 5e3), (10.0, 40.0), (99.0, 101.0)])
@pytest.mark.parametrize("end", ["low", "high", "inf"])
def test_a_curve_without_a_bottom_is_followed_to_its_end(low, high, end):
    curve = {"low": lambda t: t, "high": lambda t: 1 / t, "inf": lambda t: 0 if t == math.inf else 1 / t}[end]
    values = walk(curve, 7, low, high)
    assert values[1] == high
    if end == "low":
        assert min(values) == low


def test_a_shared_fit_that_is_better_than_the_values_next_to_it_does_not_end_the_fall():
    """It may keep any of its epochs, they begin anew from its end: on some corpora 1e5 and 1e4 are a little worse."""
    nats_of = {math.inf: 2.480, 1e5: 2.486, 1e4: 2.482}
    assert next_tau(nats_of, 1.0, 1e5) == pytest.approx(1e3)
    assert next_tau({**nats_of, 1e3: 2.49, 1e2: 2.5}, 1.0, 1e5) > 1e3


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    run = tmp_path_factory.mktemp("path")
    rows = run_path(load_config(SETTINGS), make_corpus(), make_base, run, "002")
    return run, rows


def test_a_value_is_a_trial_like_any_other_and_begins_where_the_one_above_it_ended(whole):
    run, rows = whole
    assert [row["trial_id"] for row in rows] == ["002", "002.01", "002.02", "002.03", "002.04"]
    assert rows[0]["tau"] == math.inf
    results = read_results(run)
    assert results.trials["status"].eq("finished").all()
    assert len(results.task_scores) == 5 * 3 * 3
    by_tau = {row["tau"]: row for row in rows}
    assert rows[1]["started_from"] == "002"
    best = min(rows, key=lambda row: row["validation_perplexity"])
    for row in rows[1:]:
        above, below = (
            [tau for tau in by_tau if tau > row["tau"]],
            [tau for tau in by_tau if tau < row["tau"]],
        )
        neighbours = {by_tau[min(above)]["trial_id"]} | (
            {by_tau[max(below)]["trial_id"]} if row is best and below else set()
        )
        assert row["started_from"] in neighbours or row["trial_id"] < min(neighbours)
        assert row["best_epoch"] >= 1
        bank, _ = load_adapters(run / "trials" / row["trial_id"])
        assert bank["theta_KP"].shape[0] == 3


def test_a_path_that_was_cut_off_ends_as_if_it_had_not_been(whole, tmp_path):
    class KilledError(Exception):
        pass

    epochs = []

    def die(state) -> None:
        epochs.append(state.epoch)
        if len(epochs) in (4, 9, 13):
            raise KilledError

    rows = []
    for _ in range(9):
        try:
            rows = run_path(load_config(SETTINGS), make_corpus(), make_base, tmp_path, "002", on_epoch=die)
            break
        except KilledError:
            continue
    assert len(epochs) >= 13
    for row, other in zip(rows, whole[1], strict=True):
        for name in ("trial_id", "tau", "validation_nll_nats", "test_nll_nats", "train_tokens", "best_epoch"):
            assert row[name] == other[name]
    assert len(trial_rows(tmp_path, "002")) == 5


def test_walking_a_finished_path_again_fits_nothing(whole):
    run, rows = whole

    def refuse():
        raise AssertionError("a base model was loaded")

    again = run_path(load_config(SETTINGS), make_corpus(), refuse, run, "002")
    assert [row["validation_nll_nats"] for row in again] == [row["validation_nll_nats"] for row in rows]


def test_a_path_whose_scores_a_task_has_left_keeps_the_values_that_it_fitted(whole, tmp_path):
    run = shutil.copytree(whole[0], tmp_path / "run")
    fitted = {row["trial_id"]: row["tau"] for row in whole[1]}
    for row in trial_rows(run):  # what was the best is the worst, so that other values would follow
        write_table(run, "trials", row["trial_id"], [row | {"validation_nll_nats": 1e4 - row["validation_nll_nats"]}])
    *again, new = run_path(load_config([*SETTINGS, "search.num_trials=5"]), make_corpus(), make_base, run, "002")
    assert {row["trial_id"]: row["tau"] for row in again} == fitted
    above = min((row for row in again if row["tau"] > new["tau"]), key=lambda row: row["tau"])
    assert new["started_from"] == above["trial_id"]
    assert fitted["002.04"] in (above["tau"], max(tau for tau in fitted.values() if tau < new["tau"]))


def test_a_value_that_diverges_at_once_ends_where_it_began(tmp_path):
    config = load_config([*SETTINGS, "search.num_trials=1", "train.learning_rate=1e300"])
    rows = run_path(config, make_corpus(), make_base, tmp_path, "002")
    assert [row["stopped_by"] for row in rows] == ["divergence", "divergence"]
    assert all("1e+300" in row["error"] for row in rows)
    assert rows[1]["validation_nll_nats"] == pytest.approx(rows[0]["validation_nll_nats"])
