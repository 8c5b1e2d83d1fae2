"""A sweep that goes on with more values, seeds, ranks or baselines: numbers stay, and laws of what is fitted."""

import json
import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from test_search import bowl, make_config, run, run_concurrently, tell

from bora_sweep.config import Config
from bora_sweep.errors import InputError
from bora_sweep.runs.folder import create_run
from bora_sweep.tune.numbering import (
    POINTS,
    Numbering,
    check_numbering,
    extended,
    is_fit_of,
    new_numbering,
    read_numbering,
    write_numbering,
)
from bora_sweep.tune.points import LEARNT, EarlierTrial, Point, trial_config
from bora_sweep.tune.search import TauSearch

GROUPED = ["data.groups_path=groups.csv", "search.taus=[30]", "search.ranks=[2,4]", "search.learning_rates=[0.01]"]
GROUPED += ["search.baselines=[zero_shot,independent,shared,per_group,learnt,fine_tuned,average,fedsa,task_prompt]"]
Done = list[tuple[str, Point, float]]
PACKED = pytest.param(["search.pack=3"], id="pack")
PLAIN = pytest.param([], id="plain")


def as_earlier(done: Done) -> dict[str, EarlierTrial]:
    """As `earlier_trials` reads it from the run."""
    return {
        trial_id: EarlierTrial(replace(point, rank=None, start_from=None), True, value)
        for trial_id, point, value in done
    }


def rows(done: Done) -> list[dict]:
    return [{"trial_id": trial_id} for trial_id, _, _ in done]


def go_on(before: list[str], more: list[str], done: Done, numbering: Numbering | None = None) -> TauSearch:
    """The search of a sweep that is resumed with more settings."""
    first, config = make_config(*before), make_config(*before, *more)
    numbering = extended(first, config, numbering or new_numbering(first), rows(done))
    return TauSearch(config, as_earlier(done), numbering=numbering)


def edge(point: Point, seed_index: int = 0) -> float:
    """Best at the lower bound: the sampler asks for it again and again."""
    return math.log(point.tau) + seed_index if 0 < point.tau < math.inf else 99.0


@pytest.mark.parametrize("packing", [PLAIN, PACKED])
@pytest.mark.parametrize("sampler", ["gp", "tpe", "random"])
@pytest.mark.parametrize("objective", [bowl, edge])
@pytest.mark.parametrize("cut", [5, 9, 11])
def test_a_sweep_of_8_values_extended_to_16_equals_one_of_16(packing, sampler, objective, cut):
    """`cut` fits had ended: 11 are all of the sweep of 8 values."""
    settings = [*packing, f"search.sampler={sampler}"]
    whole = run(TauSearch(make_config(*settings, "search.num_trials=16"), {}), objective)
    first = run(TauSearch(make_config(*settings), {}), objective)[:cut]
    assert first == whole[:cut]
    rest = run(go_on(settings, ["search.num_trials=16"], first), objective)
    assert sorted(first + rest, key=lambda fit: fit[0]) == whole


def test_an_extension_from_few_values_fills_the_widest_gaps_and_repeats_none():
    first = run(TauSearch(make_config("search.num_trials=2"), {}), bowl)
    rest = run(go_on(["search.num_trials=2"], ["search.num_trials=8"], first), bowl)
    assert np.log10([point.tau for _, point, _ in first[3:]]) == pytest.approx([1, 3])
    assert np.log10([point.tau for _, point, _ in rest[:3]]) == pytest.approx([2, 0.5, 1.5])
    taus = sorted(point.tau for _, point, _ in first[3:] + rest)
    assert len(taus) == 8
    assert min(math.log(high / low) for low, high in pairwise(taus)) > 0.005


@pytest.mark.parametrize("packing", [PLAIN, PACKED])
def test_added_values_baselines_and_ranks_follow_and_change_no_number(packing):
    before = [*packing, "search.baselines=[independent,shared]", "search.taus=[20]", "search.num_trials=6"]
    first = run(TauSearch(make_config(*before), {}), bowl)
    more = [
        "search.taus=[500,20]",
        "search.baselines=[independent,shared,zero_shot,fine_tuned,ties]",
        "search.ranks=[3]",
    ]
    rest = run(go_on(before, more, first), bowl)
    added = {trial_id: (point.method, point.tau, point.rank, point.start_from) for trial_id, point, _ in rest}
    assert added == {
        "009": ("zero_shot", math.inf, None, None),
        "010": ("fine_tuned", 0.0, None, 1),
        "011": ("ties", math.inf, None, 0),
        "012": ("map", math.inf, 3, None),
        "013": ("map", 500.0, None, None),
    }
    assert not set(added) & {trial_id for trial_id, _, _ in first}


