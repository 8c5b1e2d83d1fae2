"""Tables of the report: each task's perplexities, and what is cut on the page and whole in the CSV."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from made_up_runs import table_after, write_run

from bora_sweep.report import analyse, write_report
from bora_sweep.report.frames import task_frame
from bora_sweep.report.stats.pool_trials import summarise
from bora_sweep.report.text.tables import task_table
from bora_sweep.runs.results import read_results, write_table

PAPER = Path(__file__).resolve().parents[3] / "shared" / "paper"


def test_many_tasks_and_taus_are_cut_on_the_page_and_whole_in_csv(tmp_path: Path):
    sizes = {f"task {d:03d}": 5 + d for d in range(50)}
    run = write_run(tmp_path, taus=(0.0, *(10.0**k for k in np.linspace(0, 5, 8)), math.inf), sizes=sizes)
    report = write_report(run).parent
    rows = table_after((report / "report.md").read_text(), "## Table A.1")
    assert len(rows) == 42
    assert rows[1][0] == "task 049"
    assert rows[-1][0] == "task 000"
    assert len(rows[0]) <= 2 + 8 + 1
    numbers = pd.read_csv(str(report / "tables" / "table_a1.csv"))
    assert numbers.shape == (50, 4 + 3 * 10 + 1)


def test_the_papers_table_a1(tmp_path: Path):
    if not PAPER.is_dir():
        pytest.skip(f"{PAPER} is not here")
    known = pd.read_csv(PAPER / "table_a1_task_perplexity.csv")
    sizes = pd.read_csv(PAPER / "task_sizes.csv").set_index("task")["train_docs"].to_dict()
    for tau, rows in known.groupby("tau"):
        write_paper_trial(tmp_path, float(tau), rows.set_index("task")["perplexity"].to_dict(), sizes)
    summary = summarise(read_results(tmp_path))
    wide = known.pivot(index="task", columns="tau", values="perplexity").loc[summary.tasks]
    analysis = analyse(summary)
    numbers = task_frame(analysis)
    for tau in wide.columns:
        assert numbers[f"tau={np.format_float_positional(tau, trim='-')}"].to_numpy() == pytest.approx(
            wide[tau].to_numpy(), abs=1e-6
        )
    assert summary.best_tau == 100
    table = task_table(analysis, range(len(summary.tasks)))
    assert {j for _, j in table.bold} == {table.columns.index("τ = 100")}  # "best … for all our tasks"
    assert "inside the fitted range" in write_report(tmp_path).read_text()


def write_paper_trial(run: Path, tau: float, perplexities: dict[str, float], sizes: dict[str, int]) -> None:
    """A trial whose test perplexities are the given ones exactly."""
    rng = np.random.default_rng(0)
    tasks, documents = [], []
    for task, size in sizes.items():
        for split, count in (("train", size), ("validation", size // 2), ("test", size // 2)):
            tokens, noise = np.full(count, 100), rng.normal(0, 0.3, count)
            nats = tokens * (math.log(perplexities[task]) + noise - noise.mean())
            scores = {} if split == "train" else {"nll_nats": nats.sum(), "distance_to_global": 0.1 * math.sqrt(size)}
            tasks.append({"task": task, "split": split, "num_documents": count, "num_tokens": 100 * count, **scores})
            if split != "train":
                documents += [
                    {"task": task, "split": split, "document_id": str(n), "num_tokens": 100, "nll_nats": nats[n]}
                    for n in range(count)
                ]
    trial_id = f"tau={tau:g}"
    write_table(run, "task_scores", trial_id, tasks)
    write_table(run, "document_scores", trial_id, documents)
    trial = {"status": "finished", "method": "map", "tau": tau, "seed": 0, "learning_rate": 1e-5 * tau or 1e-4}
    write_table(run, "trials", trial_id, [trial])
