"""The searcher alone, without Ray: which fits it asks for, what it learns, and that a resume is the same search."""

import math

import numpy as np
import pytest
import torch
from ray.tune.utils import flatten_dict
from tiny import make_corpus

from bora_sweep.config import Config, load_config
from bora_sweep.errors import InputError
from bora_sweep.train.state import no_op
from bora_sweep.tune import worker
from bora_sweep.tune.numbering import extended, new_numbering
from bora_sweep.tune.points import EarlierTrial, Point, preset_points, trial_config
from bora_sweep.tune.search import TauSearch
from bora_sweep.tune.watchdog import StopCheck
from bora_sweep.tune.worker_group import placement_group


def make_config(*settings: str) -> Config:
    return load_config(["search.num_trials=8", "search.tau_low=1", "search.tau_high=1e4", *settings])


def run(search: TauSearch, objective) -> list[tuple[str, Point, float]]:
    """Ask and tell one trial at a time until the searcher has no more; (trial id, point, objective) of each fit."""
    done = []
    while (suggested := search.suggest(f"t{len(done)}")) != TauSearch.FINISHED:
        done += tell(search, f"t{len(done)}", suggested, objective)
    return done


def tell(search: TauSearch, tune_id: str, suggested: dict, objective) -> list[tuple[str, Point, float]]:
    """End a trial of Tune's with the objectives of its fits, reported as the trainable does."""
    points = [Point(**fit["point"]) for fit in suggested["fits"]]
    values = [objective(point, fit["seed_index"]) for point, fit in zip(points, suggested["fits"], strict=True)]
    ids = [fit["trial_id"] for fit in suggested["fits"]]
    result = {"objectives": dict(zip(ids, values, strict=True))}
    search.on_trial_complete(tune_id, flatten_dict(result))  # Tune flattens it
    return list(zip(ids, points, values, strict=True))


def run_concurrently(
    search: TauSearch, objective, num_concurrent: int, rng: np.random.Generator
) -> list[tuple[str, Point, float]]:
    """The same with `num_concurrent` trials at once, which end in a random order."""
    running, done, asked, suggested = {}, [], 0, None
    while True:
        while len(running) < num_concurrent:
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


def valley(point: Point, seed_index: int = 0) -> float:
    """Lowest at tau = 10^2.2 and a rate of 1e-2."""
    return bowl(point, seed_index) + (math.log10(point.learning_rate or 3e-3) + 2) ** 2


RATES = "search.learning_rates=[0.001,0.01]"


def test_learning_rates_are_searched_beside_tau_and_the_baselines_fitted_at_each():
    config = make_config(RATES, "search.num_trials=16", "search.taus=[50]")
    done = run(TauSearch(config, {}), valley)
    points = [point for _, point, _ in done]
    ends = [(p.tau, trial_config(config, p, 0).learning_rate) for p in points if p.tau in (0, math.inf)]
    assert {(tau, rate) for tau in (0, math.inf) for rate in (1e-3, 3e-3, 1e-2)} <= set(ends)
    chosen = [p for p in points if 0 < p.tau < math.inf and p.tau != 50]
    assert len(chosen) == 16
    assert {p.learning_rate for p in chosen[:3]} == {1e-3, 3e-3, 1e-2}
    assert sum(p.learning_rate == 1e-2 for p in chosen[8:]) > 4  # the search prefers the best rate
    best = min(chosen, key=valley)
    assert best.learning_rate == 1e-2


def test_a_search_of_learning_rates_resumes_as_the_same_search():
    config = make_config(RATES, "search.num_trials=10")
    whole = run(TauSearch(config, {}), valley)
    earlier = {trial_id: EarlierTrial(point, True, value) for trial_id, point, value in whole[:9]}
    rest = run(TauSearch(config, earlier), valley)
    assert rest == whole[9:]


def test_further_learning_rates_are_added_and_none_is_taken_away():
    before, more = make_config(RATES), make_config("search.learning_rates=[0.001,0.01,0.03]")
    numbering = new_numbering(before)
    added = extended(before, more, numbering, [])
    new = [point for number, point in added.given.items() if number not in numbering.given]
    assert [(p.tau, p.learning_rate) for p in new] == [(0.0, 0.03), (math.inf, 0.03)]
    assert {number: added.given[number] for number in numbering.given} == numbering.given
    with pytest.raises(InputError, match=r"search\.learning_rates"):
        extended(more, before, added, [])


