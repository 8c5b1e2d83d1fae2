"""The report of an `add`: for each new task its documents, and what its own adapter gives beside Theta.

Where tasks are in groups, it stands beside Theta_g of its group too, and gains on that. There is no search of tau here,
so that it is a text of its own, without figures and without a page.

Shapes: N test documents, D tasks.
"""

import math
from typing import Any

import numpy as np
import pandas as pd

from bora_sweep.errors import InputError, plural
from bora_sweep.report.stats.bootstrap import paired_bootstrap, task_contrasts
from bora_sweep.report.stats.document_scores import DocumentScores, align_documents
from bora_sweep.report.stats.interval import Interval
from bora_sweep.report.text.formats import (
    Table,
    change_text,
    markdown_table,
    markdown_text,
    number_text,
    percent_text,
    perplexity_text,
    shorten,
    significant_text,
    tau_text,
)
from bora_sweep.runs.folder import ADD, GLOBAL, GROUP, config_of
from bora_sweep.runs.results import Results, read_results
from bora_sweep.runs.source import Source, read_source
from bora_sweep.runs.storage import Folder, folder_at, write_bytes

CURVE = {1: (-3.4, -0.2), 2: (-6.7, -0.2), 4: (-8.6, -0.3), 8: (-11.1, -0.6), 16: (-14.7, -1.0), 32: (-16.9, -1.6)}
"""Change of test perplexity from Theta to an own adapter, in %, by training documents: on the embedded corpus, and on
speakers of Shakespeare (`benchmarks/results/new_tasks.md`)."""
MOST_ROWS = 40
"""Tasks of the table; of more, those that gain most and least."""
MOST_NAMES = 3
"""Tasks that a row of the curve names."""


def is_added(results: Results) -> bool:
    """Whether the run is one of `add`."""
    return bool((results.trials["method"] == "add").any())


def write_added_report(run: Folder) -> Folder:
    """Write `RUN/report/report.md` and `RUN/report/tables/tasks.csv`.

    Args:
        run: The folder of a run of `add`.

    Returns:
        The path of `report.md`.

    Raises:
        InputError: The fit has not finished, or the folder lacks a file.
    """
    results, source = read_results(run), read_source(run)
    ended = results.trials[results.trials["status"] == "finished"].set_index("trial_id")
    if not {GLOBAL, ADD} <= set(ended.index):
        raise InputError(f"{run}: nothing to report, the fit has not finished; `bora-sweep status {run}` says more")
    tasks = task_frame(results)
    write_bytes(run / "report" / "tables" / "tasks.csv", tasks.to_csv(index=False).encode())
    parts = [
        f"# Tasks added to {markdown_text(folder_at(source.run).name)}",
        _answer(results, tasks),
        _about(run, source, ended.loc[ADD], tasks),
        "## Tasks",
        _tasks(tasks),
        "## What to expect",
        _evidence(source),
        _curve(tasks),
    ]
    page = run / "report" / "report.md"
    write_bytes(page, "\n\n".join(part for part in parts if part).encode() + b"\n")
    return page


def task_frame(results: Results) -> pd.DataFrame:
    """A row for each task, most training documents first.

    Columns: task, and its group where there are any; documents and tokens of the splits; test perplexity under Theta,
    under Theta_g and under the task's own adapter; difference, the change to the last from the one before it as a
    fraction, with the bounds of its 95% interval, paired by documents; distance_to_global. NaN without test documents.
    """
    scores = results.task_scores
    own = scores[scores["trial_id"] == ADD]
    under = {GLOBAL: "global_test_perplexity", GROUP: "group_test_perplexity", ADD: "test_perplexity"}
    if _before(results) == GLOBAL:
        del under[GROUP]
    documents, tokens = (
        own.pivot_table(index="task", columns="split", values=f"num_{what}", aggfunc="sum", sort=False).reindex(
            columns=["train", "validation", "test"]
        )
        for what in ("documents", "tokens")
    )
    frame = documents.fillna(0).astype(int).add_suffix("_documents").assign(train_tokens=tokens["train"].astype(int))
    if GROUP in under:
        frame.insert(0, "group", own.groupby("task")["group"].first())
    for trial_id, name in under.items():
        frame[name] = _of_tasks(scores, trial_id, "test", "perplexity")
    intervals, none = _intervals(results), Interval(math.nan, math.nan, math.nan)
    for column, end in (("difference", "estimate"), ("low", "low"), ("high", "high")):
        frame[column] = [getattr(intervals.get(task, none), end) for task in frame.index]
    frame["distance_to_global"] = own.groupby("task")["distance_to_global"].first()
    return frame.sort_values("train_documents", ascending=False, kind="stable").reset_index()


def _before(results: Results) -> str:
    """The trial of what serves a new task before it is fitted: Theta_g of its group, else Theta."""
    return GROUP if GROUP in set(results.trials["trial_id"]) else GLOBAL


