"""All statistics of a report: choices of tau, verdicts, lines, seeds, tasks with next to no documents."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from made_up_runs import SIZES, TAUS, table_after, u_curve, write_run, write_trial

from bora_sweep.report import Analysis, analyse, write_report
from bora_sweep.report.frames import curve_frame, trend_frame
from bora_sweep.report.stats.pool_trials import summarise
from bora_sweep.runs.results import read_results, write_table


def analysis_of(run: Path) -> Analysis:
    return analyse(summarise(read_results(run)))


def jitter(run: Path, scale: float) -> None:
    """Every document's nats per token under every fit, moved by noise of its own."""
    results = read_results(run)
    for number, trial_id in enumerate(results.trials["trial_id"]):
        mine = results.document_scores.query("trial_id == @trial_id").drop(columns="run")
        noise = scale * np.random.default_rng(number).normal(size=len(mine)) * mine["num_tokens"]
        write_table(run, "document_scores", trial_id, mine.assign(nll_nats=mine["nll_nats"] + noise))


def test_one_standard_error_is_beside_the_minimum(tmp_path: Path):
    write_run(tmp_path, taus=(0.0, 10.0, 100.0, 1_000.0, 10_000.0, math.inf))
    jitter(tmp_path, 0.3)
    analysis = analysis_of(tmp_path)
    settings, choice = analysis.summary.settings, analysis.choice
    within = [m for m, c in choice.above_minimum.items() if c.estimate <= c.standard_error]
    assert choice.one_standard_error == max(within, key=lambda m: settings[m].tau)
    assert settings[choice.one_standard_error].tau > settings[choice.minimum].tau
    rows = table_after(write_report(tmp_path).read_text(), "## Choosing τ")
    assert [row[0] for row in rows[1:]] == ["lowest on validation", "one standard error"]
    numbers = pd.read_csv(tmp_path / "report" / "tables" / "choice.csv").set_index("choice")["tau"]
    assert numbers["one_standard_error"] == settings[choice.one_standard_error].tau


def test_the_test_documents_choose_nothing(tmp_path: Path):
    write_run(tmp_path)
    before = analysis_of(tmp_path).choice
    results = read_results(tmp_path)
    for trial_id in results.trials["trial_id"]:
        mine = results.document_scores.query("trial_id == @trial_id").drop(columns="run")
        noise = np.random.default_rng(len(trial_id)).uniform(0.1, 9, len(mine))
        nats = mine["nll_nats"].where(mine["split"] == "validation", noise * mine["num_tokens"])
        write_table(tmp_path, "document_scores", trial_id, mine.assign(nll_nats=nats))
    after = analysis_of(tmp_path).choice
    assert (after.minimum, after.one_standard_error, after.as_good) == (
        before.minimum,
        before.one_standard_error,
        before.as_good,
    )
    assert after.lowest_point == before.lowest_point


def test_verdicts_are_in_the_answer_the_table_and_the_csv(tmp_path: Path):
    """Every document prefers the best fit; bo has four test documents, too few for any verdict."""
    page = write_report(write_run(tmp_path, sizes=SIZES | {"bo": 8})).read_text()
    assert "Against one model per task (τ = 0), 4 of 5 tasks gain, 0 lose, and 1 shows no evidence of either." in page
    rows = table_after(page, "## Table 2.")
    assert [(row[0], row[5]) for row in rows[1:]] == [
        ("eve", "gains"),
        ("ada", "gains"),
        ("cy", "gains"),
        ("dee", "gains"),
        ("bo", "no evidence"),
    ]
    assert "1 of 5 tasks has too few documents for any verdict (five or fewer)." in page
    numbers = pd.read_csv(tmp_path / "report" / "tables" / "improvements.csv")
    assert numbers["verdict"].value_counts().to_dict() == {"gains": 8, "no evidence": 2}
    assert (numbers["holm_p_value"] >= numbers["p_value"]).all()
    assert (numbers["p_value"] >= numbers["smallest_p_value"] * (1 - 1e-9)).all()
    assert numbers.query("task == 'bo'")["p_value"].tolist() == [2.0**-3] * 2


@pytest.mark.parametrize(
    ("documents", "says"),
    [
        ([7] * 5, "No task can have a verdict: among 5 tasks, the first needs 8 test documents of its own, and no task "
         "has more than 7."),
        ([8, 7, 7, 7, 7], "4 of 5 tasks have so few documents that Holm's correction leaves no verdict possible."),
        ([8, 8, 7, 7, 7], "3 of 5 tasks have so few documents that Holm's correction leaves a verdict possible only "),
        ([8, 8, 8, 8, 8], "before the correction. "),
    ],
)  # fmt: skip
def test_it_says_which_verdicts_the_numbers_of_documents_allow(tmp_path: Path, documents: list[int], says: str):
    sizes = {task: (20, 10, n) for task, n in zip(SIZES, documents, strict=True)}
    levels = {0.0: 3.2, 100.0: 3.0, math.inf: 3.1}
    for tau, level in levels.items():
        write_trial(tmp_path, tau, sizes, nats=dict.fromkeys(sizes, level))
    page = write_report(tmp_path).read_text()
    assert says in page
    none = "certainly gain over one for all (too few test documents for a verdict on any task)."
    assert (f"0 of 5 tasks {none}" in page) == (max(documents) < 8)


