"""Metrics beside perplexity: their statistics against hand-computed ones, what chooses tau, what is refused."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from made_up_runs import METRICS, SIZES, SMALL, TAUS, quality, table_after, write_run, write_trial
from scipy import stats

from bora_sweep.errors import InputError
from bora_sweep.report import DocumentScores, Report, measure_of, paired_bootstrap, task_contrasts, write_report
from bora_sweep.report.figures.data import distance_data, improvement_data, level_data, tau_curve_data
from bora_sweep.report.stats.interval import Interval
from bora_sweep.report.stats.pool_trials import summarise
from bora_sweep.report.stats.significance import holm
from bora_sweep.report.text.formats import difference_text, level_interval_text
from bora_sweep.runs.results import read_results, write_table

ACCURACY = measure_of("accuracy")
MANY = (None, 0.0, 10.0, 100.0, 1_000.0, 10_000.0, math.inf)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Perplexity chose tau = 1,000, and accuracy is highest at 100."""
    return write_run(tmp_path_factory.mktemp("run"), taus=MANY, metrics=METRICS, metric_best=100.0)


@pytest.fixture(scope="module")
def report(run: Path) -> Report:
    return Report(run)


def scores_of(run: Path, metric: str = "accuracy", split: str = "test") -> Any:
    """Scores of the documents: a row for each, a column for each trial."""
    rows: Any = read_results(run).predictions
    rows = rows[(rows["metric"] == metric) & (rows["split"] == split)]
    return rows.pivot(index=["task", "document_id"], columns="trial_id", values="score")


def rewrite(run: Path, trial_id: str, change: Any) -> None:
    """One trial's predictions, changed."""
    rows = read_results(run).predictions.query("trial_id == @trial_id").drop(columns="run").reset_index(drop=True)
    write_table(run, "predictions", trial_id, change(rows))


def test_levels_and_differences_are_means_over_documents(run: Path, report: Report):
    """In float64, with the stratified variance of a mean and Satterthwaite's degrees of freedom."""
    scores, analysis = scores_of(run), report.of("accuracy").analysis
    settings = analysis.summary.settings
    of_tau = {setting.tau: m for m, setting in enumerate(settings)}
    bootstrap = paired_bootstrap(analysis.scores.test, replicates=20_000)
    assert bootstrap.level(of_tau[100.0]).estimate == pytest.approx(scores["tau=100-0"].mean(), rel=1e-12)
    paired = scores["tau=1000-0"] - scores["tau=0-0"]
    parts = [part.to_numpy() for _, part in paired.groupby("task")]
    variances = [len(part) * part.var(ddof=1) for part in parts]  # of the sum
    degrees = sum(variances) ** 2 / sum(v**2 / (len(part) - 1) for v, part in zip(variances, parts, strict=True))
    half_width = stats.t.ppf(0.975, degrees) * math.sqrt(sum(variances)) / len(paired)
    found = bootstrap.difference(of_tau[1_000.0], of_tau[0.0])
    assert found.estimate == pytest.approx(paired.mean(), rel=1e-12)
    assert (found.high - found.low) / 2 == pytest.approx(half_width, rel=0.03)
    for d, task in enumerate(analysis.summary.tasks):
        assert analysis.scores.test_DM[d, of_tau[100.0]] == pytest.approx(scores.loc[task, "tau=100-0"].mean())
    by_task = scores.groupby("task")["tau=100-0"].mean()
    assert analysis.macro(of_tau[100.0]).estimate == pytest.approx(by_task.mean())


@pytest.mark.parametrize("metric", METRICS)
def test_swapping_setting_and_reference_flips_the_interval(report: Report, metric: str):
    analysis = report.of(metric).analysis
    one, other = analysis.bootstrap.difference(1, 3), analysis.bootstrap.difference(3, 1)
    assert (one.estimate, one.low, one.high) == (-other.estimate, -other.high, -other.low)
    assert one.low < one.estimate < one.high
    forth, back = analysis.task_differences(1, 3), analysis.task_differences(3, 1)
    for d in range(len(SIZES)):
        assert forth.difference(d).estimate == -back.difference(d).estimate


