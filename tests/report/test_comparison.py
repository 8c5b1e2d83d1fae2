"""Runs side by side: differences against those of one run, and what is refused or stands apart."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from made_up_runs import METRICS, SIZES, write_run, write_trial

from bora_sweep import Comparison, InputError
from bora_sweep.cli import main
from bora_sweep.report import Report, write_report
from bora_sweep.runs.results import SCHEMAS, read_results, write_table

SPAN = (0.0, 100.0, math.inf)
WORSE = 0.05
"""Nats per token by which every document of the run `worse` scores worse."""


def config(**keys: Any) -> str:
    return json.dumps({"train": {"learning_rate": 0.003, "seed": 0}, "output": "here", "prior": {"tau": 1.0}} | keys)


def change(run: Path, table: str, how: Any) -> None:
    """Rewrite the rows of every trial."""
    rows = getattr(read_results(run), table)
    for trial_id, mine in rows.groupby("trial_id"):
        columns = [name for name in SCHEMAS[table].names if name != "trial_id"]
        write_table(run, table, str(trial_id), how(mine)[columns])


def write_record(run: Path, **changed: str) -> None:
    """The run's documents, with the text of some changed."""
    rows = read_results(run).document_scores.drop_duplicates(["task", "document_id", "split"])
    ids, tasks = rows["document_id"].tolist(), rows["task"].tolist()
    prints = [changed.get(f"{task}_{i}", f"{task}/{i}") for task, i in zip(tasks, ids, strict=True)]
    table = pa.table({"task": tasks, "document_id": ids, "fingerprint": prints, "split": rows["split"].tolist()})
    pq.write_table(table, run / "documents.parquet")


@pytest.fixture
def runs(tmp_path: Path) -> dict[str, Path]:
    """`good`, and `worse` by `WORSE` nats in every token, at another learning rate and other values of tau."""
    good = write_run(tmp_path / "good", taus=(*SPAN, 1_000.0), config_json=config())
    worse = write_run(tmp_path / "worse", taus=(*SPAN, 500.0), config_json=config(train={"learning_rate": 0.03}))
    change(worse, "document_scores", lambda rows: rows.assign(nll_nats=rows["nll_nats"] + WORSE * rows["num_tokens"]))
    change(worse, "task_scores", lambda rows: rows.assign(nll_nats=rows["nll_nats"] + WORSE * rows["num_tokens"]))
    return {"good": good, "worse": worse}


def test_a_shift_of_every_token_is_the_difference_exactly(runs: dict[str, Path]):
    found = Comparison([*runs.values()]).differences.set_index("at")
    for end in ("tau = 0", "tau = inf"):
        row = found.loc[end]
        assert [row["difference"], row["low"], row["high"]] == pytest.approx([math.expm1(WORSE)] * 3, rel=1e-9)


def test_differences_are_those_of_the_documents_and_of_one_run(runs: dict[str, Path]):
    """At the best tau: from the rows, and as the report of one run has it whose two fits are these."""
    comparison = Comparison([*runs.values()])
    first, second = (group_run.best for group_run in comparison.groups[0].runs)
    assert (first.tau, second.tau) == (1_000.0, 500.0)
    sums = [
        read_results(run).document_scores.query(f"split == 'test' and trial_id == 'tau={tau:g}-0'")
        for run, tau in ((runs["good"], 1_000.0), (runs["worse"], 500.0))
    ]
    levels = [rows["nll_nats"].sum() / rows["num_tokens"].sum() for rows in sums]
    (row,) = comparison.differences.query("at == 'best tau'").to_dict("records")
    assert row["difference"] == pytest.approx(math.expm1(levels[1] - levels[0]), rel=1e-12)
    both = runs["good"].parent / "both"
    for n, (rows, tau) in enumerate(zip(sums, (1_000.0, 500.0), strict=True)):
        write_trial(both, tau, trial_id=f"{n}")
        keep = [name for name in SCHEMAS["document_scores"].names if name != "trial_id"]
        validation = read_results(both).document_scores.query(f"split == 'validation' and trial_id == '{n}'")
        write_table(both, "document_scores", f"{n}", pd.concat([rows[keep], validation[keep]]))
    analysis = Report(both).analysis
    place = {analysis.summary.settings[m].tau: m for m in analysis.summary.fits}
    one_run = analysis.bootstrap.difference(place[500.0], place[1_000.0])
    assert [row["difference"], row["low"], row["high"]] == pytest.approx(
        [one_run.estimate, one_run.low, one_run.high], rel=1e-9
    )


