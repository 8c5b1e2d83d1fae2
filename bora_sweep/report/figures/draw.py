"""The paper's five figures. Drawn on matplotlib's objects alone, by its own settings: the user's, and pyplot's state,
are neither read nor changed."""

import io
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import rc_context, rcParamsDefault
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from bora_sweep.report.stats.analysis import Analysis
from bora_sweep.report.stats.significance import UNKNOWN
from bora_sweep.report.stats.smooth_curve import SmoothCurve
from bora_sweep.report.stats.summary import Summary
from bora_sweep.report.stats.trends import Trend
from bora_sweep.report.text.formats import perplexity_text, plain, tau_text

# Okabe and Ito's palette, told apart by colour-blind readers too: one meaning in every figure.
INK, GREY, PALE = "#222222", "#8c8c8c", "#e8e8e8"
INDEPENDENT, SHARED, BEST, FLOOR = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
MOST_NAMES = 40  # tasks that a figure names, or gives an interval each


@contextmanager
def plain_style() -> Iterator[None]:
    """Within, or in a function that it decorates, figures are made and drawn by matplotlib's own settings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # settings on their way out; a name in a script that the font lacks
        own: dict[Any, Any] = {name: value for name, value in rcParamsDefault.items() if name != "backend"}
        with rc_context({**own, "svg.hashsalt": "bora-sweep"}):
            yield


@plain_style()
def render(figure: Figure) -> tuple[bytes, bytes]:
    """PNG at 200 dots per inch, and SVG with its text as paths; the same figure always gives the same bytes."""
    png, svg = io.BytesIO(), io.BytesIO()
    figure.savefig(png, format="png", dpi=200)
    figure.savefig(svg, format="svg", metadata={"Date": None})
    return png.getvalue(), svg.getvalue()


def task_sizes(summary: Summary) -> Figure:
    """Figure 1: training documents of each task, most first; with names where they can be read."""
    sizes_D = summary.train_documents_D
    if len(sizes_D) > MOST_NAMES:
        figure, (axes,) = _panels(7, 3.2)
        axes.stairs(sizes_D, np.arange(len(sizes_D) + 1) + 0.5, fill=True, color=GREY)
        axes.set_xlim(0.5 - 0.01 * len(sizes_D), len(sizes_D) + 0.5)
        axes.xaxis.set_major_locator(MaxNLocator(8, steps=[1, 2, 5, 10], integer=True))
        _label(axes, "Task, in order of size", "Training documents")
        return figure
    figure, (axes,) = _panels(7, 0.8 + 0.23 * len(sizes_D))
    bars = axes.barh(np.arange(len(sizes_D)), sizes_D, height=0.7, color=GREY)
    axes.bar_label(bars, fmt="{:,.0f}", padding=3, fontsize=8, color=INK)
    axes.set_yticks(np.arange(len(sizes_D)), [plain(task, 32) for task in summary.tasks], parse_math=False)
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False)
    axes.spines["left"].set_visible(False)
    axes.set_ylim(len(sizes_D) - 0.4, -0.6)
    axes.margins(x=0.08)
    _label(axes, "Training documents", "")
    return figure


def tau_curve(analysis: Analysis) -> Figure:
    """Figure 2: tau against test perplexity; all tasks together on the left, each task on the right."""
    summary = analysis.summary
    scale = TauAxis([summary.settings[m].tau for m in summary.fits])
    intervals = [analysis.bootstrap.perplexity(m) for m in summary.fits]
    low, high = np.array([[interval.low, interval.high] for interval in intervals]).T
    tasks_DM = summary.perplexity_DM[:, summary.fits]
    figure, (overall, each) = _panels(10, 4, columns=2)
    for part, linestyle in scale.parts():
        overall.fill_between(scale.x[part], low[part], high[part], color=GREY, lw=0, alpha=0.1 if linestyle else 0.18)
        lines = [np.column_stack([scale.x[part], row[part]]) for row in tasks_DM]
        alpha = max(0.08, min(0.7, 15 / len(lines))) * (0.5 if linestyle else 1)
        each.add_collection(LineCollection(lines, color=GREY, lw=0.8, alpha=alpha))
    _draw_micro(overall, analysis, scale, analysis.curve)
    _draw_micro(each, analysis, scale, None)
    _draw_choice(overall, analysis, scale)
    for name, value in references_in_view(summary).items():
        overall.axhline(value, color=FLOOR if name == "floor" else GREY, lw=1.3, linestyle=(0, (5, 3)), zorder=1)
        said = f"{name} {perplexity_text(value)}"
        _note(overall, said, (1, value), (-2, 4), xycoords=("axes fraction", "data"), ha="right")
    overall.set_title("All tasks together", loc="left", fontsize=10, color=INK)
    each.set_title(f"Each of {len(tasks_DM):,} tasks", loc="left", fontsize=10, color=INK)
    _spread_log(each, "y", tasks_DM)
    return figure


def _draw_micro(axes: Axes, analysis: Analysis, scale: "TauAxis", curve: SmoothCurve | None) -> None:
    """The thick line over tau, smooth where there is a curve; a dot for each fit, the ends and the best in colour."""
    summary = analysis.summary
    y = np.array([summary.settings[m].test_perplexity for m in summary.fits])
    for part, linestyle in scale.parts():
        if linestyle or curve is None:
            axes.plot(scale.x[part], y[part], color=INK, lw=2.2, linestyle=linestyle or "-", zorder=3)
    if curve is not None:
        x_G, (low_G, high_G) = np.log10(curve.tau_G), curve.band
        axes.fill_between(x_G, np.exp(low_G), np.exp(high_G), color=GREY, lw=0, alpha=0.4, zorder=2)
        axes.plot(x_G, np.exp(curve.nats_per_token_G), color=INK, lw=2.2, zorder=3)
    axes.plot(scale.x, y, "o", ms=4, color=INK, markeredgecolor="white", markeredgewidth=0.5, zorder=4)
    marks = {summary.independent: ("s", INDEPENDENT), summary.shared: ("^", SHARED), summary.best: ("D", BEST)}
    for x, value, m in zip(scale.x, y, summary.fits, strict=True):
        if m in marks:
            marker, color = marks[m]
            axes.plot(x, value, marker, ms=8, color=color, markeredgecolor="white", zorder=5)
    scale.draw(axes)
    axes.margins(y=0.14)
    _label(axes, "Precision τ", "Test perplexity")


def _draw_choice(axes: Axes, analysis: Analysis, scale: "TauAxis") -> None:
    """The best tau with its name, the one-standard-error choice, and a bar for the values that are as good."""
    summary, choice = analysis.summary, analysis.choice
    x_M = dict(zip(summary.fits, scale.x, strict=True))
    at = (x_M[summary.best], summary.settings[summary.best].test_perplexity)
    _note(axes, f"best: τ = {tau_text(summary.best_tau)}", at, (0, -18), ha="center", color=BEST, weight="bold")
    m = choice.one_standard_error
    if m != choice.minimum:
        style = {"color": BEST, "markerfacecolor": "white", "markeredgewidth": 1.5}
        axes.plot(x_M[m], summary.settings[m].test_perplexity, "D", ms=7, zorder=6, **style)
    if choice.curve is not None:
        ends = [math.log10(tau) for tau in (choice.curve.as_good.low, choice.curve.as_good.high)]
        axes.plot(ends, [0.012, 0.012], color=BEST, lw=5, solid_capstyle="butt", transform=axes.get_xaxis_transform())


def references(summary: Summary) -> dict[str, float]:
    """Micro test perplexity of the zero-shot model and of the true source, where they are known."""
    zero_shot = math.nan if summary.zero_shot is None else summary.settings[summary.zero_shot].test_perplexity
    return {name: value for name, value in (("zero-shot", zero_shot), ("floor", summary.floor)) if value == value}


def references_in_view(summary: Summary) -> dict[str, float]:
    """Those for which a line at their height leaves most of the plot to the curve over tau."""
    fits = [summary.settings[m].test_perplexity for m in summary.fits]
    room = 0.8 * (max(fits) - min(fits))
    return {name: v for name, v in references(summary).items() if min(fits) - room <= v <= max(fits) + room}


@dataclass(frozen=True)
class TauAxis:
    """Places of ascending tau on a log axis, 0 and inf each on its own beyond a break."""

    taus: list[float]

    @property
    def finite(self) -> list[float]:
        return [math.log10(tau) for tau in self.taus if 0 < tau < math.inf] or [0.0]

    @property
    def gap(self) -> float:
        return max(0.4, 0.16 * (self.finite[-1] - self.finite[0]))

    @property
    def x(self) -> np.ndarray:
        low, high = self.finite[0] - self.gap, self.finite[-1] + self.gap
        return np.array([low if tau == 0 else high if tau == math.inf else math.log10(tau) for tau in self.taus])

    def parts(self) -> Iterator[tuple[slice, str]]:
        """Stretches of a line over tau with their line style: dotted across a break, "" (solid) between."""
        first = 1 if self.taus[0] == 0 else 0
        last = len(self.taus) - (1 if self.taus[-1] == math.inf else 0)
        if first >= last:
            yield slice(None), ":"
            return
        yield slice(first, last), ""
        if first:
            yield slice(0, 2), ":"
        if last < len(self.taus):
            yield slice(last - 1, None), ":"

    def draw(self, axes: Axes) -> None:
        low, high = self.finite[0], self.finite[-1]
        ends = [(tau, x) for tau, x in zip(self.taus, self.x, strict=True) if tau in (0, math.inf)]
        decades = range(math.ceil(low - 1e-9), math.floor(high + 1e-9) + 1)
        inner = [(f"$10^{{{k}}}$", float(k)) for k in decades[:: 1 + len(decades) // 9]]
        if len(inner) < 2:
            inner = [(tau_text(tau), math.log10(tau)) for tau in self.taus if 0 < tau < math.inf]
        ticks = [*((tau_text(tau), x) for tau, x in ends), *inner]
        axes.set_xticks([x for _, x in ticks], [label for label, _ in ticks])
        minor = np.add.outer(np.arange(math.floor(low), math.ceil(high)), np.log10(np.arange(2, 10))).ravel()
        axes.set_xticks(minor[(minor >= low) & (minor <= high)], minor=True)
        axes.set_xlim(min(self.x[0], low) - 0.4 * self.gap, max(self.x[-1], high) + 0.4 * self.gap)
        for tau, x in ends:
            middle = x + (0.55 if tau == 0 else -0.55) * self.gap
            white = {"facecolor": "white", "edgecolor": "none", "pad": 0.6}
            slashes = axes.text(middle, 0, "//", color=GREY, fontsize=9, clip_on=False, zorder=6, bbox=white)
            slashes.set(transform=axes.get_xaxis_transform(), ha="center", va="center")


def improvement_by_size(analysis: Analysis) -> Figure:
    """Figure 3: training documents of a task against the best fit's gain over either end, in per cent."""
    figure, (axes,) = _panels(7, 4)
    axes.axhline(0, color=INK, lw=1)
    for reference, marker, color, aside in (("independent", "o", INDEPENDENT, 0.99), ("shared", "^", SHARED, 1.01)):
        part = [gain for gain in analysis.task_gains if gain.reference == reference]
        if part:
            sizes, values = np.array([[gain.train_documents, gain.interval.estimate] for gain in part]).T
            sizes *= aside if len(part) <= MOST_NAMES else 1  # so that bars of one task stand side by side
            if len(part) <= MOST_NAMES:
                low, high = [gain.interval.low for gain in part], [gain.interval.high for gain in part]
                axes.vlines(sizes, low, high, color=color, lw=1, alpha=0.4)
            _draw_trend(axes, analysis.trends.get(f"improvement_{reference}"), color)
            told = np.array([gain.verdict != UNKNOWN for gain in part])
            _dots(axes, sizes[~told], values[~told], color, marker, is_open=True)
            _dots(axes, sizes[told], values[told], color, marker)
            axes.plot([], [], marker, color=color, ms=6, label=f"against {part[0].reference_in_words}")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.4g}%".replace("-", "−")))
    _spread_log(axes, "x", np.array([gain.train_documents for gain in analysis.task_gains]))
    _label(axes, "Training documents of the task", "Reduction of test perplexity")
    figure.legend(loc="outside upper left", ncols=2, frameon=False, fontsize=9, labelcolor=INK, handletextpad=0.2)
    return figure


