"""What is recommended: five shapes of result, odd runs, and laws of the choice on made-up results."""

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_up_runs import SIZES, paragraph, write_run, write_trial

from bora_sweep.commands.common import show_report
from bora_sweep.report import write_report
from bora_sweep.report.manager import write_manager
from bora_sweep.report.stats.analysis import Analysis, analyse
from bora_sweep.report.stats.pool_trials import summarise
from bora_sweep.report.stats.recommendation import MATTERS, Recommendation, options, recommend
from bora_sweep.report.text.recommendation import recommendation
from bora_sweep.runs.results import read_results, write_table
from bora_sweep.runs.storage import read_bytes

NOISE = 0.05
MANY = dict.fromkeys(SIZES, (30, 40, 60))
FEW = dict.fromkeys(SIZES, (6, 1, 1))


def made(run: Path) -> tuple[Analysis, Recommendation, str]:
    analysis = analyse(summarise(read_results(run)))
    found = recommend(analysis)
    return analysis, found, recommendation(analysis, found)


def write_levels(run: Path, levels: dict[float | None, float], sizes: Any = MANY, noise: float = NOISE, **columns: Any):
    """A run whose trials have these nats per token, the same for every task; None is the base."""
    for tau, level in levels.items():
        write_trial(run, tau, sizes, nats=dict.fromkeys(sizes, level), own_noise=noise, **columns)
    return run


def curve(run: Path, trial_id: str, validation: list[float], train: list[float] | None = None) -> None:
    """Nats per token by epoch, from epoch 0 on; of training from epoch 1 on."""
    rows = [
        {"epoch": e, "split": "validation", "nll_nats": 100 * v, "num_tokens": 100} for e, v in enumerate(validation)
    ]
    rows += [
        {"epoch": e, "split": "train", "nll_nats": 100 * v, "num_tokens": 100} for e, v in enumerate(train or [], 1)
    ]
    write_table(run, "curves", trial_id, rows)


def test_each_tasks_own_where_a_tau_between_wins(tmp_path: Path):
    run = write_levels(tmp_path, {None: 3.6, 0.0: 3.2, 100.0: 3.0, math.inf: 3.1})
    analysis, found, text = made(run)
    assert found.served.kind == "bora"
    assert found.undecided is None
    assert text.startswith("**Serve each task's own adapter (τ = 100): ")
    shared = next(a for a in found.alternatives if a.option.kind == "shared")
    expected = analysis.bootstrap.contrast(analysis.summary.best, shared.option.setting).gain()
    assert (
        f"{100 * expected.estimate:.1f}% [{100 * expected.low:.1f}, {100 * expected.high:.1f}] better than one" in text
    )
    gains = sum(gain.verdict == "gains" for gain in analysis.task_gains if gain.reference == "shared")
    assert f"{gains} of 5 tasks certainly gain over one for all." in text
    assert gains > 0
    assert text.endswith("`bora-sweep export RUN OUT --trial tau=100-0` writes it.")


@pytest.mark.parametrize(("shared", "is_small"), [(3.005, True), (3.05, False)])
def test_a_small_gain_of_own_adapters_is_called_small(tmp_path: Path, shared: float, is_small: bool):
    run = write_levels(tmp_path, {None: 3.6, 0.0: 3.1, 100.0: 3.0, math.inf: shared}, noise=0.002)
    _, found, text = made(run)
    assert found.served.kind == "bora"
    small = "That is a small gain over one adapter for all tasks (trial tau=inf-0), which is simpler to serve."
    assert (small in text) == (found.nearly_as_good is not None) == is_small
    page = write_manager(run)
    assert ("is small: take that if it is easier for you to run." in str(read_bytes(page))) == is_small


@pytest.mark.parametrize("best", [2.999, 3.001])
def test_one_for_all_where_it_ties_whichever_is_lower(tmp_path: Path, best: float):
    run = write_levels(tmp_path, {None: 3.6, 0.0: 3.15, 5620.0: best, math.inf: 3.0})
    _, found, text = made(run)
    assert found.served.kind == "shared"
    assert text.startswith("**Serve ONE adapter for all tasks: one per task fitted alone (τ = 0) is 1")
    assert "one per task (τ = 5,620) ties with it (" in text
    assert "the base model alone is 8" in text
    assert "--trial tau=inf-0`" in text


def test_one_for_all_where_it_wins_says_how_much_worse_the_others_are(tmp_path: Path):
    run = write_levels(tmp_path, {None: 3.6, 0.0: 3.2, 100.0: 3.1, math.inf: 3.0}, noise=0)
    _, found, text = made(run)
    assert found.served.kind == "shared"
    assert "one per task (τ = 100) is 10.5% [10.5, 10.5] worse" in text  # exp(0.1) - 1
    assert "fitted alone (τ = 0) is 22.1% [22.1, 22.1] worse" in text