def test_a_verdict_never_contradicts_its_interval(tmp_path: Path):
    write_run(tmp_path, sizes={f"t{d}": 12 + 5 * d for d in range(12)})
    jitter(tmp_path, 0.1)
    verdicts = {"gains": 1, "loses": -1}
    seen = [gain for gain in analysis_of(tmp_path).task_gains if gain.verdict in verdicts]
    assert seen
    for gain in seen:
        assert gain.interval.excludes_zero
        assert np.sign(gain.interval.estimate) == verdicts[gain.verdict]


def test_lines_are_told_in_words_and_numbers(tmp_path: Path):
    """Distances in `write_trial` are the square roots of sizes: 2^(1/2) per doubling."""
    page = write_report(write_run(tmp_path)).read_text()
    assert (
        "Each doubling of the training documents changes the distance by +41.4% [+41.4, +41.4]: it grows with" in page
    )
    assert "Each doubling of the training documents changes the gain by " in page
    numbers = trend_frame(analysis_of(tmp_path).trends).set_index("name")
    assert numbers.loc["distance", "per_doubling"] == pytest.approx(2**0.5 - 1)
    assert set(numbers.index) == {"improvement_independent", "improvement_shared", "distance", "perplexity"}


def test_the_smooth_curve_needs_four_fits_between_the_ends(tmp_path: Path):
    assert curve_frame(analysis_of(write_run(tmp_path / "few"))).empty
    taus = (0.0, 10.0, 100.0, 1_000.0, 10_000.0, math.inf)
    analysis = analysis_of(write_run(tmp_path / "many", taus=taus))
    numbers = curve_frame(analysis)
    assert set(numbers["split"]) == {"validation", "test"}
    test = numbers.query("split == 'test'")
    assert (test["low"] <= test["perplexity"]).all()
    assert (test["tau"].iloc[0], test["tau"].iloc[-1]) == pytest.approx((10, 10_000))
    lowest = test["tau"].iloc[test["perplexity"].argmin()]
    assert abs(math.log10(lowest) - 3) < 0.3  # where u_curve is lowest
    page = write_report(tmp_path / "many").read_text()
    assert "The bar on the axis holds the τ that are as good as the best on validation" in page


def test_seeds_widen_intervals_and_are_said_to(tmp_path: Path):
    for seed in (0, 1, 2):
        for tau in TAUS:
            nats = {
                task: 3.0 + 0.05 * d + u_curve(tau) + 0.02 * ((7 * seed + len(f"{tau}")) % 5)
                for d, task in enumerate(SIZES)
            }
            write_trial(tmp_path / "three", tau, seed=seed, nats=nats)
            if seed == 0:
                write_trial(tmp_path / "one", tau, seed=seed, nats=nats)
    one, three = analysis_of(tmp_path / "one"), analysis_of(tmp_path / "three")
    widths = []
    for analysis in (one, three):
        interval = analysis.bootstrap.difference(analysis.summary.best, 0)
        widths.append(interval.high - interval.low)
    assert widths[1] > widths[0] + 0.01
    assert "They do not cover another training run" in write_report(tmp_path / "one").read_text()
    page = write_report(tmp_path / "three").read_text()
    assert "5 settings were fitted with several seeds" in page
    assert "cancels (8 degrees of freedom)" in page


def test_a_task_with_one_test_document_is_reported_without_an_interval(tmp_path: Path):
    write_run(tmp_path)
    results = read_results(tmp_path)
    for trial_id in results.trials["trial_id"]:
        scores = results.document_scores.query("trial_id == @trial_id").drop(columns="run")
        kept = (scores["task"] != "bo") | (scores["split"] != "test") | (scores["document_id"] == "0")
        write_table(tmp_path, "document_scores", trial_id, scores[kept])
    page = write_report(tmp_path).read_text()
    (row,) = [row for row in table_after(page, "## Table 2.") if row[0] == "bo"]
    assert row[1] == "1"
    assert row[2].endswith(" [–, –]")
    assert row[5] == "no evidence"
    assert "1 tasks have a single test document" not in page
    assert "1 task has a single test document" in page
    assert "nan" not in page


def test_any_two_settings_are_compared_for_each_task(tmp_path: Path):
    analysis = analysis_of(write_run(tmp_path))
    summary = analysis.summary
    found = analysis.task_differences(summary.fits[1], summary.fits[2])
    for d in range(len(summary.tasks)):
        ratio = analysis.scores.test_DM[d, summary.fits[1]] / analysis.scores.test_DM[d, summary.fits[2]]
        assert found.difference(d).estimate == pytest.approx(ratio - 1)
    for m in range(len(summary.settings)):
        assert analysis.macro(m).estimate == pytest.approx(analysis.scores.test_DM[:, m].mean())


def test_tau_is_reported_with_its_interval(tmp_path: Path):
    page = write_report(write_run(tmp_path)).read_text()
    assert "none is as good as τ = 1,000, by the 95% interval" in page
    assert "lowest*: at τ = 1,000 [1,000, 1,000]" in page  # every document prefers the same
    write_run(tmp_path / "few", taus=(0.0, 10.0, 100.0, math.inf))
    assert "Where the curve is lowest" not in write_report(tmp_path / "few").read_text()