@pytest.mark.parametrize(
    "settings",
    [["search.learning_rates=[0]"], [RATES, "train.lr_per_tau=1e-5", "prior.parametrization=centered"]],
)
def test_rates_that_cannot_be_searched_are_refused(settings):
    with pytest.raises(InputError, match=r"search\.learning_rates"):
        make_config(*settings)


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
    assert len(points) == len(preset_points(make_config("search.taus=[0,50,1e9,inf,50]"))) + 8 == 13
    assert all(1 <= point.tau <= 1e4 for point in points[5:])
    assert [trial_id for trial_id, _, _ in done] == [f"{n:03d}" for n in range(13)]


@pytest.mark.parametrize("sampler", ["tpe", "gp", "random"])
def test_the_first_values_are_spread_evenly_then_gp_concentrates_at_the_best(sampler):
    done = run(TauSearch(make_config(f"search.sampler={sampler}", "search.num_trials=14"), {}), bowl)
    logs = np.log10([point.tau for _, point, _ in done[3:]])
    assert logs[:5] == pytest.approx([0.4, 1.2, 2.0, 2.8, 3.6])
    if sampler == "gp":
        assert np.median(np.abs(logs[5:] - 2.2)) < 0.5  # 1.0 for values spread over the whole range


def test_the_search_is_a_function_of_the_seed_and_the_results():
    one, again = (run(TauSearch(make_config(), {}), bowl) for _ in range(2))
    assert one == again
    assert one != run(TauSearch(make_config("train.seed=1"), {}), bowl)


@pytest.mark.parametrize("sampler", ["gp", "tpe", "random"])
@pytest.mark.parametrize("sign", [-1, 1])
def test_no_value_is_fitted_twice(sign, sampler):
    """Also where a bound of tau is best, so that the sampler asks for it again and again."""
    config = make_config("search.num_trials=40", "search.tau_high=1e5", f"search.sampler={sampler}")
    done = run(TauSearch(config, {}), lambda point, _: point.tau**sign if 0 < point.tau < math.inf else 1e9)
    logs = np.sort(np.log([point.tau for _, point, _ in done[3:]]))
    assert np.diff(logs).min() > 0.01


@pytest.mark.parametrize("num_concurrent", [2, 5])
@pytest.mark.parametrize("seeds", [1, 2])
def test_the_search_does_not_depend_on_the_order_in_which_trials_end(num_concurrent, seeds):
    config = make_config(f"search.seeds={seeds}")
    sweeps = [
        run_concurrently(TauSearch(config, {}, num_concurrent), bowl, num_concurrent, np.random.default_rng(order))
        for order in range(4)
    ]
    assert all(sweep == sweeps[0] for sweep in sweeps)
    assert len(sweeps[0]) == new_numbering(config).num_fits(config)


@pytest.mark.parametrize("cut", [0, 2, 5, 9, 11])
def test_a_resumed_sweep_fits_the_values_that_it_would_have_fitted(cut):
    whole = run(TauSearch(make_config(), {}), bowl)
    earlier = {trial_id: EarlierTrial(point, True, value) for trial_id, point, value in whole[:cut]}
    if cut < len(whole):  # one that was running when the sweep was cut off
        earlier[whole[cut][0]] = EarlierTrial(whole[cut][1], False, math.nan)
    assert run(TauSearch(make_config(), earlier), bowl) == whole[cut:]


def test_more_trials_can_be_asked_for_later():
    first = run(TauSearch(make_config("search.num_trials=6"), {}), bowl)
    earlier = {trial_id: EarlierTrial(point, True, value) for trial_id, point, value in first}
    more = run(TauSearch(make_config("search.num_trials=9"), earlier), bowl)
    assert [trial_id for trial_id, _, _ in more] == ["009", "010", "011"]


def test_failures_and_nan_are_failed_trials_of_optuna():
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
    assert len(done) == new_numbering(config).num_fits(config) == 3 * 10
    assert [trial_id for trial_id, _, _ in done[:4]] == ["000-0", "000-1", "000-2", "001-0"]
    ended = [trial for trial in search.study.trials if trial.state.is_finished()]
    assert len(ended) == 6
    for trial in ended:
        assert trial.value == pytest.approx(bowl(Point(0, trial.params["tau"])) + 0.01)
    seeds = [trial_config(config, Point(1, 2.0), index).train.seed for index in range(3)]
    assert seeds == [0, 1, 2]


