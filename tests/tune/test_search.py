"""The searcher alone, without Ray: what it asks for, what it learns, and that a replay is the same search."""

import math

import numpy as np
import pytest
import torch
from conftest import make_corpus
from ray.tune.utils import flatten_dict

from bora_sweep.config import Config, load_config
from bora_sweep.train.state import no_op
from bora_sweep.tune import worker as trial_module
from bora_sweep.tune.points import Known, Point, fixed_points, num_trials, trial_config
from bora_sweep.tune.search import TauSearch
from bora_sweep.tune.watchdog import StopCheck
from bora_sweep.tune.worker_group import reserved


def make_config(*settings: str) -> Config:
    return load_config(["search.num_trials=8", "search.tau_low=1", "search.tau_high=1e4", *settings])


def run(search: TauSearch, objective) -> list[tuple[str, Point, float]]:
    """Ask and tell one by one until the searcher has no more."""
    done = []
    while (suggested := search.suggest(f"t{len(done)}")) != TauSearch.FINISHED:
        done += tell(search, f"t{len(done)}", suggested, objective)
    return done


def tell(search: TauSearch, tune_id: str, suggested: dict, objective) -> list[tuple[str, Point, float]]:
    """End a trial of Tune's with the objectives of its fits."""
    points = [Point(**fit["point"]) for fit in suggested["fits"]]
    values = [objective(point, fit["seed_index"]) for point, fit in zip(points, suggested["fits"], strict=True)]
    ids = [fit["trial_id"] for fit in suggested["fits"]]
    result = {"objectives": dict(zip(ids, values, strict=True))}
    search.on_trial_complete(tune_id, flatten_dict(result))  # as Tune does
    return list(zip(ids, points, values, strict=True))


def run_at_once(search: TauSearch, objective, specs: int, rng: np.random.Generator) -> list[tuple[str, Point, float]]:
    """The same with `specs` trials at once, which end in a random order."""
    running, done, asked = {}, [], 0
    while True:
        while len(running) < specs:
            suggested = search.suggest(f"t{asked}")
            if suggested is None or suggested == TauSearch.FINISHED:
                break
            running[f"t{asked}"] = suggested
            asked += 1
        if not running:
            assert suggested == TauSearch.FINISHED
            return sorted(done, key=lambda entry: entry[0])
        ended = str(rng.choice(list(running)))
        done += tell(search, ended, running.pop(ended), objective)


def bowl(point: Point, seed_index: int = 0) -> float:
    return (math.log10(point.tau) - 2.2) ** 2 + 0.01 * seed_index if 0 < point.tau < math.inf else 9.0


def test_baselines_come_first_then_listed_values_then_the_search():
    done = run(TauSearch(make_config("search.taus=[0,50,1e9,inf,50]"), {}), bowl)
    points = [point for _, point, _ in done]
    assert [(p.method, p.tau) for p in points[:5]] == [
        ("zero_shot", math.inf),
        ("map", 0.0),
        ("map", math.inf),
        ("map", 50.0),
        ("map", 1e9),
    ]
    assert len(points) == len(fixed_points(make_config("search.taus=[0,50,1e9,inf,50]"))) + 8 == 13
    assert all(1 <= point.tau <= 1e4 for point in points[5:])
    assert [trial_id for trial_id, _, _ in done] == [f"{n:03d}" for n in range(13)]


@pytest.mark.parametrize("sampler", ["tpe", "gp", "random"])
def test_the_first_values_are_spread_evenly_and_then_gp_gathers_at_the_best(sampler):
    done = run(TauSearch(make_config(f"search.sampler={sampler}", "search.num_trials=14"), {}), bowl)
    logs = np.log10([point.tau for _, point, _ in done[3:]])
    assert logs[:5] == pytest.approx([0.4, 1.2, 2.0, 2.8, 3.6])
    if sampler == "gp":
        assert np.median(np.abs(logs[5:] - 2.2)) < 0.5  # 1.0 for values spread over the whole range


