"""Writes a comparison: `compare.md`, figures and tables, in a folder of its own."""

from bora_sweep.errors import plural
from bora_sweep.report.comparison.comparison import Comparison
from bora_sweep.report.comparison.words import alt, apart, caption, runs_table, settings_table
from bora_sweep.report.figures.style import render
from bora_sweep.report.text.formats import markdown_text
from bora_sweep.runs.storage import Folder, folder_at, write_bytes


def write_comparison(comparison: Comparison, folder: str | Folder) -> Folder:
    """Write `compare.md`; beside it `compare.{png,svg}`, `runs.csv`, `settings.csv`, `differences.csv`, `curves.csv`.

    Returns:
        The path of `compare.md`.
    """
    folder = folder_at(folder)
    frames = {"runs": comparison.runs, "differences": comparison.differences, "curves": comparison.curves}
    for name, frame in frames.items():
        write_bytes(folder / f"{name}.csv", frame.to_csv(index=False).encode())
    write_bytes(folder / "settings.csv", comparison.settings.to_csv().encode())
    figures = []
    for number, figure in enumerate(comparison.figures, start=1):
        figures.append("compare" if number == 1 else f"compare_{number}")
        for end, content in zip(("png", "svg"), render(figure), strict=True):
            write_bytes(folder / f"{figures[-1]}.{end}", content)
    names = ", ".join(markdown_text(run.name) for run in comparison.compared)
    parts = [f"# {plural(len(comparison.compared), 'run')} side by side", f"{names}.", comparison.answer]
    for group, figure in zip(comparison.groups, figures, strict=True):
        parts += [runs_table(group), f"![{alt(group)}]({figure}.png)", caption(group)]
    parts += ["## What differs", _ABOUT_SETTINGS, settings_table(comparison)]
    parts += ["## What does not compare", apart(comparison)] if comparison.apart else []
    parts += ["## How it was compared", _how(comparison)]
    page = folder / "compare.md"
    write_bytes(page, "\n\n".join(parts).encode() + b"\n")
    return page


_ABOUT_SETTINGS = (
    "Keys in which the best fits of these runs differ, with `ray`, `tracking` and `output` left out, as they decide no "
    "score."
)


def _how(comparison: Comparison) -> str:
    tests = ", ".join(
        f"{plural(len(group.runs[0].documents('test')), 'test document')} of {group.runs[0].name}"
        for group in comparison.groups
    )
    return (
        f"Each run's own validation chose its τ. Differences are of the same documents ({markdown_text(tests, 1000)}), "
        "paired document by document: 95% intervals by a bootstrap over documents within tasks. They are not corrected "
        "for the number of runs: with many, the best may be so by chance. With one seed they do not cover another "
        "training run."
    )
