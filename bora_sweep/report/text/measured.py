"""What is measured, in words: the measure's name in a sentence, which way is better, and in the names of files."""

import re
from collections.abc import Callable

from bora_sweep.report.stats.analysis import Analysis
from bora_sweep.report.stats.measure import Measure
from bora_sweep.report.stats.summary import Summary
from bora_sweep.report.text.formats import markdown_text, plain

_LONGEST_NAME = 80


def plain_label(measure: Measure) -> str:
    """`perplexity`, `exact match`, `my_module:score`."""
    return plain(measure.label, _LONGEST_NAME)


def label(measure: Measure) -> str:
    """The same, safe in Markdown."""
    return markdown_text(measure.label, _LONGEST_NAME)


def title(measure: Measure) -> str:
    """`label` at the beginning of a line."""
    return markdown_text(measure.title, _LONGEST_NAME)


def better(analysis: Analysis) -> str:
    """` (higher is better)`; empty in a run that measures perplexity alone."""
    return f" ({analysis.measure.higher_or_lower} is better)" if analysis.summary.has_metrics else ""


def chosen_by(summary: Summary, name: Callable[[Measure], str] = label) -> str:
    """` by accuracy`, of what validation chose; empty in a run that measures perplexity alone.

    Args:
        summary: Of the run.
        name: `label`, for Markdown, or `plain_label`.
    """
    return f" by {name(summary.chosen_by.measure)}" if summary.has_metrics else ""


def coverage(analysis: Analysis) -> str:
    """`12 of 15 tasks have test documents; …`; empty where all have."""
    tested, tasks = len(analysis.tested), len(analysis.summary.tasks)
    if tested == tasks:
        return ""
    scored = f" with {label(analysis.measure)} scores" if analysis.measure.is_metric else ""
    return (
        f"{tested:,} of {tasks:,} tasks have test documents{scored}; verdicts, macro means and figures of test scores "
        "cover only these."
    )


def suffix(analysis: Analysis) -> str:
    """What the names of an analysis's files end with: nothing where its measure chose tau, else `_accuracy`."""
    return "" if analysis.chose_tau else f"_{file_name(analysis)}"


def file_name(analysis: Analysis) -> str:
    """The measure's name in the name of a file: letters, digits, dots and underscores, unlike those of the others."""
    names: list[str] = []
    for name in analysis.summary.scores:
        plain = re.sub(r"[^A-Za-z0-9_.]", "_", name.replace(":", "."))[:_LONGEST_NAME]
        names.append(plain)
        taken = [other.casefold() for other in names[:-1]]
        while names[-1].casefold() in taken:  # file systems may not tell capitals apart
            names[-1] = f"{plain}_{len(names)}"
            plain = names[-1]
        if name == analysis.measure.name:
            break
    return names[-1]