def by_size(
    sizes_D: np.ndarray,
    values_D: np.ndarray,
    label: str,
    line: Trend | None,
    ends: tuple[np.ndarray, np.ndarray] | None = None,
) -> Figure:
    """Figures 4 and 5: training documents of each task against `values_D`, with a line, and intervals if given."""
    figure, (axes,) = _panels(7, 4)
    if ends is not None and len(sizes_D) <= MOST_NAMES:
        axes.vlines(sizes_D, *ends, color=BEST, lw=1, alpha=0.4)
    _draw_trend(axes, line, INK)
    _dots(axes, sizes_D, values_D, BEST)
    _spread_log(axes, "x", sizes_D)
    _spread_log(axes, "y", values_D)
    _label(axes, "Training documents of the task", label)
    return figure


def _draw_trend(axes: Axes, line: Trend | None, color: str) -> None:
    if line is not None:
        x_G = np.geomspace(line.low_documents, line.high_documents, 100)
        middle_G, low_G, high_G = line.line(x_G)
        axes.fill_between(x_G, low_G, high_G, color=color, lw=0, alpha=0.1, zorder=1)
        axes.plot(x_G, middle_G, color=color, lw=1.5, alpha=0.8, zorder=1.5)


def _dots(axes: Axes, x: np.ndarray, y: np.ndarray, color: str, marker: str = "o", is_open: bool = False) -> None:
    few = len(x) <= MOST_NAMES
    size, alpha = (6, 0.9) if few else (3.5, 0.45)
    face, edge = ("white", 1.2) if is_open else (color, 0)
    axes.plot(x, y, marker, color=color, ms=size, alpha=alpha, markerfacecolor=face, markeredgewidth=edge)


