"""A comparison as Markdown: the answer, the runs, what differs, and what stands apart."""

from bora_sweep.report.comparison.comparison import Comparison, Group
from bora_sweep.report.comparison.runs import ComparedRun
from bora_sweep.report.text.formats import (
    Table,
    difference_text,
    level_interval_text,
    level_text,
    markdown_table,
    markdown_text,
    tau_text,
)
from bora_sweep.report.text.measured import label, plain_label

_LONGEST_VALUE = 80
_END_TAUS = {"independent": "τ = 0", "shared": "τ = ∞"}


def answer(group: Group) -> str:
    """The run that validation prefers against the next, or why validation does not choose."""
    if group.by_validation is None:
        return (
            "**These runs have other validation documents, so validation does not choose between them.** The "
            "differences below are of the same test documents, at the τ that each run's own validation chose."
        )
    first, second, *_ = group.by_validation
    difference = group.differences["best", first, second]
    measure, run, other = group.measure, group.runs[first], group.runs[second]
    is_better = (difference.estimate > 0) == measure.is_metric
    size = difference if difference.estimate >= 0 else -difference
    side = measure.better_side if is_better else measure.worse_side
    level = level_text(measure)(float(run.analysis.scores.test_M[run.analysis.summary.best]))
    doubt = "" if difference.excludes_zero else " The interval includes 0: the test documents do not tell them apart."
    return (
        f"**{markdown_text(run.name)} is best on validation: at τ = {tau_text(run.best.tau)} it has test "
        f"{label(measure)} {level}, {difference_text(size, measure, signed=False)} {side} {markdown_text(other.name)} "
        f"at τ = {tau_text(other.best.tau)}, the next on validation.**{doubt} Brackets hold 95% intervals, paired over "
        "test documents."
    )


def overview(comparison: Comparison) -> str:
    """What the terminal shows: the answer, each run, what differs, and what stands apart."""
    parts = [comparison.answer, *(runs_table(group) for group in comparison.groups), settings_table(comparison)]
    return "\n\n".join([*parts, apart(comparison)]).rstrip()


def runs_table(group: Group) -> str:
    """A row for each run; differences are to the first."""
    name, to = plain_label(group.measure), f"against {group.runs[0].name}"
    columns = ["run", "best τ", f"validation {name}", f"test {name}", to]
    columns += [f"{to}, {_END_TAUS[place]}" for place in _ends(group)]
    table = Table(columns)
    for n, run in enumerate(group.runs):
        shown = [_difference(group, place, n) for place in ("best", *_ends(group))]
        table.rows.append([*_cells(run), *shown])
        if group.by_validation is not None and n == group.by_validation[0]:
            table.bold |= {(n, j) for j in range(4)}
    return markdown_table(table)


def _cells(run: ComparedRun) -> list[str]:
    analysis, best = run.analysis, run.analysis.summary.best
    validation = level_text(analysis.measure)(float(analysis.scores.validation_M[best]))
    test = level_interval_text(analysis.bootstrap.level(best), analysis.measure)
    return [run.name, tau_text(run.best.tau), validation, test]


def _ends(group: Group) -> list[str]:
    return [place for place in _END_TAUS if any(key[0] == place for key in group.differences)]


def _difference(group: Group, place: str, n: int) -> str:
    difference = group.differences.get((place, n, 0))
    return "–" if difference is None else difference_text(difference, group.measure)


def settings_table(comparison: Comparison) -> str:
    """The keys that differ; a sentence where none does."""
    frame = comparison.settings
    if frame.empty:
        return "Nothing differs between the configurations of their best fits."
    rows = [[str(key), *map(str, values)] for key, values in zip(frame.index, frame.to_numpy(), strict=True)]
    return markdown_table(Table(["key", *frame.columns], rows), _LONGEST_VALUE)


def apart(comparison: Comparison) -> str:
    """The runs that compare with no other, each with the reason and its own scores; empty without any."""
    if not comparison.apart:
        return ""
    lines = []
    for run, reason in comparison.apart:
        name, tau, _, test = _cells(run)
        measure = label(run.analysis.measure)
        lines.append(
            f"**{markdown_text(name)}** stands apart: {markdown_text(reason, 1000)}. By itself its best is "
            f"τ = {tau}, with test {measure} {test}."
        )
    return "\n\n".join(lines)


def alt(group: Group) -> str:
    """Of the figure, for those who do not see it."""
    names = ", ".join(markdown_text(run.name) for run in group.runs)
    return f"Test {label(group.measure)} over the precision τ of {names}."


def caption(group: Group) -> str:
    """Of the figure."""
    return (
        f"Test {label(group.measure)} of all tasks together over the precision τ, a line for each run, dotted to the "
        "ends τ = 0 and τ = ∞. The large mark is the run's best on validation, with the 95% interval of it alone; "
        "differences between runs are paired and more certain than these intervals suggest (the table)."
    )
