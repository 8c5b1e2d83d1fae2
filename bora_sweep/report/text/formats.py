"""Numbers as text, and tables as Markdown and LaTeX. A name from the data never acts as markup in either."""

import itertools
import math
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from bora_sweep.report.stats.interval import Interval
from bora_sweep.report.stats.measure import Measure

NAME_LENGTH = 60
_MOST_DECIMALS = 6
_MARKDOWN = str.maketrans(
    {character: f"\\{character}" for character in "\\`*_[]#!|~"}
    | {character: f"&#{ord(character)};" for character in "<>&$^"}
)
_LATEX = str.maketrans(
    {character: f"\\{character}" for character in "{}$&#_%"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    | {"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", '"': r"\textquotedbl{}"}
    | {"[": "{[}", "]": "{]}", "`": r"\textasciigrave{}"}  # a row that begins with [ would be an argument of \\
    | {"τ": r"$\tau$", "∞": r"$\infty$", "−": r"$-$", "–": "--", "…": r"\dots{}"}
)
_TURNING = (*range(0x202A, 0x202F), *range(0x2066, 0x206A))  # of the direction of a line
_VISIBLE = {code: chr(0x2400 + code) for code in range(0x20)}
_VISIBLE |= {code: f"‹U+{code:04X}›" for code in (*range(0x7F, 0xA0), 0x2028, 0x2029, *_TURNING)}


@dataclass
class Table:
    """Cells as text that is not escaped; `bold` holds the (row, column) of cells in bold."""

    columns: list[str]
    rows: list[list[str]] = field(default_factory=list)
    bold: set[tuple[int, int]] = field(default_factory=set)


def plain(text: str, limit: int = NAME_LENGTH) -> str:
    """One line without control characters, cut to `limit`."""
    visible = "".join(c for c in " ".join(text.split()) if unicodedata.category(c)[0] != "C")
    return visible if len(visible) <= limit else f"{visible[: limit - 1]}…"


def short_names(names: Sequence[str], limit: int) -> list[str]:
    """Names cut to `limit`; where one is longer, the words that all begin with are left out, and tell nothing apart."""
    words = [name.split(" ") for name in names]
    is_long = len(names) > 1 and max(map(len, names)) > limit
    alike = itertools.takewhile(lambda nth: len(set(nth)) == 1, zip(*(parts[:-1] for parts in words), strict=False))
    shared = len(list(alike)) if is_long else 0
    return [plain(f"…{' '.join(parts[shared:])}" if shared else " ".join(parts), limit) for parts in words]


def visible(name: str) -> str:
    """A name with what cannot be seen made visible: control characters, and those that turn the direction of a line."""
    seen = name.translate(_VISIBLE)
    return seen if seen.strip() else "␠" * max(1, min(len(seen), 8))


def tau_text(tau: float) -> str:
    """Three significant digits: 0, 0.03, 1,230, ∞."""
    if tau == math.inf:
        return "∞"
    if tau == 0:
        return "0"
    rounded = float(f"{tau:.3g}")
    return f"{rounded:,.0f}" if rounded >= 1000 else f"{rounded:g}"


def number_text(value: float) -> str:
    """A count or an amount: 12, 12.3, 1,235; a dash for NaN."""
    if math.isnan(value):
        return "–"
    return f"{value:,.0f}" if value == int(value) or value >= 100 else f"{value:,.1f}"


def perplexity_text(value: float) -> str:
    """About four digits; a dash for NaN."""
    if math.isnan(value):
        return "–"
    if value >= 1e6:
        return f"{value:.3g}".replace("inf", "∞")
    return f"{value:,.{2 if value < 100 else 1 if value < 1000 else 0}f}"


def interval_text(interval: Interval, text: Callable[[float], str] = perplexity_text) -> str:
    """Perplexities with their interval: `11.1 [10.8, 11.4]`; values of tau with `text=tau_text`."""
    return f"{text(interval.estimate)} [{text(interval.low)}, {text(interval.high)}]"


def percent_text(interval: Interval, signed: bool = True, unit: str = "%") -> str:
    """A fraction in per cent: `+1.2% [+0.3, +2.1]`; a dash for a bound that is not known.

    An interval that excludes 0 has as many decimals as its bounds need to show it: `+0.05% [+0.02, +0.08]`.

    Args:
        interval: Of the fraction.
        signed: Whether a plus sign is written.
        unit: Written after the estimate.
    """
    decimals = 1
    if interval.excludes_zero:
        nearest = 100 * min(abs(interval.low), abs(interval.high))
        decimals = next((number for number in (1, 2, 3) if round(nearest, number) > 0), 4)
    sign = "+" if signed else ""
    values = (interval.estimate, interval.low, interval.high)
    estimate, low, high = (_percent(value, sign, decimals) for value in values)
    return f"{estimate}{unit} [{low}, {high}]"


def level_text(measure: Measure) -> Callable[[float], str]:
    """How a level is written: `11.10`, `71.2%`, `0.1234`; a dash for NaN."""
    return {"perplexity": perplexity_text, "share": _share_text, "number": _score_text}[measure.unit]


def level_interval_text(interval: Interval, measure: Measure) -> str:
    """A level with its interval: `11.10 [10.8, 11.4]`, `71.2% [68.0, 74.4]`."""
    if measure.unit == "share":
        return percent_text(interval, signed=False)
    return interval_text(interval, level_text(measure))


def difference_text(interval: Interval, measure: Measure, signed: bool = True) -> str:
    """A difference with its interval: `+1.2% [+0.3, +2.1]`, `+3.1 points [+1.0, +5.2]`, `+0.031 [+0.010, +0.052]`."""
    if measure.unit != "number":
        return percent_text(interval, signed, "%" if measure.unit == "perplexity" else " points")
    width = interval.high - interval.low
    scale = width if width > 0 else abs(interval.estimate)
    if interval.excludes_zero:
        scale = min(scale, abs(interval.low), abs(interval.high))
    decimals = min(max(0, 1 - math.floor(math.log10(scale))), _MOST_DECIMALS) if 0 < scale < math.inf else 1
    values, sign = (interval.estimate, interval.low, interval.high), "+" if signed else ""
    estimate, low, high = (_number(value, sign, decimals) for value in values)
    return f"{estimate} [{low}, {high}]"


def amount_text(amount: float, measure: Measure) -> str:
    """The size of a difference, without its sign: `12.3%`, `3.1 points`, `0.0312`."""
    if measure.unit == "number":
        return significant_text(abs(amount))
    return f"{_percent(abs(amount), '')}{'%' if measure.unit == 'perplexity' else ' points'}"


def megabytes_text(num_bytes: float) -> str:
    """Millions of bytes: 0.0512 MB, 4.2 MB, 1,234 MB; a dash where it is not known."""
    if math.isnan(num_bytes):
        return "–"
    value = num_bytes / 1e6
    return f"{value:,.0f} MB" if value >= 100 else f"{value:.2g} MB" if value < 1 else f"{value:.1f} MB"


def _score_text(value: float) -> str:
    return significant_text(value, 4).replace("-", "−")


def _share_text(value: float) -> str:
    return "–" if math.isnan(value) else f"{_percent(value, '')}%"


def change_text(fraction: float) -> str:
    """A relative change in per cent, without an interval: `+1.2%`."""
    return f"{_percent(fraction, '+')}%"


def _percent(fraction: float, sign: str, decimals: int = 1) -> str:
    return _number(100 * fraction, sign, decimals)


def _number(value: float, sign: str, decimals: int) -> str:
    return "–" if math.isnan(value) else f"{value:{sign},.{decimals}f}".replace("-", "−").replace("inf", "∞")


def p_text(p: float) -> str:
    """Two significant digits: 0.031, < 0.0001."""
    return "< 0.0001" if p < 1e-4 else f"{p:.2g}"


def significant_text(value: float, digits: int = 3) -> str:
    """So many significant digits, no more and no fewer: 3.10, 0.0123, 1,235; a dash where it is not known."""
    if math.isnan(value):
        return "–"
    return f"{value:,.0f}" if abs(value) >= 10**digits else f"{value:#.{digits}g}".rstrip(".")


def hours_text(hours: float) -> str:
    """In seconds below a minute, in minutes below two hours: 4.2 s, 90 min, 12 h; a dash where it is not known."""
    if math.isnan(hours):
        return "–"
    value, unit = (hours * 3600, "s") if hours < 1 / 60 else (hours * 60, "min") if hours < 2 else (hours, "h")
    return f"{value:,.{1 if value < 10 else 0}f} {unit}"


def markdown_text(text: str, limit: int = NAME_LENGTH) -> str:
    """Text from the data, safe within a Markdown paragraph or table cell."""
    return plain(text, limit).translate(_MARKDOWN)


def latex_text(text: str, limit: int = NAME_LENGTH) -> str:
    """Text from the data, safe in LaTeX; a symbol that text fonts lack is written as its code point."""
    parts = (f"U+{ord(c):04X}" if unicodedata.category(c) == "So" else c.translate(_LATEX) for c in plain(text, limit))
    return "".join(parts)


def markdown_table(table: Table, limit: int = NAME_LENGTH, right: bool = True) -> str:
    """A GitHub table; the first column to the left, the others to the right, or all to the left."""
    others = ["---:" if right else "---"] * (len(table.columns) - 1)
    lines = [[markdown_text(column) for column in table.columns], ["---", *others]]
    for i, row in enumerate(table.rows):
        cells = [markdown_text(cell, limit) for cell in row]
        lines.append([f"**{cell}**" if (i, j) in table.bold and cell else cell for j, cell in enumerate(cells)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def latex_table(table: Table) -> str:
    """A booktabs tabular."""
    lines = ["% needs \\usepackage{booktabs}; for names beyond Latin letters compile with LuaLaTeX or XeLaTeX"]
    lines += [rf"\begin{{tabular}}{{l{'r' * (len(table.columns) - 1)}}}", r"\toprule"]
    lines += [" & ".join(latex_text(column) for column in table.columns) + r" \\", r"\midrule"]
    for i, row in enumerate(table.rows):
        cells = [rf"\textbf{{{latex_text(c)}}}" if (i, j) in table.bold else latex_text(c) for j, c in enumerate(row)]
        lines.append(" & ".join(cells) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def shorten(table: Table, most: int) -> Table:
    """The first and the last rows, with a row of dots between, where there are more than `most`."""
    total, head = len(table.rows), most // 2
    if total <= most:
        return table
    moved = total - 2 * head - 1
    rows = [*table.rows[:head], ["…"] * len(table.columns), *table.rows[total - head :]]
    bold = {(i if i < head else i - moved, j) for i, j in table.bold if i < head or i >= total - head}
    return Table(table.columns, rows, bold)