def test_a_value_added_to_an_interrupted_sweep_comes_before_those_that_optuna_still_chooses_and_informs_them():
    whole = run(TauSearch(make_config(), {}), bowl)
    told = go_on([], ["search.taus=[160]"], whole[:8])
    rest = run(told, bowl)
    assert [trial_id for trial_id, _, _ in rest] == ["008", "009", "010", "011"]
    assert rest[0][1].tau == 160
    assert 160 in [trial.params["tau"] for trial in told.study.trials]
    assert [fit[1].tau for fit in rest[1:]] != [fit[1].tau for fit in whole[8:]]


@pytest.mark.parametrize("cut", [0, 3, 8, 9, 10, 12])
def test_an_extension_that_was_cut_off_is_resumed_by_a_replay(cut):
    """Also where what was added last was added to a sweep that had not ended."""
    first = run(TauSearch(make_config(), {}), bowl)[:8]
    search = go_on([], ["search.taus=[160]", "search.num_trials=10", "search.seeds=2"], first)
    whole = first + run(search, bowl)
    again = TauSearch(search.config, as_earlier(whole[:cut]), numbering=search.numbering)
    missing = [fit for fit in whole if fit[0] not in {trial_id for trial_id, _, _ in whole[:cut]}]
    assert sorted(run(again, bowl), key=str) == sorted(missing, key=str)


@pytest.mark.parametrize("packing", [PLAIN, PACKED])
def test_more_seeds_keep_each_trial_and_fit_every_point_with_the_further_seeds(packing):
    first = run(TauSearch(make_config(*packing), {}), bowl)
    search = go_on(packing, ["search.seeds=3"], first)
    rest = run(search, bowl)
    point_of = {trial_id: point for trial_id, point, _ in first}
    assert {trial_id for trial_id, _, _ in rest} == {f"{number:03d}-{seed}" for number in range(11) for seed in (1, 2)}
    assert all(point == point_of[trial_id[:3]] for trial_id, point, _ in rest)
    assert len(first) + len(rest) == search.numbering.num_fits(search.config) == 33


def test_more_seeds_of_a_sweep_that_began_with_several():
    first = run(TauSearch(make_config("search.seeds=2"), {}), bowl)
    rest = run(go_on(["search.seeds=2"], ["search.seeds=3"], first), bowl)
    assert [trial_id for trial_id, _, _ in rest] == [f"{number:03d}-2" for number in range(11)]


def test_a_further_seed_begins_with_the_adapters_of_the_same_seed():
    before = ["search.baselines=[independent,shared,fine_tuned]", "search.num_trials=0"]
    first = run(TauSearch(make_config(*before), {}), bowl)
    search, starts = go_on(before, ["search.seeds=2"], first), {}
    while (suggested := search.suggest(f"t{len(starts)}")) != TauSearch.FINISHED:
        (fit,) = suggested["fits"]
        tell(search, f"t{len(starts)}", suggested, bowl)
        starts[fit["trial_id"]] = fit["start"]
    assert starts == {"000-1": None, "001-1": None, "002-1": "001-1"}


def test_values_of_further_seeds_count_in_what_optuna_is_told():
    first = run(TauSearch(make_config("search.num_trials=6"), {}), bowl)
    search = go_on(["search.num_trials=6"], ["search.seeds=2", "search.num_trials=8"], first)
    run(search, bowl)
    ended = [trial for trial in search.study.trials if trial.state.is_finished()]
    assert len(ended) == 7
    assert all(trial.value == pytest.approx(bowl(Point(0, trial.params["tau"])) + 0.005) for trial in ended)