def test_fitted_alone_where_tau_0_wins(tmp_path: Path):
    run = write_levels(tmp_path, {None: 3.6, 0.0: 3.0, 100.0: 3.1, math.inf: 3.2})
    _, found, text = made(run)
    assert found.served.kind == "independent"
    assert text.startswith("**Serve one model per task, each fitted alone (τ = 0): ")
    assert re.search(r"1[78]\.\d% \[[\d., ]+\] better than one adapter for all tasks; ", text)


def test_the_base_where_nothing_beats_it(tmp_path: Path):
    run = write_levels(tmp_path, {None: 3.0, 0.0: 3.1, 100.0: 3.0, math.inf: 3.005})
    _, found, text = made(run)
    assert found.served.kind == "base"
    assert text.startswith("**Serve the base model as it is: no adapter is better (")
    assert "export" not in text
    assert "one adapter for all tasks ties with it" in text or "one adapter for all tasks is 0." in text


def test_the_base_where_training_learnt_nothing(tmp_path: Path):
    run = write_levels(tmp_path, {None: 3.0, 0.0: 3.0, math.inf: 3.0}, noise=0, best_epoch=0)
    text = made(run)[2]
    assert text.count("learnt nothing, its best epoch is the one before training") == 2


def test_more_data_where_few_documents_do_not_decide(tmp_path: Path):
    run = write_levels(tmp_path, {None: 3.6, 0.0: 3.1, 100.0: 2.98, math.inf: 3.0}, sizes=FEW, noise=0.3)
    _, found, text = made(run)
    assert found.undecided is not None
    assert found.undecided.possible_gain > MATTERS
    assert text.startswith("**More data would tell: one per task")
    assert " may be anything from " in text
    assert "and 5 test documents do not decide.** Until then serve ONE adapter for all tasks" in text
    many = write_levels(tmp_path / "many", {None: 3.6, 0.0: 3.1, 100.0: 2.98, math.inf: 3.0}, noise=0.02)
    assert made(many)[1].undecided is None  # more data did tell


def test_a_single_document_says_nothing_is_known(tmp_path: Path):
    sizes = {"ada": (6, 2, 1), "bo": (6, 2, 0)}
    text = made(write_levels(tmp_path, {0.0: 3.1, 100.0: 3.0, math.inf: 3.05}, sizes=sizes))[2]
    assert text.startswith("**More data would tell: 1 test document cannot compare one per task (τ = 100) with one ada")
    assert "nan" not in text.lower()


@pytest.mark.parametrize("seed", range(12))
def test_nothing_is_certainly_better_and_all_simpler_ones_are_beaten(tmp_path: Path, seed: int):
    """The law of the choice, over random levels and random amounts of noise."""
    rng = np.random.default_rng(seed)
    levels = dict(zip((None, 0.0, 30.0, 300.0, math.inf), 3 + 0.1 * rng.random(5), strict=True))
    analysis, found, _ = made(write_levels(tmp_path, levels, sizes=SIZES, noise=float(rng.choice([0.02, 0.1, 0.3]))))

    def beats(one: int, other: int) -> bool:
        return analysis.bootstrap.contrast(one, other).difference().high < 0

    ways = options(analysis.summary)
    assert not any(beats(way.setting, found.served.setting) for way in ways)
    for simpler in ways[: ways.index(found.served)]:
        assert any(beats(way.setting, simpler.setting) for way in ways)
    simpler_ties = [a for a in found.alternatives if a.relation == "ties" and a.beaten_by is not None]
    assert {a.option for a in simpler_ties} <= set(ways[: ways.index(found.served)])
    assert all(beats(a.beaten_by.setting, a.option.setting) for a in simpler_ties if a.beaten_by is not None)
    assert [way.num_adapters for way in ways] == sorted(way.num_adapters for way in ways)
    assert {a.option for a in found.alternatives} | {found.served} == set(ways)


def test_a_simpler_way_that_ties_and_is_not_served_says_what_beats_it(tmp_path: Path):
    for tau, level, noise in ((None, 3.2, 0.01), (100.0, 3.05, 0.01), (math.inf, 3.1, 1.5)):
        write_trial(tmp_path, tau, MANY, nats=dict.fromkeys(MANY, level), own_noise=noise)
    _, found, text = made(tmp_path)
    assert found.served.kind == "shared"
    assert re.search(
        r"the base model alone ties with it \([^)]*\), but one per task \(τ = 100\) is certainly better", text
    )