def test_a_gain_is_upwards_by_a_metric_and_downwards_by_perplexity(report: Report):
    for name in ("perplexity", *METRICS):
        analysis = report.of(name).analysis
        (gain, *_) = analysis.gains
        best, end = (analysis.scores.test_M[m] for m in (analysis.summary.best, analysis.summary.independent))
        assert gain.reference == "independent"
        assert gain.interval.estimate > 0
        assert gain.interval.estimate == pytest.approx(best - end if analysis.measure.is_metric else 1 - best / end)
        assert all(row.interval.estimate > 0 for row in analysis.task_gains if row.verdict == "gains")


def test_intervals_of_shares_are_cut_where_no_mean_lies():
    documents = DocumentScores(
        np.array(["a"] * 6, dtype=object), np.ones(6), -np.array([[1, 1, 1, 1, 1, 0.0]]).T, measure=ACCURACY
    )
    level = paired_bootstrap(documents).level(0)
    assert level.high == 1.0
    assert 0 < level.low < level.estimate == pytest.approx(5 / 6)
    score = measure_of("my_module:score")
    raw = DocumentScores(documents.task_N, documents.weight_N, documents.value_NJ, measure=score)
    assert paired_bootstrap(raw).level(0).high > 1.0


def test_documents_that_all_agree_give_no_interval():
    """Of the level, and of a difference; but their zeros count in what is over all tasks."""
    right = np.array([[1, 1, 1, 1, 1, 0, 1, 0], [0, 0, 0, 0, 1, 0, 0, 0.0]]).T
    documents = DocumentScores(np.array(["a"] * 4 + ["b"] * 4, dtype=object), np.ones(8), -right, measure=ACCURACY)
    found = task_contrasts(documents, [(0, None), (0, 1)])
    for c in range(2):
        interval = found.level(0, c) if c == 0 else found.difference(0, c)
        assert interval.estimate == 1.0
        assert math.isnan(interval.low)
        assert math.isnan(interval.high)
    assert not math.isnan(found.level(1, 0).low)
    whole = paired_bootstrap(documents, replicates=20_000).contrast(0)
    assert whole.standard_error == pytest.approx(math.sqrt(4 * np.var([1, 0, 1, 0], ddof=1)) / 8, rel=0.02)
    assert not math.isnan(whole.level().low)
    itself = paired_bootstrap(documents.of_task("a")).difference(0, 0)
    assert (itself.estimate, itself.low, itself.high) == (0, 0, 0)
    alike = paired_bootstrap(documents.of_task("a"))
    assert math.isnan(alike.level(0).low)
    nats = DocumentScores(documents.task_N, documents.weight_N, documents.value_NJ)
    assert not math.isnan(task_contrasts(nats, [(0, None)]).level(0, 0).low)  # real nats never agree


def test_seeds_that_differ_in_their_last_digit_agree():
    """Means over three seeds: 2/3 - 1/3 and 1/3 - 0 are not the same number."""
    value_NJ = -np.array([[1, 1, 0, 1, 0, 0], [1, 0, 0, 0, 0, 0], [1, 1, 1, 1, 1, 0.0]])
    task_N, setting_J, seed_J = np.array(["a"] * 3, dtype=object), np.repeat([0, 1], 3), np.tile([0, 1, 2.0], 2)
    documents = DocumentScores(task_N, np.ones(3), value_NJ, setting_J, seed_J, ACCURACY)
    difference = paired_bootstrap(documents).difference(0, 1)
    assert difference.estimate == pytest.approx(1 / 3)
    assert math.isnan(difference.low)


