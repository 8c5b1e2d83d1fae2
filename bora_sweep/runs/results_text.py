"""What a prompt or a notebook shows of results: how many there are, the best trial, the first trials."""

import html
from typing import TYPE_CHECKING, Any

import pandas as pd

from bora_sweep.errors import plural

if TYPE_CHECKING:
    from bora_sweep.runs.results import Results

_SHOWN = [
    "trial_id", "status", "method", "tau", "learning_rate", "seed", "epochs", "best_epoch", "validation_perplexity",
    "test_perplexity",
]  # fmt: skip
_MOST_TRIALS = 10


def summary_text(results: "Results") -> str:
    """`runs/mine: 8 trials (7 finished, 1 failed), 12 tasks, 91 validation and 180 test documents`."""
    trials, documents = results.trials, results.document_scores
    states = ", ".join(f"{count:,} {status}" for status, count in trials["status"].value_counts().items())
    distinct = documents.drop_duplicates(["run", "task", "split", "document_id"])["split"].tolist()
    counts = " and ".join(f"{distinct.count(split):,} {split}" for split in ("validation", "test"))
    runs = ", ".join(dict.fromkeys(trials["run"]))
    tasks = plural(len(set(results.task_scores["task"])), "task")
    return f"{runs}: {plural(len(trials), 'trial')} ({states}), {tasks}, {counts} documents"


def best_text(results: "Results") -> str:
    """The finished MAP fit that is best on validation; empty where none has finished."""
    from bora_sweep.runs.results import objective, objective_name

    rows: list[dict[Any, Any]] = results.trials.query("status == 'finished' and method == 'map'").to_dict("records")
    known = [row for row in rows if objective(row) == objective(row)]
    if not known:
        return ""
    best = min(known, key=objective)
    scores = f"validation perplexity {best['validation_perplexity']:.4g}, test {best['test_perplexity']:.4g}"
    tau = float(f"{best['tau']:.3g}")
    return f"Best on validation by {objective_name(best)}: tau = {tau:,.10g}, trial {best['trial_id']}, {scores}"


def results_html(results: "Results") -> str:
    """Counts, the best trial, and the first trials as a table."""
    trials = results.trials
    columns = [*(["run"] if len(set(trials["run"])) > 1 else []), *_SHOWN]
    with pd.option_context("display.float_format", "{:,.4g}".format):
        table = trials[columns].head(_MOST_TRIALS).to_html(index=False, na_rep="", border=0)
    hidden = len(trials) - _MOST_TRIALS
    more = f"<p>… and {hidden:,} more in <code>trials</code></p>" if hidden > 0 else ""
    lines = filter(None, [summary_text(results), best_text(results)])
    return "".join(f"<p>{html.escape(line)}.</p>" for line in lines) + table + more