def test_it_is_a_function_of_the_seed_and_the_results():
    one, again = (run(TauSearch(make_config(), {}), bowl) for _ in range(2))
    assert one == again
    assert one != run(TauSearch(make_config("train.seed=1"), {}), bowl)


def test_no_value_is_fitted_twice():
    config = make_config("search.num_trials=14", "search.tau_high=1e5")
    done = run(
        TauSearch(config, {}), lambda point, _: 1 / point.tau if 0 < point.tau < math.inf else 9.0
    )  # edge is best
    logs = np.sort(np.log([point.tau for _, point, _ in done[3:]]))
    assert np.diff(logs).min() > 0.005


@pytest.mark.parametrize("slots", [2, 5])
@pytest.mark.parametrize("seeds", [1, 2])
def test_the_order_in_which_trials_end_decides_nothing(specs, seeds):
    config = make_config(f"search.seeds={seeds}")
    sweeps = [
        run_at_once(TauSearch(config, {}, specs), bowl, specs, np.random.default_rng(order)) for order in range(4)
    ]
    assert all(sweep == sweeps[0] for sweep in sweeps)
    assert len(sweeps[0]) == num_trials(config)


@pytest.mark.parametrize("cut", [0, 2, 5, 9, 11])
def test_a_sweep_taken_up_again_goes_on_as_if_it_had_not_stopped(cut):
    whole = run(TauSearch(make_config(), {}), bowl)
    known = {trial_id: Known(point, True, value) for trial_id, point, value in whole[:cut]}
    if cut < len(whole):  # one that was running when the sweep was cut off
        known[whole[cut][0]] = Known(whole[cut][1], False, math.nan)
    assert run(TauSearch(make_config(), known), bowl) == whole[cut:]


def test_more_trials_can_be_asked_for_later():
    first = run(TauSearch(make_config("search.num_trials=6"), {}), bowl)
    known = {trial_id: Known(point, True, value) for trial_id, point, value in first}
    more = run(TauSearch(make_config("search.num_trials=9"), known), bowl)
    assert [trial_id for trial_id, _, _ in more] == ["009", "010", "011"]


def test_failures_and_values_that_are_not_numbers_are_told_as_failures():
    search = TauSearch(make_config(), {})
    done = run(search, lambda point, _: math.nan if point.tau > 1e3 else bowl(point))
    assert len(done) == 11
    states = {trial.state.name for trial in search.study.trials}
    assert states == {"COMPLETE", "FAIL", "RUNNING"}  # the last has no successor that would have to know
    search = TauSearch(make_config(), {})
    for i in range(11):
        search.suggest(str(i))
        search.on_trial_complete(str(i), None, error=True)
    assert {trial.state.name for trial in search.study.trials} == {"FAIL", "RUNNING"}


def test_the_search_sees_the_mean_over_seeds():
    config = make_config("search.seeds=3", "search.num_trials=7")
    search = TauSearch(config, {})
    done = run(search, bowl)
    assert len(done) == num_trials(config) == 3 * 10
    assert [trial_id for trial_id, _, _ in done[:4]] == ["000-0", "000-1", "000-2", "001-0"]
    told = [trial for trial in search.study.trials if trial.state.is_finished()]
    assert len(told) == 6
    for trial in told:
        assert trial.value == pytest.approx(bowl(Point(0, trial.params["tau"])) + 0.01)
    seeds = [trial_config(config, Point(1, 2.0), index).train.seed for index in range(3)]
    assert seeds == [0, 1, 2]


def test_lr_per_tau_is_searched_where_it_is_coupled():
    config = make_config("prior.parametrization=centered", "train.lr_per_tau=1e-5", "search.taus=[10]")
    search = TauSearch(config, {})
    done = run(search, bowl)
    assert all(1e-6 <= point.lr_per_tau <= 1e-4 for _, point, _ in done[4:])
    assert trial_config(config, done[5][1], 0).train.lr_per_tau == done[5][1].lr_per_tau
    told = [trial.params for trial in search.study.trials]
    assert {"tau": 10.0, "lr_per_tau": 1e-5} in told


