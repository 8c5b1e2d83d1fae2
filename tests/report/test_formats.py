"""Numbers and names as text, in Markdown and LaTeX."""

import math

import pytest
from made_up_runs import table_after

from bora_sweep.report.stats.interval import Interval
from bora_sweep.report.text.formats import latex_text, markdown_text, percent_text, tau_text


def test_latex_escapes_every_special_character():
    assert latex_text("50% of_A & B #1 $5 {x} ~ ^ \\end") == (
        r"50\% of\_A \& B \#1 \$5 \{x\} \textasciitilde{} \textasciicircum{} \textbackslash{}end"
    )
    assert latex_text("å ø 🙂") == "å ø U+1F642"


@pytest.mark.parametrize("name", ["a | b", "\\", "\\|", "*", "_x_", "`", "<b>", "&amp;", "![a](b)", "https://x.y"])
def test_markdown_reads_back_the_name(name: str):
    assert table_after(f"| {markdown_text(name)} | b |\n| --- | --- |\n", "")[0] == [name, "b"]


@pytest.mark.parametrize(
    ("tau", "text"),
    [(0.0, "0"), (math.inf, "∞"), (1.0, "1"), (0.034567, "0.0346"), (1234.5, "1,230"), (999.9, "1,000")],
)
def test_tau_text(tau: float, text: str):
    assert tau_text(tau) == text


@pytest.mark.parametrize(
    ("interval", "text"),
    [
        (Interval(0.012, 0.003, 0.021), "+1.2% [+0.3, +2.1]"),
        (Interval(0.0005, -0.0002, 0.0008), "+0.1% [−0.0, +0.1]"),
        (Interval(0.0005, 0.0002, 0.0008), "+0.05% [+0.02, +0.08]"),
        (Interval(-0.0005, -0.0008, -0.000004), "−0.0500% [−0.0800, −0.0004]"),
        (Interval(0.01, math.nan, math.nan), "+1.0% [–, –]"),
    ],
)
def test_an_interval_that_excludes_0_is_seen_to(interval: Interval, text: str):
    assert percent_text(interval) == text