def test_a_metric_that_is_the_same_everywhere_gives_no_verdict(tmp_path: Path):
    write_run(tmp_path, metrics=("accuracy",))
    for trial_id in read_results(tmp_path).trials["trial_id"]:
        rewrite(tmp_path, trial_id, lambda rows: rows.assign(score=1.0))
    report = Report(tmp_path).of("accuracy")
    assert {gain.verdict for gain in report.analysis.task_gains} == {"no evidence"}
    assert {gain.p_value for gain in report.analysis.task_gains} == {1.0}
    assert report.overall["test_accuracy"].tolist() == [1.0] * 6
    assert report.overall["difference_to_best"].abs().max() == 0
    assert report.overall["test_accuracy_low"].isna().all()
    assert "0.0 points [–, –] above one model per task" in report.answer
    assert "is not known: no two test documents of a task differ in it" in report.answer
    page = write_report(tmp_path).read_text()
    assert "−0.0 points" not in page
    assert "nan" not in page


@pytest.mark.parametrize(
    ("objective", "tau"), [("perplexity", 1_000.0), ("accuracy", 100.0), ("my_module:score", 100.0)]
)
def test_the_objective_chooses_tau_and_leads_the_report(tmp_path: Path, objective: str, tau: float):
    run = write_run(tmp_path, taus=MANY, metrics=METRICS, metric_best=100.0, search_objective=objective)
    report = Report(run)
    assert report.best_tau == tau
    assert report.analysis.measure.name == objective
    assert report.of(objective) is report
    assert report.metrics == sorted(METRICS, key=lambda name: (name != objective, name))
    label = "my\\_module:score" if objective == "my_module:score" else objective
    assert report.answer.startswith(f"**τ = {tau:,.0f} gives test {label} ")
    page = write_report(run).read_text()
    assert f"Validation documents chose τ by {label}; the test documents are only reported." in page
    assert page.index("## Table 1") < page.index("## Choosing τ") < page.index("## Figures")
    others = [name for name in ("perplexity", *METRICS) if name != objective]
    assert page.count(f"Validation chose τ by {label}, not by ") == len(others)
    names = {path.name for path in (run / "report").rglob("*.*")}
    ends = {name: f"_{name.replace(':', '.')}" for name in others} | {objective: ""}
    for name, end in ends.items():
        table = pd.read_csv(run / "report" / "tables" / f"table_1{end}.csv")
        assert f"test_{name}" in table
        assert table.loc[table["best"], "tau"].tolist() == [tau]
        assert {f"improvements{end}.csv", f"table_2{end}.tex", f"figure_3_improvement{end}.png"} <= names
        assert f"figure_2_tau_{name.replace(':', '.')}.svg" in names
    assert all(set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789_.") for name in names)


def test_a_metric_as_objective_selects_on_validation_alone(tmp_path: Path):
    """Perfect test scores at tau = 0 choose nothing; so do better scores of a candidate that validation rejects."""
    run = write_run(tmp_path, metrics=("accuracy",), search_objective="accuracy")
    rewrite(run, "tau=0-0", lambda rows: rows.assign(score=rows["score"].mask(rows["split"] == "test", 1.0)))
    write_trial(run, 1_000.0, trial_id="slow", learning_rate=1.0, metrics=("accuracy",), search_objective="accuracy")
    rewrite(run, "slow", lambda rows: rows.assign(score=(rows["split"] == "test").astype(float)))
    summary = Report(run).summary
    assert summary.best_tau == 1_000.0
    assert summary.settings[summary.best].trials == [(str(run), "tau=1000-0")]
    assert len(summary.settings[summary.best].candidate_trials) == 2
    assert summary.settings[summary.best].objective == -scores_of(run, split="validation")["tau=1000-0"].mean()
    assert "the fit with the highest validation accuracy is shown" in write_report(run).read_text()


def test_seeds_of_a_metric_are_pooled_by_means(tmp_path: Path):
    for seed in (0, 1, 2):
        write_run(tmp_path, seed=seed, metrics=("rouge_l",))
    report, scores = Report(tmp_path).of("rouge_l"), scores_of(tmp_path, "rouge_l")
    fits = report.overall.set_index("tau")
    assert fits.loc[100.0, "test_rouge_l"] == pytest.approx(scores[[f"tau=100-{s}" for s in range(3)]].mean(axis=None))
    noise = report.analysis.bootstrap.seed_noise
    assert noise is not None
    assert noise.num_settings == len(TAUS)


def test_runs_that_chose_by_other_measures_are_refused_together(tmp_path: Path):
    one = write_run(tmp_path / "one", taus=(0.0, 100.0), metrics=("accuracy",), search_objective="accuracy")
    other = write_run(tmp_path / "other", taus=(math.inf,), metrics=("accuracy",))
    with pytest.raises(InputError, match=r"one chose tau by accuracy, .*other by perplexity"):
        Report([one, other])
    older = write_run(tmp_path / "older", taus=(math.inf,))  # no column: perplexity
    with pytest.raises(InputError, match=r"trial tau=inf-0 has finished, but .*tau=inf-0\.parquet is without accuracy"):
        Report([other, older])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda rows: rows.drop(index=rows.index[rows["split"] == "test"][0]), "has no accuracy score, but another"),
        (lambda rows: pd.concat([rows, rows[rows["split"] == "test"].head(1)]), "is scored twice"),
        (
            lambda rows: rows.assign(score=rows["score"].where(rows["split"] != "test")),
            "the accuracy score nan; it must",
        ),
        (lambda rows: rows.assign(score=rows["score"] + 1), r"the accuracy score \d\.0; it must be from 0 to 1"),
    ],
)
def test_scores_that_do_not_match_are_named(tmp_path: Path, change: Any, said: str):
    run = write_run(tmp_path, metrics=("accuracy",))
    rewrite(run, "tau=100-0", change)
    with pytest.raises(InputError, match=rf"{run}, trial tau=100-0: document '\d+' of task '\w+' \(\w+\) .*{said}"):
        Report(run)