@pytest.mark.parametrize("slots", [1, 2, 3])
@pytest.mark.parametrize("seeds", [1, 2])
def test_a_pack_holds_fits_of_one_seed_and_decides_nothing_by_the_order_in_which_trials_end(specs, seeds):
    config = make_config("search.pack=3", "search.num_trials=11", f"search.seeds={seeds}", "search.ranks=[2]")
    packs = []

    def goes_with_others(fit) -> bool:
        point = fit["point"]
        return point["method"] == "map" and point["tau"] > 0 and point["rank"] is None

    class Watched(TauSearch):
        def suggest(self, trial_id):
            suggested = super().suggest(trial_id)
            if isinstance(suggested, dict):
                packs.append(suggested["fits"])
            return suggested

    sweeps = [run_at_once(Watched(config, {}, specs), bowl, specs, np.random.default_rng(order)) for order in range(3)]
    assert all(sweep == sweeps[0] for sweep in sweeps)
    assert len(sweeps[0]) == num_trials(config)
    for pack in packs:
        assert len({fit["seed_index"] for fit in pack}) == 1
        assert len(pack) == 1 or all(
            fit["point"]["tau"] > 0 and fit["point"]["method"] == "map" and fit["point"]["rank"] is None for fit in pack
        )
    assert max(map(len, packs)) == 3
    assert (
        np.mean([len(pack) for pack in packs if pack[0]["point"]["tau"] > 0 and pack[0]["point"]["method"] == "map"])
        > 2
    )


def test_the_values_of_a_pack_differ_and_packs_gather_at_the_best():
    done = run(TauSearch(make_config("search.pack=4", "search.num_trials=16"), {}), bowl)
    logs = np.log10([point.tau for _, point, _ in done[3:]])
    assert np.diff(np.sort(logs)).min() > 0.002
    assert np.median(np.abs(logs[8:] - 2.2)) < 0.5


@pytest.mark.parametrize("cut", [0, 3, 5, 8, 11])
def test_a_packed_sweep_taken_up_again_fits_the_values_that_it_would_have_fitted(cut):
    config = make_config("search.pack=3")
    whole = run(TauSearch(config, {}), bowl)
    known = {trial_id: Known(point, True, value) for trial_id, point, value in whole[:cut]}
    rest = run(TauSearch(config, known), bowl)
    assert sorted(rest, key=lambda entry: entry[0]) == sorted(whole[cut:], key=lambda entry: entry[0])


def test_pfedme_and_vi_take_all_that_the_best_fit_was_given():
    config = make_config("search.baselines=[independent,shared,pfedme,vi]", "prior.groups=matrix")
    done = run(TauSearch(config, {}, groups=["A", "B"]), lambda point, _: bowl(point) if point.method == "map" else 1.0)
    best = min(
        (entry for entry in done if 0 < entry[1].tau < math.inf and entry[1].method == "map"), key=lambda e: e[2]
    )
    for _, point, _ in done[-2:]:
        assert point.method in ("pfedme", "vi")
        assert (point.tau, point.group_scales) == (best[1].tau, best[1].group_scales)
        assert point.group_scales["A"] == 1.0


def test_a_trial_uses_as_many_threads_as_it_reserves_cpus(tmp_path, monkeypatch):
    threads = torch.get_num_threads()
    monkeypatch.setattr(trial_module, "run_pack", lambda *_, **__: {"000": torch.get_num_threads()})
    params = {"fits": [{"trial_id": "000", "point": vars(Point(0, 1.0)), "seed_index": 0, "start": None}]}
    try:
        for cpus, used in (("3", 3), ("0.5", 1)):
            config = make_config(f"ray.cpus_per_trial={cpus}")
            found = trial_module._fit(params, config, make_corpus(), tmp_path, StopCheck(tmp_path), no_op)
            assert found == {"000": used}
    finally:
        torch.set_num_threads(threads)


def test_a_trial_reserves_what_is_asked_for_one_bundle_for_each_of_its_processes():
    for gpus, workers in ((0.5, 1), (1.0, 4)):
        bundles = reserved({"CPU": 2.0, "GPU": gpus}, workers).bundles
        assert bundles == [{"CPU": 2.0, "GPU": gpus}] * workers