def _intervals(results: Results) -> dict[str, Interval]:
    """The difference between its own adapter and what serves it before, of each task with test documents."""
    aligned = _aligned(results)
    if aligned is None:
        return {}
    contrasts = task_contrasts(aligned, [(1, 0)])
    return {task: contrasts.difference(d, 0) for d, task in enumerate(aligned.tasks)}


def _aligned(results: Results) -> DocumentScores | None:
    """The test documents under what serves before (setting 0) and under own adapters (1); None without any."""
    scores = results.document_scores
    scores = scores.loc[(scores["split"] == "test") & scores["trial_id"].isin([_before(results), ADD])]
    if scores.empty:
        return None
    return align_documents(scores.assign(setting=(scores["trial_id"] == ADD).astype(int)), [0, 1])


def _answer(results: Results, tasks: pd.DataFrame) -> str:
    aligned, added = _aligned(results), plural(len(tasks), "task")
    documents, tests = (plural(_total(tasks[f"{split}_documents"]), "document") for split in ("train", "test"))
    if aligned is None:
        return (
            f"**{added} added, trained on {documents}. None was held out, so that nothing here says what the adapters "
            "gain.**"
        )
    overall = paired_bootstrap(aligned)
    before, after = (perplexity_text(overall.level(m).estimate) for m in (0, 1))
    under = "Θ as it is" if _before(results) == GLOBAL else "the Θ_g of their groups as they are"
    tested = _total(tasks["test_documents"] > 0)
    beside = f" {plural(len(tasks) - tested, 'task')} had no document to test on." if tested < len(tasks) else ""
    return (
        f"**{added} added, trained on {documents}: test perplexity {after} with an adapter of their own, {before} "
        f"under {under}: {percent_text(overall.difference(1, 0))}.** Brackets hold the 95% interval of a bootstrap, "
        f"paired by documents, over the {tests} to test on of {plural(tested, 'task')}.{beside}"
    )


def _about(run: Folder, source: Source, row: Any, tasks: pd.DataFrame) -> str:
    config = config_of(run)
    has_groups = config.has_group_level
    held = "Θ, Θ_g, τ and τ₂ are held" if has_groups else "Θ and τ are held"
    if source.tau == 0:
        held = "there is no prior, and each task is an independent fit"
    if math.isinf(source.tau):
        held = f"nothing is trained, and {'Θ_g' if has_groups else 'Θ'} serves the new tasks"
    alone = _total(tasks["validation_documents"] == 0)
    taus = f"τ = {tau_text(source.tau)}{f', τ₂ = {tau_text(config.tau_2)}' if has_groups else ''}"
    lines = [
        f"Stands on trial {markdown_text(source.trial_id)} of `{source.run}`: {source.method}, {taus}; {held}. Nothing "
        "of that run has changed.",
    ]
    unknown = tasks.loc[tasks["task"].isin([*config.prior.group_scales])]
    if has_groups and not unknown.empty:
        lines.append(
            f"{plural(len(unknown), 'task')} of {plural(unknown['group'].nunique(), 'group')} which the run has not: "
            "tied to Θ, with the precision 1 / (1/τ + 1/τ₂)."
        )
    if not math.isinf(source.tau):
        if alone:
            lines.append(
                f"{plural(alone, 'task')} without validation documents trained until the objective had converged, for "
                f"at most {config.train.steps_without_validation} steps (`train.steps_without_validation`)."
            )
        if alone < len(tasks):
            lines.append(
                f"{plural(len(tasks) - alone, 'task')} ended by validation documents of their own, after at most "
                f"{int(row['best_epoch'])} epochs of the fit."
            )
    if source.refreshed:
        names = ", ".join(markdown_text(task) for task in source.refreshed[:5])
        lines.append(f"{plural(len(source.refreshed), 'task')} fitted anew from the adapter in that run: {names}.")
    return "\n".join(f"- {line}" for line in lines)


def _tasks(tasks: pd.DataFrame) -> str:
    """The table; with many tasks, those that gain most and least."""
    order = tasks.sort_values("difference", kind="stable") if len(tasks) > MOST_ROWS else tasks
    has_groups = "group" in tasks
    columns = ["task", "documents", "tokens", "test documents", "under Θ", "own adapter", "difference", "‖θ − Θ‖"]
    if has_groups:
        columns[5:5], columns[1:1] = ["under Θ_g"], ["group"]
    rows = [
        [
            row["task"],
            *([row["group"]] if has_groups else []),
            number_text(row["train_documents"]),
            number_text(row["train_tokens"]),
            number_text(row["test_documents"]),
            perplexity_text(row["global_test_perplexity"]),
            *([perplexity_text(row["group_test_perplexity"])] if has_groups else []),
            perplexity_text(row["test_perplexity"]),
            _difference_text(Interval(row["difference"], row["low"], row["high"])),
            significant_text(row["distance_to_global"]),
        ]
        for row in order.to_dict("records")
    ]
    table = markdown_table(shorten(Table(columns, rows), MOST_ROWS))
    under, last = ("Θ, under Θ_g of the task's group", ", with the difference to Θ_g") if has_groups else ("Θ", "")
    caption = "Documents and tokens that were trained on; test perplexity under "
    caption += f"{under} and under the task's own adapter{last}."
    if len(tasks) > MOST_ROWS:
        caption += " The tasks that gain most and those that gain least; all are in `tables/tasks.csv`."
    return f"{table}\n\n{caption}"