def test_a_trial_without_the_objective_is_named(tmp_path: Path):
    run = write_run(tmp_path, metrics=("accuracy",), search_objective="rouge_l")
    with pytest.raises(InputError, match="rouge_l chose tau, but no finished trial has scores by it"):
        Report(run)
    write_table(run, "predictions", "tau=0-0", [])
    with pytest.raises(InputError, match=r"tau=0-0 has finished, but results/predictions/tau=0-0\.parquet is without"):
        Report(run)


def test_a_metric_of_one_split_alone_is_refused(tmp_path: Path):
    run = write_run(tmp_path, metrics=("accuracy",))
    for trial_id in read_results(tmp_path).trials["trial_id"]:
        rewrite(run, trial_id, lambda rows: rows[rows["split"] == "test"])
    with pytest.raises(InputError, match="no validation document is scored by accuracy"):
        Report(run)


def test_predictions_of_a_trial_that_has_not_finished_do_not_count(tmp_path: Path):
    run = write_run(tmp_path)
    write_trial(run, 5.0, metrics=("accuracy",), status="running")
    assert Report(run).metrics == []


def test_small_tasks_are_listed_and_decide_nothing(tmp_path: Path):
    """All that is of the test documents is that of the run without them."""
    small, plain = write_run(tmp_path / "small", sizes=SMALL, taus=MANY), write_run(tmp_path / "plain", taus=MANY)
    one, other = Report(small), Report(plain)
    assert one.summary.tasks == [*other.summary.tasks, "hal", "fay", "gil"]
    assert one.by_task["train_documents"].tolist() == [60, 40, 25, 18, 12, 3, 2, 1]
    assert one.by_task.iloc[5:].filter(like="tau=").isna().all(axis=None)
    columns = one.overall.filter(regex="^test_|^difference|^relative").columns
    pd.testing.assert_frame_equal(one.overall[columns], other.overall[columns])
    assert [vars(gain) for gain in one.analysis.task_gains] == [vars(gain) for gain in other.analysis.task_gains]
    assert one.analysis.trends["distance"].slope == other.analysis.trends["distance"].slope
    assert one.answer == other.answer
    for make in (improvement_data, distance_data, level_data):
        (shown, alone) = (make(report.analysis) for report in (one, other))
        assert shown is not None
        assert alone is not None
        pd.testing.assert_frame_equal(shown.points, alone.points)


