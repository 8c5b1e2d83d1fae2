"""Early stopping across trials: which fits it stops, which it spares, and that a stopped fit has its scores."""

import math
from types import SimpleNamespace

import pytest
from sweeps import SMALL, here

from bora_sweep.config import load_config
from bora_sweep.runs.results import trial_rows
from bora_sweep.tune.scheduler import EARLY_STOP_FILE, EarlyStopping

EPOCHS = 60


class Fit:
    """What a rule sees of one of Tune's trials."""

    def __init__(self, trial_id: str, config: dict) -> None:
        self.trial_id, self.config, self.status = trial_id, config, "RUNNING"


def race(rule: str, curves: dict[float, callable], run) -> set[float]:
    """The values of tau that the rule stops, all fits at once, epoch by epoch."""
    scheduler = EarlyStopping(load_config([f"search.scheduler={rule}"]), run)
    controller = SimpleNamespace(get_live_trials=list)
    trials = {}
    for number, tau in enumerate(curves):
        fit = {"trial_id": f"{number:03d}", "point": {"number": number, "tau": tau}}
        trials[tau] = Fit(str(number), {"fits": [fit]})
        scheduler.on_trial_add(controller, trials[tau])
    stopped = set()
    for epoch in range(1, EPOCHS + 1):
        for number, (tau, curve) in enumerate(curves.items()):
            if tau not in stopped:
                result = {"epoch": epoch, "validation_nll_nats": curve(epoch), "training_iteration": epoch}
                assert scheduler.on_trial_result(controller, trials[tau], result) == "CONTINUE"
                if (run / "trials" / f"{number:03d}" / EARLY_STOP_FILE).exists():
                    stopped.add(tau)
    return stopped


def falling(end: float, pace: float):
    """Best validation so far: from 10 towards `end`, half of the way every `pace` epochs."""
    return lambda epoch: end + (10 - end) * 0.5 ** (epoch / pace)


@pytest.mark.parametrize("rule", ["asha", "median"])
def test_a_slow_starter_that_wins_is_kept_and_hopeless_fits_are_stopped(rule, tmp_path):
    """Large tau takes several times as many epochs as small tau: at epoch 3 the winner is the last of all."""
    quick = {10.0**power: falling(6 + 0.3 * power, 1.0) for power in range(4)}
    slow = {1e5: falling(4.0, 4.0)}
    hopeless = {7.0: lambda _: 9.9, 8.0: lambda _: 9.8}
    curves = {**quick, **slow, **hopeless}
    assert max(curves, key=lambda tau: curves[tau](3) if tau not in hopeless else 0) == 1e5
    stopped = race(rule, curves, tmp_path)
    assert 1e5 not in stopped
    assert stopped & set(hopeless)


@pytest.mark.parametrize("rule", ["asha", "median"])
def test_tau_0_and_inf_are_never_stopped(rule, tmp_path):
    curves = {0.0: lambda _: 9.0, math.inf: lambda _: 9.5, **{float(tau): falling(5, 1) for tau in range(1, 6)}}
    assert not race(rule, curves, tmp_path) & {0.0, math.inf}


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("ray_here")
def test_a_stopped_fit_has_its_scores_and_names_the_rule(corpus_file, model_folder, tmp_path):
    sources = [f"data.path={corpus_file}", f"model.name={model_folder}", *SMALL, "train.max_epochs=40"]
    rule = ["search.scheduler=asha", "search.grace_epochs=2", "train.patience=40", "search.num_trials=0"]
    taus = "search.taus=[1,3,10,30,100,300]"
    code, output = here("sweep", *sources, *rule, taus, f"output={tmp_path / 'run'}")
    assert code == 0, output
    rows = trial_rows(tmp_path / "run")
    stopped = [row for row in rows if row["stopped_by"] == "asha"]
    assert stopped
    assert all(row["status"] == "finished" and row["test_perplexity"] > 1 and row["epochs"] < 40 for row in stopped)
    assert all(row["stopped_by"] == "max_epochs" for row in rows if row["tau"] in (0.0, math.inf))