def _difference_text(interval: Interval) -> str:
    """With its interval; a dash without test documents, and no interval with one."""
    if math.isnan(interval.estimate):
        return "–"
    return change_text(interval.estimate) if math.isnan(interval.low) else percent_text(interval)


def _evidence(source: Source) -> str:
    """What an own adapter gave the tasks of the run itself, by their sizes: its trial against one model for all."""
    frame, trial = evidence_frame(source), markdown_text(source.trial_id)
    if frame is None:
        return (
            f"The run has no trial at τ = ∞ beside trial {trial} with test scores, or is gone, so that nothing here "
            "says what an own adapter gave its own tasks."
        )
    columns = ["training documents", "tasks", "median difference", "lowest", "highest", "tasks that gain"]
    rows = [
        [
            f"{row['fewest']}–{row['most']}" if row["fewest"] < row["most"] else str(row["most"]),
            number_text(row["tasks"]),
            *(change_text(row[name]) for name in ("median", "lowest", "highest")),
            number_text(row["gain"]),
        ]
        for row in frame.to_dict("records")
    ]
    return (
        f"{markdown_table(Table(columns, rows))}\n\nWhat an adapter of its own changed in the test perplexity of each "
        f"task of `{source.run}`, from one model for all (τ = ∞) to trial {trial}. These tasks were part of that run, "
        "so that its Θ knows them; a new task may gain more, and has its own documents alone."
    )


def _curve(tasks: pd.DataFrame) -> str:
    """Where each new task stands on the curve of the benchmark, by its documents."""
    sizes, count_T = list(CURVE), tasks["train_documents"].to_numpy()
    row_T = np.searchsorted(sizes, count_T, side="right") - 1
    rows = []
    for row, (fewest, changes) in enumerate(CURVE.items()):
        here = tasks.loc[row_T == row, "task"].tolist()
        named = ", ".join(here) if len(here) <= MOST_NAMES else ""
        documents = f"{fewest}–{2 * fewest - 1}" if fewest > 1 else "1"
        documents = f"{fewest} or more" if fewest == sizes[-1] else documents
        rows.append(
            [
                documents,
                number_text(len(here)) + (f": {named}" if named else ""),
                *(change_text(change / 100) for change in changes),
            ]
        )
    columns = ["training documents", "new tasks here", "embedded corpus", "speakers"]
    return (
        f"{markdown_table(Table(columns, rows))}\n\nWhere the new tasks stand on a curve that was measured elsewhere: "
        "what an own adapter changed in test perplexity, from Θ, for tasks that came after a run. The last two columns "
        "have tasks of 1, 2, 4, … documents: of the embedded corpus (τ = 316), which differ much, and four speakers of "
        "Shakespeare (τ = 3,160), which differ little (`benchmarks/results/new_tasks.md`)."
    )


def evidence_frame(source: Source) -> pd.DataFrame | None:
    """A row for each range of sizes of the run's own tasks, doubling; None where its tables do not have it.

    Columns: fewest and most training documents, tasks, the median, lowest and highest change of test perplexity from
    the trial at tau = inf to the trial that is stood on, and gain, the number of tasks with a lower one.
    """
    try:
        results = read_results(folder_at(source.run))
    except InputError:
        return None
    is_shared = (results.trials["method"] == "map") & (results.trials["tau"] == math.inf)
    is_shared &= ~(results.trials["tau_2"] < math.inf)
    shared = results.trials.loc[is_shared & (results.trials["status"] == "finished"), "trial_id"].tolist()
    if source.method == ADD or not shared or source.trial_id in shared:
        return None
    scores = results.task_scores
    own, other = (_of_tasks(scores, trial_id, "test", "perplexity") for trial_id in (source.trial_id, shared[0]))
    documents = _of_tasks(scores, source.trial_id, "train", "num_documents")
    frame = pd.DataFrame({"documents": documents, "change": own / other - 1}).dropna()
    of_size = frame.groupby(np.floor(np.log2(np.asarray(frame["documents"], dtype=float))))
    columns = {"fewest": ("documents", "min"), "most": ("documents", "max"), "tasks": ("change", "size")}
    columns |= {"median": ("change", "median"), "lowest": ("change", "min"), "highest": ("change", "max")}
    found = pd.DataFrame(of_size.agg(**columns, gain=("change", lambda change: int((change < 0).sum()))))
    return None if found.empty else found.astype({"fewest": int, "most": int})


def _of_tasks(scores: pd.DataFrame, trial_id: str, split: str, column: str) -> pd.Series:
    """A column of `task_scores` of one trial and split, by task."""
    is_of = (scores["trial_id"] == trial_id) & (scores["split"] == split)
    of_trial = scores.loc[is_of, ["task", column]]
    return pd.Series(of_trial.set_index("task")[column])


def _total(values: Any) -> int:
    return int(np.sum(np.asarray(values)))