def test_what_differs_is_listed_and_nothing_else(runs: dict[str, Path]):
    settings = Comparison([*runs.values()]).settings
    assert settings.index.tolist() == ["train.learning_rate", "train.seed"]
    assert settings.loc["train.learning_rate"].tolist() == ["0.003", "0.03"]


def test_validation_chooses_the_run(runs: dict[str, Path]):
    comparison = Comparison([runs["worse"], runs["good"]])
    assert comparison.answer.startswith("**good is best on validation: at τ = 1,000 it has test perplexity ")
    assert " below worse at τ = 500" in comparison.answer
    assert comparison.runs["run"].tolist() == ["worse", "good"]
    assert comparison.runs.loc[1, "difference_to_first"] < 0
    few = {task: (size, 5, max(3, size // 2)) for task, size in SIZES.items()}
    other = write_run(runs["good"].parent / "other", taus=SPAN, sizes=few, config_json=config())
    assert "validation does not choose between them" in Comparison([runs["good"], other]).answer


def test_the_order_of_the_runs_turns_the_sign(runs: dict[str, Path]):
    one = Comparison([runs["good"], runs["worse"]]).differences
    other = Comparison([runs["worse"], runs["good"]]).differences
    np.testing.assert_allclose(1 + one["difference"], 1 / (1 + other["difference"]), rtol=1e-12)


def test_seeds_are_pooled_within_each_run(tmp_path: Path):
    for name in ("a", "b"):
        for seed in (0, 1, 2):
            keys = {"learning_rate": 0.003, "seed": seed}
            write_run(tmp_path / name, taus=SPAN, seed=seed, config_json=config(train=keys))
    comparison = Comparison([tmp_path / "a", tmp_path / "b"])
    assert comparison.settings.empty
    assert comparison.differences["difference"].tolist() == [0.0] * 3
    assert comparison.groups[0].runs[0].values["train.seed"] == "0, 1, 2"


def refused(*runs: Path) -> str:
    with pytest.raises(InputError) as caught:
        Comparison([*runs])
    return str(caught.value)


def test_runs_of_other_documents_do_not_compare(runs: dict[str, Path]):
    sizes = SIZES | {"ada": (40, 13, 25)}
    other = write_run(runs["good"].parent / "other", taus=SPAN, sizes=sizes)
    message = refused(runs["good"], other)
    assert "the 82 test documents of other and the 77 of good are not the same (77 in common)" in message
    comparison = Comparison([runs["good"], other, runs["worse"]])
    assert [run.name for run, _ in comparison.apart] == ["other"]
    assert comparison.runs["group"].tolist() == [1, 1, 0]
    assert comparison.runs["difference_to_first"].notna().tolist() == [True, True, False]
    assert "other" not in set(comparison.curves["run"])


def test_runs_of_another_tokenizer_do_not_compare_by_perplexity(runs: dict[str, Path]):
    def longer(rows: pd.DataFrame) -> pd.DataFrame:
        is_one = (rows["task"] == "bo") & (rows["document_id"] == "2") & (rows["split"] == "test")
        return rows.assign(num_tokens=rows["num_tokens"] + is_one)

    change(runs["worse"], "document_scores", longer)
    message = refused(runs["good"], runs["worse"])
    assert "test document '2' of task 'bo' has " in message
    assert "perplexity is per token" in message


def test_documents_of_one_name_and_another_text_do_not_compare(runs: dict[str, Path]):
    write_record(runs["good"])
    write_record(runs["worse"])
    assert len(Comparison([*runs.values()]).runs) == 2
    write_record(runs["worse"], cy_1="another text")
    assert "test document '1' of task 'cy' has another text in worse than in good" in refused(*runs.values())


def test_runs_of_another_objective_do_not_compare(tmp_path: Path):
    one = write_run(tmp_path / "one", taus=SPAN, metrics=METRICS)
    other = write_run(tmp_path / "other", taus=SPAN, metrics=METRICS, search_objective="accuracy")
    assert "other chose tau by accuracy, one by perplexity (search.objective)" in refused(one, other)


def test_a_metric_compares_across_tokenizers(tmp_path: Path):
    arguments: dict[str, Any] = {"taus": SPAN, "metrics": METRICS, "search_objective": "accuracy"}
    one = write_run(tmp_path / "one", **arguments)
    other = write_run(tmp_path / "other", **arguments, metric_best=10.0)
    change(other, "document_scores", lambda rows: rows.assign(num_tokens=2 * rows["num_tokens"]))
    change(other, "task_scores", lambda rows: rows.assign(num_tokens=2 * rows["num_tokens"]))
    comparison = Comparison([one, other])
    scores = [
        read_results(run).predictions.query("split == 'test' and metric == 'accuracy' and trial_id == 'tau=100-0'")
        for run in (one, other)
    ]
    (row,) = comparison.differences.query("at == 'best tau'").to_dict("records")
    assert row["difference"] == pytest.approx(scores[1]["score"].mean() - scores[0]["score"].mean(), rel=1e-12)
    assert " points " in comparison.answer
    change(other, "predictions", lambda rows: rows.assign(reference="another"))
    assert "has another reference in other than in one" in refused(one, other)


def test_runs_that_compare_apart_from_the_first_are_a_group_of_their_own(runs: dict[str, Path]):
    sizes = SIZES | {"ada": (40, 13, 25)}
    others = [write_run(runs["good"].parent / name, taus=SPAN, sizes=sizes) for name in ("x", "y")]
    comparison = Comparison([others[0], *runs.values(), others[1]])
    assert comparison.runs[["run", "group"]].to_numpy().tolist() == [["x", 1], ["y", 1], ["good", 2], ["worse", 2]]
    assert len(comparison.figures) == 2
    assert comparison.apart == []


def test_the_figure_has_the_curve_of_each_run(runs: dict[str, Path]):
    comparison = Comparison([*runs.values()])
    (figure,) = comparison.figures
    (axes,) = figure.axes
    for n, (name, run) in enumerate(runs.items()):
        analysis = Report(run).analysis
        levels = analysis.scores.test_M[analysis.summary.fits]
        assert comparison.curves.query(f"run == '{name}'")["level"].tolist() == pytest.approx(levels.tolist())
        marks = [line for line in axes.lines if line.get_marker() == "os"[n] and len(line.get_xdata()) == len(levels)]  # type: ignore
        assert marks[0].get_ydata() == pytest.approx(levels)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == list(runs)


def test_the_command_writes_beside_the_runs_and_leaves_them(
    runs: dict[str, Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.chdir(tmp_path)
    paths = [str(run) for run in runs.values()]
    before = {path: path.read_bytes() for run in runs.values() for path in run.rglob("*.parquet")}
    assert main(["report", *paths]) == 0
    shown = capsys.readouterr().out
    assert "good is best on validation" in shown
    assert "train.learning_rate" in shown
    assert "comparison: comparison/compare.md" in shown
    files = ["compare.md", "compare.png", "compare.svg", "curves.csv", "differences.csv", "runs.csv", "settings.csv"]
    assert sorted(path.name for path in (tmp_path / "comparison").iterdir()) == files
    assert {path: path.read_bytes() for path in before} == before
    assert not (runs["good"] / "report").exists()
    written = (tmp_path / "comparison" / "compare.md").read_text()
    assert "| good |" in written.replace("**", "")
    assert "## What does not compare" not in written
    assert main(["report", *paths, "--out", "elsewhere"]) == 0
    assert (tmp_path / "elsewhere" / "compare.md").read_text() == written


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--open"], "--open: is of one run"),
        (["--against", "paper"], "--against: is of one run"),
        (["nowhere"], "nowhere: not a run's folder, there is nothing"),
    ],
)
def test_wrong_input_is_told_and_nothing_is_written(
    runs: dict[str, Path], more: list[str], message: str, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
):  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert main(["report", *map(str, runs.values()), *more]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "comparison").exists()


def test_out_is_of_several_runs(runs: dict[str, Path], capsys: pytest.CaptureFixture[str]):
    assert main(["report", str(runs["good"]), "--out", "x"]) == 2
    assert "--out x: is for the comparison of several runs" in capsys.readouterr().err
    assert main(["report", str(runs["good"]), str(runs["good"])]) == 2
    assert "is given twice" in capsys.readouterr().err


def test_hostile_names_of_runs_are_text(tmp_path: Path):
    for name in ("a|b <b>", "$x_1$"):
        write_run(tmp_path / name, taus=SPAN)
    comparison = Comparison([tmp_path / "a|b <b>", tmp_path / "$x_1$"])
    written = (comparison.write(tmp_path / "out")).read_text()
    assert "a\\|b &#60;b&#62;" in written
    assert "<b>" not in written


def test_several_runs_of_a_report_are_still_read_as_one(runs: dict[str, Path]):
    """`Report` and `write_report` pool runs: values of tau, seeds and candidates of all."""
    pooled = Report([runs["good"], runs["worse"]])
    assert pooled.overall["tau"].tolist() == [0.0, 100.0, 500.0, 1_000.0, math.inf]
    assert write_report([runs["good"], runs["worse"]]).parent == runs["good"] / "report"