def test_lr_per_tau_is_searched_where_the_learning_rate_is_coupled():
    config = make_config("prior.parametrization=centered", "train.lr_per_tau=1e-5", "search.taus=[10]")
    search = TauSearch(config, {})
    done = run(search, bowl)
    assert all(1e-6 <= point.lr_per_tau <= 1e-4 for _, point, _ in done[4:])
    assert trial_config(config, done[5][1], 0).train.lr_per_tau == done[5][1].lr_per_tau
    assert {"tau": 10.0, "lr_per_tau": 1e-5} in [trial.params for trial in search.study.trials]


@pytest.mark.parametrize("num_concurrent", [1, 2, 3])
@pytest.mark.parametrize("seeds", [1, 2])
def test_a_pack_holds_fits_of_one_seed_and_does_not_depend_on_the_order_in_which_trials_end(num_concurrent, seeds):
    config = make_config("search.pack=3", "search.num_trials=11", f"search.seeds={seeds}", "search.ranks=[2]")
    packs = []

    def can_be_packed(fit) -> bool:
        point = fit["point"]
        return point["method"] == "map" and point["tau"] > 0 and point["rank"] is None

    class Watched(TauSearch):
        def suggest(self, trial_id):
            suggested = super().suggest(trial_id)
            if isinstance(suggested, dict):
                packs.append(suggested["fits"])
            return suggested

    sweeps = [
        run_concurrently(Watched(config, {}, num_concurrent), bowl, num_concurrent, np.random.default_rng(order))
        for order in range(3)
    ]
    assert all(sweep == sweeps[0] for sweep in sweeps)
    assert len(sweeps[0]) == new_numbering(config).num_fits(config)
    for pack in packs:
        assert len({fit["seed_index"] for fit in pack}) == 1
        assert len(pack) == 1 or all(map(can_be_packed, pack))
    assert max(map(len, packs)) == 3
    searched = [pack for pack in packs if pack[0]["point"]["method"] == "map" and pack[0]["point"]["tau"] > 0]
    assert np.mean([len(pack) for pack in searched]) > 2


def test_the_values_of_a_pack_differ_and_packs_concentrate_at_the_best():
    done = run(TauSearch(make_config("search.pack=4", "search.num_trials=16"), {}), bowl)
    logs = np.log10([point.tau for _, point, _ in done[3:]])
    assert np.diff(np.sort(logs)).min() > 0.002
    assert np.median(np.abs(logs[8:] - 2.2)) < 0.5


@pytest.mark.parametrize("cut", [0, 3, 5, 8, 11])
def test_a_resumed_packed_sweep_fits_the_values_that_it_would_have_fitted(cut):
    config = make_config("search.pack=3")
    whole = run(TauSearch(config, {}), bowl)
    earlier = {trial_id: EarlierTrial(point, True, value) for trial_id, point, value in whole[:cut]}
    rest = run(TauSearch(config, earlier), bowl)
    assert sorted(rest, key=lambda entry: entry[0]) == sorted(whole[cut:], key=lambda entry: entry[0])


def test_pfedme_and_vi_take_tau_and_group_scales_of_the_best_fit():
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
    monkeypatch.setattr(worker, "run_pack", lambda *_, **__: {"000": torch.get_num_threads()})
    params = {"fits": [{"trial_id": "000", "point": vars(Point(0, 1.0)), "seed_index": 0, "start": None}]}
    try:
        for cpus, used in (("3", 3), ("0.5", 1)):
            config = make_config(f"ray.cpus_per_trial={cpus}")
            rows = worker.fit_trials(
                params, config, make_corpus(), tmp_path, check_stop=StopCheck(tmp_path), on_epoch=no_op
            )
            assert rows == {"000": used}
    finally:
        torch.set_num_threads(threads)


def test_a_trial_reserves_a_bundle_of_resources_for_each_process():
    for gpus, workers in ((0.5, 1), (1.0, 4)):
        bundles = placement_group({"CPU": 2.0, "GPU": gpus}, workers).bundles
        assert bundles == [{"CPU": 2.0, "GPU": gpus}] * workers