def test_the_paper_is_compared_with_the_tasks_that_have_test_documents(tmp_path: Path):
    run = write_run(tmp_path, sizes=SMALL, metrics=("accuracy",), search_objective="accuracy")
    page = (write_report(run, against_paper=True).parent / "paper.md").read_text()
    assert "None of this run's 5 tasks has the name of one of the paper's" in page
    assert "test perplexity, over all tokens" in page


def test_holm_counts_the_tasks_with_test_documents_alone(tmp_path: Path):
    analysis = Report(write_run(tmp_path, sizes=SMALL, metrics=("accuracy",))).of("accuracy").analysis
    for reference in ("independent", "shared"):
        gains = [gain for gain in analysis.task_gains if gain.reference == reference]
        assert [gain.adjusted_p for gain in gains] == holm(np.array([gain.p_value for gain in gains])).tolist()
        assert len(gains) == 5


def test_what_is_pooled_includes_every_document(tmp_path: Path):
    """`hal` has a validation document and no test document."""
    run = write_run(tmp_path, sizes=SMALL, metrics=("accuracy",))
    rows: Any = read_results(run).document_scores.query("split == 'validation' and trial_id == 'tau=100-0'")
    assert "hal" in set(rows["task"])
    overall = Report(run).overall.set_index("tau")
    expected = math.exp(rows["nll_nats"].sum() / rows["num_tokens"].sum())
    assert overall.loc[100.0, "validation_perplexity"] == pytest.approx(expected)
    accuracy = Report(run).of("accuracy").overall.set_index("tau").loc[100.0, "validation_accuracy"]
    assert accuracy == pytest.approx(scores_of(run, split="validation")["tau=100-0"].mean())


def test_the_report_says_how_many_tasks_it_covers(tmp_path: Path):
    page = write_report(write_run(tmp_path, sizes=SMALL, taus=MANY, metrics=("accuracy",))).read_text()
    assert (
        "5 of 8 tasks have test documents; verdicts, macro means and figures of test scores cover only these." in page
    )
    assert "5 of 8 tasks have test documents with accuracy scores;" in page
    assert "of 5 tasks gain" in page
    rows = {row[0]: row for row in table_after(page, "## Table A.1")}
    assert rows["gil"] == ["gil", "1", *["–"] * 8]
    assert "gil" not in {row[0] for row in table_after(page, "## Table 2.")}
    assert "nan" not in page
    data = json.loads((tmp_path / "report" / "index.html").read_text().split('id="data">')[1].split("</script>")[0])
    texts, values = data["tables"]["tasks"]["texts"], data["tables"]["tasks"]["values"]
    at = texts["task"].index("gil")
    assert (texts["best"][at], texts["gain_shared"][at], texts["verdict_shared"][at]) == ("–", "–", "–")
    assert values["documents"][at] == 1
    assert values["distance"][at] is None
    assert len(values["gain_shared"]) == len(texts["task"]) == 8
    assert data["charts"]["each"]["heading"] == "Each of 5 tasks"


def test_a_task_without_scores_by_a_metric_alone_is_not_covered_by_it(tmp_path: Path):
    run = write_run(tmp_path, metrics=("accuracy",))
    for trial_id in read_results(run).trials["trial_id"]:
        rewrite(run, trial_id, lambda rows: rows[(rows["task"] != "bo") | (rows["split"] != "test")])
    report = Report(run)
    assert {gain.task for gain in report.of("accuracy").analysis.task_gains} == set(SIZES) - {"bo"}
    assert {gain.task for gain in report.analysis.task_gains} == set(SIZES)


def test_a_run_of_perplexity_alone_speaks_of_nothing_else(tmp_path: Path):
    page = write_report(write_run(tmp_path)).read_text()
    for words in ("is better)", "by perplexity", "metric", "tasks have test documents"):
        assert words not in page
    assert not list((tmp_path / "report").rglob("*accuracy*"))