def test_a_baseline_at_the_best_tau_is_fitted_anew_where_the_extension_finds_a_better_one():
    before = ["search.baselines=[independent,shared,pfedme]"]

    def objective(point: Point, seed_index: int) -> float:
        return bowl(point, seed_index) if point.method == "map" else 1.0

    config = make_config(*before, "search.taus=[158]")
    notes: list[str] = []
    first = run(TauSearch(make_config(*before), {}), objective)
    numbering = extended(make_config(*before), config, new_numbering(make_config(*before)), rows(first))
    rest = run(TauSearch(config, as_earlier(first), numbering=numbering, note=notes.append), objective)
    assert [(trial_id, point.method, point.tau) for trial_id, point, _ in rest] == [
        ("011", "map", 158.0),
        ("002", "pfedme", 158.0),
    ]
    earlier = next(point.tau for trial_id, point, _ in first if trial_id == "002")
    assert notes == [
        f"trial 002 (pfedme) was fitted at tau = {earlier:g}, the best before; it is fitted anew at tau = 158, the "
        "best now"
    ]
    worse = make_config(*before, "search.taus=[9000]")
    numbering = extended(make_config(*before), worse, new_numbering(make_config(*before)), rows(first))
    rest = run(TauSearch(worse, as_earlier(first), numbering=numbering, note=notes.append), objective)
    assert [trial_id for trial_id, _, _ in rest] == ["011"]
    assert len(notes) == 1


@pytest.mark.parametrize("is_resumed", [False, True])
@pytest.mark.parametrize(("tried", "is_better"), [(158.0, True), (9000.0, False)])
@pytest.mark.parametrize("seeds", [1, 2])
def test_a_baseline_that_runs_when_a_better_value_is_tried_is_fitted_anew_at_it(seeds, tried, is_better, is_resumed):
    settings = ["search.baselines=[independent,shared,pfedme,vi]", f"search.seeds={seeds}", "search.num_trials=6"]
    notes: list[str] = []
    first = run(TauSearch(make_config(*settings), {}), bowl)
    kept = [fit for fit in first if is_resumed and fit[1].method != "vi"]
    search = TauSearch(make_config(*settings), as_earlier(kept), note=notes.append)
    done: Done = []
    while (suggested := search.suggest(f"t{len(done)}")) != TauSearch.FINISHED:
        assert suggested is not None
        if suggested["fits"][0]["point"]["method"] == "vi" and not notes:
            search.insert(tried)
        done += tell(search, f"t{len(done)}", suggested, bowl)
    last = {trial_id: point for trial_id, point, _ in kept + done}
    baselines = [trial_id for trial_id, point, _ in kept + done if point.method in ("pfedme", "vi")]
    best = min((bowl(p), p.tau) for p in last.values() if p.method == "map" and 0 < p.tau < math.inf)[1]
    assert (best == tried) == is_better
    assert {last[trial_id].tau for trial_id in baselines} == {best}
    assert len(baselines) - len(set(baselines)) == len(notes) == (seeds + 1) * is_better  # vi's last seeds wait for it
    assert all(note.endswith("it is fitted anew at tau = 158, the best now") for note in notes)
    again = TauSearch(search.config, as_earlier(kept + done), numbering=search.numbering)
    assert run(again, bowl) == []


@pytest.mark.parametrize("num_concurrent", [1, 3])
@pytest.mark.parametrize("packing", [PLAIN, PACKED])
@pytest.mark.parametrize("after", [0, 1, 4, 7, 10])
def test_a_value_that_is_tried_comes_next_and_a_replay_has_it_in_the_same_place(num_concurrent, packing, after):
    config, asked = make_config(*packing, "search.taus=[20,30]", "search.seeds=2"), []

    def insert(search: TauSearch) -> None:
        if len(search._points) > after and not asked:
            assert search.insert(160.0)
            assert not search.insert(160.0)
            assert not search.insert(30.0)
            asked.append(search.numbering)
            suggested.append(None)

    suggested: list = []

    class Watched(TauSearch):
        def suggest(self, trial_id):
            fits = super().suggest(trial_id)
            if isinstance(fits, dict):
                suggested.append(fits["fits"][0]["point"]["tau"])
            return fits

    search = Watched(config, {}, num_concurrent, before_suggest=insert)
    done = run_concurrently(search, bowl, num_concurrent, np.random.default_rng(0))
    assert suggested[suggested.index(None) + 1] == 160
    assert sum(point.tau == 160 for _, point, _ in done) == 2
    assert len(done) == search.numbering.num_fits(config) == 2 * 14
    for order in range(2):
        again = TauSearch(config, {}, num_concurrent, numbering=asked[0])
        assert run_concurrently(again, bowl, num_concurrent, np.random.default_rng(order)) == done
    cut = {trial_id: trial for trial_id, trial in as_earlier(done).items() if int(trial_id[:3]) % 3}
    rest = run_concurrently(
        TauSearch(config, cut, num_concurrent, numbering=asked[0]), bowl, num_concurrent, np.random.default_rng(1)
    )
    assert rest == [fit for fit in done if fit[0] not in cut]