def _panels(width: float, height: float, columns: int = 1) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(width, height), facecolor="white", layout="constrained")
    panels = list(figure.subplots(1, columns, squeeze=False)[0])
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set(color=GREY, linewidth=0.8)
        axes.tick_params(which="both", color=GREY, labelcolor=INK, labelsize=9, width=0.8)
        axes.grid(axis="y", color=PALE, linewidth=0.8)
        axes.set_axisbelow(True)
    return figure, panels


def _label(axes: Axes, x: str, y: str) -> None:
    axes.set_xlabel(x, fontsize=10, color=INK)
    axes.set_ylabel(y, fontsize=10, color=INK)


def _note(axes: Axes, said: str, at: tuple[float, float], shift: tuple[float, float], **style) -> None:
    style = {"color": INK, "fontsize": 9, "zorder": 6, **style}
    axes.annotate(said, at, shift, textcoords="offset points", **style)


def _spread_log(axes: Axes, which: str, values: np.ndarray) -> None:
    """A log axis where values span more than a factor of 5, its ticks written as plain numbers."""
    low, high = np.nanmin(values), np.nanmax(values)
    if not (low > 0 and math.isfinite(high) and high / low > 5):
        return
    axes.set(**{f"{which}scale": "log"})
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < 300 else (1,), numticks=12))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