def test_axes_say_what_is_measured_and_which_way_is_better(report: Report):
    titles = {
        name: (tau_curve_data(analysis).y.title, gains.y.title, gains.y.unit)
        for name in ("perplexity", *METRICS)
        if (gains := improvement_data(analysis := report.of(name).analysis)) is not None
    }
    assert titles == {
        "perplexity": ("Test perplexity (lower is better)", "Reduction of test perplexity", "percent"),
        "accuracy": ("Test accuracy (higher is better)", "Gain of test accuracy, points", "points"),
        "rouge_l": ("Test ROUGE-L (higher is better)", "Gain of test ROUGE-L, points", "points"),
        "my_module:score": ("Test my_module:score (higher is better)", "Gain of test my_module:score", "number"),
    }
    for drawn in report.of("accuracy").figures.values():
        assert "accuracy" in drawn.axes[0].get_ylabel()
    assert set(report.of("accuracy").figures) == {"figure_2_tau_accuracy", "figure_3_improvement_accuracy"}
    assert len(report.figures) == 6


def test_what_was_not_scored_is_refused(report: Report):
    with pytest.raises(InputError, match="exact_match: not scored in this run, which has perplexity, accuracy, my_mod"):
        report.of("exact_match")


def test_names_of_files_are_safe_and_differ(tmp_path: Path):
    metrics = ("../x:y", "a:B", "a:b", "ü:f")
    run = write_run(tmp_path / "run", metrics=metrics)
    write_report(run)
    found = sorted(path.name for path in (run / "report" / "tables").glob("table_1_*.csv"))
    assert len({name.casefold() for name in found}) == len(metrics)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]
    scored = [set(pd.read_csv(run / "report" / "tables" / name).columns) for name in found]
    assert all(any(f"test_{metric}" in columns for columns in scored) for metric in metrics)


@pytest.mark.parametrize(
    ("interval", "metric", "level", "difference"),
    [
        (Interval(0.7123, 0.6801, 0.7444), "accuracy", "71.2% [68.0, 74.4]", "+71.2 points [+68.0, +74.4]"),
        (Interval(1.0, math.nan, math.nan), "accuracy", "100.0% [–, –]", "+100.0 points [–, –]"),
        (Interval(-0.031, -0.052, -0.01), "m:f", "−0.03100 [−0.05200, −0.01000]", "−0.031 [−0.052, −0.010]"),
        (Interval(12.0, 11.96, 12.04), "m:f", "12.00 [11.96, 12.04]", "+12.000 [+11.960, +12.040]"),
        (
            Interval(1e-15, -1e-15, 2e-15),
            "m:f",
            "1.000e−15 [−1.000e−15, 2.000e−15]",
            "+0.000000 [−0.000000, +0.000000]",
        ),
        (Interval(0.05, -0.01, 0.1), "perplexity", "0.05 [-0.01, 0.10]", "+5.0% [−1.0, +10.0]"),
    ],
)
def test_levels_and_differences_are_written_with_their_units(interval, metric, level, difference):
    assert level_interval_text(interval, measure_of(metric)) == level
    assert difference_text(interval, measure_of(metric)) == difference


def test_the_made_up_metrics_are_what_they_are_said_to_be(report: Report):
    """So that the tests above can fail."""
    overall = report.of("rouge_l").overall.set_index("tau")["test_rouge_l"]
    assert overall.idxmax() == 100.0
    assert overall[0.0] == pytest.approx(quality(0.0), abs=0.05)


def test_of_equal_scores_the_lower_perplexity_chooses(tmp_path):
    """As in `status` and `export`, which read rows alone."""
    run = write_run(tmp_path, metrics=("accuracy",), search_objective="accuracy")
    for file in (run / "results" / "predictions").glob("*.parquet"):
        table = pq.read_table(file)
        scores = pa.array([1.0] * len(table))
        pq.write_table(table.set_column(table.schema.get_field_index("score"), "score", scores), file)
    summary = summarise(read_results(run))
    fits = [summary.settings[m] for m in summary.fits]
    assert len({fit.objective for fit in fits}) == 1
    assert summary.settings[summary.best] == min(fits, key=lambda fit: fit.validation_perplexity)
    assert summary.best_tau != fits[0].tau