def test_a_value_that_waits_when_a_sweep_is_resumed_follows_all_numbers_that_are_taken():
    """It is fitted before those that were lost, which are chosen without it."""
    whole = run(TauSearch(make_config(), {}), edge)
    earlier = as_earlier([fit for fit in whole if fit[0] not in ("009", "010")])
    search = TauSearch(make_config(), earlier, before_suggest=lambda search: search.insert(1.0001))
    rest = run(search, edge)
    assert [(trial_id, point.tau) for trial_id, point, _ in rest[:1]] == [("009", 1.0001)]
    assert search.numbering.num_points(search.config) == 12
    gap = as_earlier([fit for fit in whole if fit[0] not in ("007", "010")])
    inserted = TauSearch(make_config(), gap, before_suggest=lambda search: search.insert(1.0001))
    rest = {trial_id: point.tau for trial_id, point, _ in run(inserted, edge)}
    again = TauSearch(make_config(), gap, numbering=inserted.numbering)
    assert rest == {trial_id: point.tau for trial_id, point, _ in run(again, edge)}
    assert rest["010"] == 1.0001
    assert rest["007"] == whole[7][1].tau


def test_a_value_can_be_tried_until_the_last_fit_has_ended():
    search = TauSearch(make_config("search.num_trials=0"), {})
    last = None
    for number in range(3):
        last = search.suggest(str(number))
    assert search.suggest("3") is None
    assert search.insert(7.0)
    assert search.suggest("3")["fits"][0]["point"]["tau"] == 7
    assert last is not None
    assert search.suggest("4") is None


@pytest.mark.parametrize(
    ("less", "message"),
    [
        ("search.num_trials=7", "search.num_trials=7: the run has 8, and what it has stays; give 8 or more"),
        ("search.seeds=1", "search.seeds=1: the run has 2, and what it has stays; give 2 or more"),
        ("search.taus=[300]", "search.taus=[300]: the run has 0.12345678 too, which stays; give search.taus="
         "[0.12345678,20,300]"),
        ("search.baselines=[independent,shared]", "search.baselines=[independent,shared]: the run has ties too"),
        ("search.ranks=[]", "search.ranks=[]: the run has 3 too, which stays; give search.ranks=[3]"),
    ],
)  # fmt: skip
def test_less_than_the_run_has_is_refused(less, message):
    had = [
        "search.seeds=2",
        "search.taus=[0.12345678,20]",
        "search.baselines=[independent,shared,ties]",
        "search.ranks=[3]",
    ]
    if "taus" in less:
        message = message.replace("has 0.12345678 too", "has 0.12345678, 20 too")
    config = make_config(*had)
    with pytest.raises(InputError) as error:
        extended(config, make_config(*had, less), new_numbering(config), [])
    assert str(error.value).startswith(message)


def test_the_file_gives_back_what_was_written_and_an_older_run_is_numbered_by_its_configuration(tmp_path):
    config: Config = make_config("search.taus=[20]", "search.seeds=2")
    create_run(config, tmp_path)
    assert read_numbering(tmp_path, config) == new_numbering(config)
    numbering = new_numbering(config).with_points([Point(-1, math.inf, rank=4), Point(-1, 5.5)], taken=30)
    assert [number for number in numbering.given if number >= 4] == [30, 31]
    write_numbering(tmp_path, numbering)
    assert read_numbering(tmp_path, make_config()) == numbering
    assert [numbering.number_of(numbering.index_of(n)) for n in (4, 5, 29, 32)] == [4, 5, 29, 32]
    (tmp_path / POINTS).write_text(json.dumps({"given": [{"tau": 1}]}))
    with pytest.raises(InputError, match=r"points\.json: damaged"):
        read_numbering(tmp_path, config)