def test_a_better_baseline_is_recommended_with_its_name(tmp_path: Path):
    run = write_levels(tmp_path, {None: 3.6, 0.0: 3.2, 100.0: 3.1, math.inf: 3.15})
    write_trial(run, 1.0, MANY, nats=dict.fromkeys(MANY, 3.0), own_noise=NOISE, trial_id="merged", method="ties")
    row = read_results(run).trials.query("trial_id == 'merged'").drop(columns="run").assign(tau=None)
    write_table(run, "trials", "merged", row)
    _, found, text = made(run)
    assert found.served.kind == "other"
    assert found.served.num_adapters == 1
    assert text.startswith("**Serve ONE adapter for all tasks (merged: TIES): ")
    assert "--trial merged`" in text


def test_a_metric_that_chose_tau_decides_and_higher_is_better(tmp_path: Path):
    run = write_run(tmp_path, sizes=MANY, metrics=("accuracy",), search_objective="accuracy")
    for trial in read_results(run).trials["trial_id"]:
        row = read_results(run).trials.query("trial_id == @trial").drop(columns="run")
        write_table(run, "trials", trial, row.assign(search_objective="accuracy"))
    analysis, found, text = made(run)
    assert analysis.measure.name == "accuracy"
    assert found.served.kind == "bora"
    shared = next(a for a in found.alternatives if a.option.kind == "shared")
    assert shared.relation == "worse"
    assert shared.worse.estimate == pytest.approx(shared.gain.estimate)
    assert re.search(r"\d points \[[\d., ]+\] better than one adapter for all tasks", text)
    assert "(Better and worse: by test accuracy. Brackets: 95% intervals" in text


def test_an_unfinished_run_says_so_far(tmp_path: Path):
    run = write_levels(tmp_path, {None: 3.6, 0.0: 3.2, 100.0: 3.0})
    write_table(run, "trials", "later", [{"status": "running", "method": "map", "tau": 10.0, "seed": 0}])
    text = made(run)[2]
    assert text.startswith("**So far (3 of 4 trials finished): serve each task's own adapter (τ = 100): ")
    assert "Not known is how one adapter for all tasks would do" in text


def test_a_single_fit_claims_no_comparison_that_was_not_made(tmp_path: Path):
    run = write_levels(tmp_path, {100.0: 3.0})
    curve(run, "tau=100-0", [3.5, 3.2, 3.0], [3.4, 3.1])
    text = made(run)[2]
    assert text.startswith("**Serve each task's own adapter (τ = 100), the only kind that was fitted.**")
    assert "Not known is how one adapter for all tasks and one per task fitted alone would do" in text
    assert f"on validation, training lowered perplexity from {math.exp(3.5):.2f} to {math.exp(3.0):.2f}." in text


def test_without_a_score_of_the_base_validation_tells_that_training_did_not_help(tmp_path: Path):
    run = write_levels(tmp_path, {0.0: 3.0, 100.0: 3.0, math.inf: 3.0})
    for trial in ("tau=0-0", "tau=100-0", "tau=inf-0"):
        curve(run, trial, [3.0, 3.1, 3.2], [3.0, 2.9])
    _, found, text = made(run)
    assert found.only_base
    assert text.startswith("**Serve the base model as it is: no adapter is better.** Training did not lower")
    assert "This rests on validation alone" in text


def test_adapters_of_another_fit_are_no_base(tmp_path: Path):
    run = write_levels(tmp_path, {100.0: 3.0}, config_json='{"init_from": "/adapters"}')
    curve(run, "tau=100-0", [3.0, 3.1], [3.0])
    _, found, text = made(run)
    assert math.isnan(found.before)
    assert "The base model alone was not scored; a sweep" in text


def test_the_report_recommends_then_tells_the_cost_then_tau(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run = write_levels(
        tmp_path, {None: 3.6, 0.0: 3.2, 100.0: 3.0, math.inf: 3.1}, adapter_bytes=2_500_000, base_bytes=10**9
    )
    path = write_report(run)
    assert isinstance(path, Path)
    page = path.read_text()
    places = [
        page.index(part) for part in ("**Serve ", "| To serve |", "*What it costs", "**τ = 100 gives ", "## Table 1.")
    ]
    assert places == sorted(places)
    assert "| One adapter for all tasks | 1 | 2.5 MB |" in page
    assert "| **One per task (τ = 100)** | **5** | **12.5 MB** |" in page
    assert "1,000 MB" in paragraph(page, "*What it costs")
    show_report(path)
    printed = capsys.readouterr().out
    assert printed.startswith("**Serve each task's own adapter (τ = 100)")
    assert printed.splitlines()[1].startswith("**τ = 100 gives test perplexity ")


def test_older_results_without_sizes_still_report(tmp_path: Path):
    page = write_report(write_levels(tmp_path, {0.0: 3.2, 100.0: 3.0, math.inf: 3.1})).read_text()  # type: ignore[union-attr]
    assert "| One adapter for all tasks | 1 | – |" in page
    assert "nan" not in page
