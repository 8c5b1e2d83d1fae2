"""Runs side by side in Python, as `bora-sweep report RUN1 RUN2` writes them."""

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import pandas as pd

from bora_sweep.report.comparison.groups import groups_of, have_one_validation
from bora_sweep.report.comparison.runs import ComparedRun, read_runs
from bora_sweep.report.figures.draw import draw
from bora_sweep.report.figures.run_curves import RunCurves, run_curves_data
from bora_sweep.report.notebook import figure_html, markdown_html
from bora_sweep.report.stats.bootstrap import paired_bootstrap
from bora_sweep.report.stats.document_scores import align_documents
from bora_sweep.report.stats.interval import Interval
from bora_sweep.report.stats.measure import Measure
from bora_sweep.runs.storage import Folder

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PLACES = {"best": "best tau", "independent": "tau = 0", "shared": "tau = inf"}
"""Fits that runs have in common, by the names that `ComparedRun.setting` takes."""


@dataclass(frozen=True)
class Group:
    """Runs that compare with one another, in the order in which they were given."""

    runs: list[ComparedRun]

    @property
    def measure(self) -> Measure:
        """What chose tau in all of them."""
        return self.runs[0].analysis.measure

    @cached_property
    def differences(self) -> dict[tuple[str, int, int], Interval]:
        """By place, run and reference run: the difference on test, paired over documents; in both directions."""
        found = {}
        for place in PLACES:
            settings = {n: setting for n, run in enumerate(self.runs) if (setting := run.setting(place)) is not None}
            if len(settings) < 2:
                continue
            rows = [self.runs[n].scores(setting, "test").assign(setting=n) for n, setting in settings.items()]
            bootstrap = paired_bootstrap(align_documents(pd.concat(rows), list(settings), self.measure))
            for i, n in enumerate(settings):
                for j, reference in enumerate(settings):
                    if n != reference:
                        found[place, n, reference] = bootstrap.difference(i, j)
        return found

    @cached_property
    def by_validation(self) -> list[int] | None:
        """The runs' numbers, the best on validation first; None where they have other validation documents."""
        if not have_one_validation(self.runs):
            return None
        return sorted(range(len(self.runs)), key=lambda n: self.runs[n].best.order)

    @cached_property
    def curves(self) -> RunCurves:
        """The data of the figure."""
        return run_curves_data([(run.name, run.analysis) for run in self.runs])


class Comparison:
    """Runs side by side: what differs between them, the best tau of each, and paired differences on test.

    Unlike `Report([...])`, which reads several runs as one, each run is by itself here. Runs compare where they chose
    tau by the same measure, and scored the same test documents, with perplexity as the same number of tokens.
    Differences are fractions (0.05 is 5% of perplexity, or 5 points), with 95% intervals by a bootstrap that is paired
    over documents.

    Args:
        runs: Two folders of runs or more; also `s3://…` and `gs://…`.

    Raises:
        InputError: A folder is not a run's or is given twice, no fit of it has finished, or no two of them compare.
    """

    def __init__(self, runs: list[str | Folder]) -> None:
        self.compared = read_runs(runs)
        groups, self.apart = groups_of(self.compared)
        self.groups = [Group(group) for group in groups]

    @cached_property
    def runs(self) -> pd.DataFrame:
        """A row for each run: its group (from 1; 0 compares with none), its best tau, and its scores there.

        `difference_to_first` is the difference on test to the group's first run.
        """
        rows = []
        for number, group in enumerate(self.groups, start=1):
            for n, run in enumerate(group.runs):
                difference = group.differences.get(("best", n, 0), Interval(0.0, 0.0, 0.0))
                parts = zip(("", "_low", "_high"), (difference.estimate, difference.low, difference.high), strict=True)
                rows.append(_row(run, number) | {f"difference_to_first{end}": value for end, value in parts})
        rows += [_row(run, 0) for run, _ in self.apart]
        return pd.DataFrame(rows)

    @cached_property
    def settings(self) -> pd.DataFrame:
        """What differs between the runs' best fits: a row for each key, a column for each run; texts as in YAML."""
        keys = dict.fromkeys(key for run in self.compared for key in run.values)
        rows = {key: [run.values.get(key, "") for run in self.compared] for key in keys}
        differ = {key: values for key, values in rows.items() if len(set(values)) > 1}
        columns = [run.name for run in self.compared]
        return pd.DataFrame.from_dict(differ, orient="index", columns=columns).rename_axis("key")

    @cached_property
    def differences(self) -> pd.DataFrame:
        """A row for each two runs that compare, at the best tau of each and at the ends of tau that both have."""
        rows = []
        for group in self.groups:
            for (place, n, reference), difference in group.differences.items():
                if n > reference:
                    pair = {"run": group.runs[n].name, "reference": group.runs[reference].name, "at": PLACES[place]}
                    ends = {"low": difference.low, "high": difference.high}
                    rows.append(pair | {"difference": difference.estimate} | ends)
        return pd.DataFrame(rows)

    @cached_property
    def curves(self) -> pd.DataFrame:
        """A row for each run and tau: the level on test with its interval, and whether it is the run's best."""
        return pd.concat([group.curves.points.drop(columns="x") for group in self.groups], ignore_index=True)

    @cached_property
    def figures(self) -> "list[Figure]":
        """The curves over tau of each group of runs that compare."""
        return [draw(group.curves) for group in self.groups]

    @cached_property
    def answer(self) -> str:
        """Which run validation prefers, and by how much it is better on test, as Markdown."""
        from bora_sweep.report.comparison.words import answer

        return answer(self.groups[0])

    def write(self, folder: str | Folder = "comparison") -> Folder:
        """Write `compare.md`, its figures and tables; returns the path of `compare.md`."""
        from bora_sweep.report.comparison.write import write_comparison

        return write_comparison(self, folder)

    def __repr__(self) -> str:
        alone = f", {len(self.apart):,} that compares with none" if self.apart else ""
        groups = " | ".join(", ".join(run.name for run in group.runs) for group in self.groups)
        return f"Comparison({groups}{alone})"

    def _repr_markdown_(self) -> str:
        from bora_sweep.report.comparison.words import overview

        return overview(self)

    def _repr_html_(self) -> str:
        from bora_sweep.report.comparison.words import alt, caption

        shown = zip(self.groups, self.figures, strict=True)
        figures = [figure_html(figure, alt(group), caption(group)) for group, figure in shown]
        return "\n".join([markdown_html(self._repr_markdown_()), *figures])


def _row(run: ComparedRun, group: int) -> dict[str, object]:
    analysis, measure = run.analysis, run.analysis.measure
    level = analysis.bootstrap.level(analysis.summary.best)
    return {
        "run": run.name,
        "group": group,
        "tau": run.best.tau,
        "measure": measure.name,
        "validation": float(analysis.scores.validation_M[analysis.summary.best]),
        "test": level.estimate,
        "test_low": level.low,
        "test_high": level.high,
        "finished_trials": run.results.trials["status"].tolist().count("finished"),
        "trials": len(run.results.trials),
    }