def rows_of(search: TauSearch, objective) -> list[dict]:
    """Rows of `trials` as the fits of a sweep write them."""
    rows = []
    while (suggested := search.suggest(f"t{len(rows)}")) != TauSearch.FINISHED:
        for trial_id, point, _ in tell(search, f"t{len(rows)}", suggested, objective):
            config = trial_config(search.config, point, 0)
            row = {"trial_id": trial_id, "method": config.method, "tau": config.prior.tau}
            rows.append(row | {"config_json": config.to_json()})
    return rows


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["search.taus=[500]"], "trial 003 was fitted with method=map at tau = "),
        (["search.baselines=[independent,shared,zero_shot,pfedme]"], "trial 000 was fitted with method=map at tau = 0"),
        (["search.baselines=[independent,shared,pfedme,ties]"], "trial 003 was fitted with method=map at tau = "),
        (["search.ranks=[3]"], "trial 003 was fitted with method=map at tau = "),
        (["search.seeds=2"], "trial 000 was fitted with method=map at tau = 0"),
    ],
)
def test_an_extended_sweep_whose_file_is_lost_is_refused_and_not_renumbered(more, says, tmp_path):
    before = ["search.baselines=[independent,shared,pfedme]", "search.num_trials=2"]
    config = make_config(*before, *more)
    first = run(TauSearch(make_config(*before), {}), bowl)
    rows = rows_of(go_on(before, more, first), bowl) + rows_of(TauSearch(make_config(*before), {}), bowl)
    numbering = extended(make_config(*before), config, new_numbering(make_config(*before)), rows[-5:])
    write_numbering(tmp_path, numbering)
    check_numbering(tmp_path, config, read_numbering(tmp_path, config), rows)
    (tmp_path / POINTS).unlink()
    with pytest.raises(InputError, match=r"points\.json: does not number the run's trials") as error:
        check_numbering(tmp_path, config, read_numbering(tmp_path, config), sorted(rows, key=lambda r: r["trial_id"]))
    assert says in str(error.value)


def test_the_trials_of_a_sweep_and_of_a_path_are_of_its_numbering(tmp_path):
    everything = "search.baselines=[independent,shared,zero_shot,fine_tuned,ties,vi,pfedme]"
    for settings in ([everything, "search.seeds=2", "search.ranks=[3]", "search.taus=[20]"], ["search.mode=path"]):
        search = TauSearch(make_config(*settings), {})
        rows = rows_of(search, bowl)
        within = [{**row, "trial_id": f"{row['trial_id']}.01", "tau": 5.0} for row in rows]
        check_numbering(tmp_path, search.config, search.numbering, rows + within)


def test_a_fit_that_learns_tau_is_one_point_whatever_it_found():
    config = make_config("search.num_trials=0", "search.baselines=[independent,shared,learnt]")
    numbering = new_numbering(config)
    (point,) = [point for point in numbering.given.values() if point.method == LEARNT]
    fitted = trial_config(config, point, 0)
    assert (fitted.prior.tau, fitted.method) == ("learn", "map")
    row = {"method": "map", "tau": 77.0, "tau_learnt": True, "config_json": fitted.to_json()}
    assert is_fit_of(row, config, point)
    assert not is_fit_of({**row, "tau_learnt": None}, config, point)
    search, done = TauSearch(config, {}, numbering=numbering), []
    while (fit := search.suggest(f"t{len(done)}")) != search.FINISHED:
        assert isinstance(fit, dict)
        done += [(f["trial_id"], f["point"]["method"]) for f in fit["fits"]]
        search.on_trial_complete(f"t{len(done) - 1}", {f"objectives/{f['trial_id']}": 1.0 for f in fit["fits"]})
    assert [method for _, method in done] == ["map", "map", LEARNT]


def test_each_fit_of_a_sweep_with_groups_can_have_its_settings():
    """Among them one for each group on its own beside one that learns tau."""
    config = make_config(*GROUPED)
    configs = {point.method: trial_config(config, point, 0) for point in new_numbering(config).given.values()}
    assert configs[LEARNT].learns_tau
    assert configs[LEARNT].has_group_level
    per_group = [point for point in new_numbering(config).given.values() if point.tau_2 == 0]
    assert [trial_config(config, point, 0).is_by_group for point in per_group] == [True]
    with pytest.raises(InputError, match=r"prior\.tau_2=0\.0 needs a tau that is a number"):
        make_config(*GROUPED, "prior.tau_2=0")
