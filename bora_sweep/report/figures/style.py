"""How figures look: one palette for the figures and the page, the shape of a mark, panels, labels and file formats.

matplotlib draws by its own defaults: the user's settings, and pyplot's state, are neither read nor changed.
"""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from matplotlib import rc_context, rcParamsDefault
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke


class Shades(NamedTuple):
    """One color of the palette, as hexadecimal RGB."""

    figure: str
    """In the figures, on white."""
    light: str
    """On the page, dark enough on white for text: a contrast of 4.5 to 1."""
    dark: str
    """On the page's dark background."""


PALETTE = {
    "ink": Shades("#222222", "#1c1d1f", "#ececea"),
    "task": Shades("#8c8c8c", "#6f7276", "#a3a7ac"),
    "grid": Shades("#e8e8e8", "#ececea", "#272a2d"),
    "independent": Shades("#0072B2", "#0072b2", "#56b4e9"),
    "shared": Shades("#D55E00", "#c25400", "#f08a4b"),
    "best": Shades("#009E73", "#007a58", "#34c79d"),
    "floor": Shades("#CC79A7", "#a84d84", "#e29cc6"),
}
"""Okabe and Ito's colors, which color-blind readers can tell apart: one meaning in every figure."""
COLORS = {name: shades.figure for name, shades in PALETTE.items()}
INK, GREY, PALE = COLORS["ink"], COLORS["task"], COLORS["grid"]

MARKERS = {"circle": "o", "square": "s", "triangle-up": "^", "diamond": "D"}
"""Vega's names of the marks, by which the data has them, and matplotlib's."""
MOST_NAMES = 40
"""Tasks up to which a figure names each task, or draws an interval for each."""


@contextmanager
def plain_style() -> Iterator[None]:
    """Make and draw figures by matplotlib's own defaults: within this context, or in a function that it decorates."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated settings; a name in a script that the font lacks
        defaults: dict[Any, Any] = {name: value for name, value in rcParamsDefault.items() if name != "backend"}
        with rc_context({**defaults, "svg.hashsalt": "bora-sweep"}):
            yield


class ShownFigure(Figure):
    """A figure that a notebook shows by itself; without pyplot it would show a plain `Figure` by its name."""

    def _repr_png_(self) -> bytes:
        return render_png(self, dots_per_inch=110)


@plain_style()
def render_png(figure: Figure, dots_per_inch: int = 200) -> bytes:
    """PNG; the same figure always gives the same bytes."""
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=dots_per_inch)
    return png.getvalue()


@plain_style()
def render(figure: Figure) -> tuple[bytes, bytes]:
    """PNG at 200 dots per inch, and SVG with its text as paths; the same figure always gives the same bytes."""
    svg = io.BytesIO()
    png = render_png(figure)
    figure.savefig(svg, format="svg", metadata={"Date": None})
    return png, svg.getvalue()


def panels(width: float, height: float, columns: int = 1) -> tuple[Figure, list[Axes]]:
    """A figure of `width` by `height` inches, and its panels from left to right."""
    figure = ShownFigure(figsize=(width, height), facecolor="white", layout="constrained")
    row = list(figure.subplots(1, columns, squeeze=False)[0])
    for axes in row:
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set(color=GREY, linewidth=0.8)
        axes.tick_params(which="both", color=GREY, labelcolor=INK, labelsize=9, width=0.8)
        axes.grid(axis="y", color=PALE, linewidth=0.8)
        axes.set_axisbelow(True)
    return figure, row


def set_title(axes: Axes, text: str) -> None:
    """The title of a panel, at its left."""
    axes.set_title(text, loc="left", fontsize=10, color=INK)


def set_labels(axes: Axes, x: str, y: str) -> None:
    """The titles of both axes."""
    axes.set_xlabel(x, fontsize=10, color=INK)
    axes.set_ylabel(y, fontsize=10, color=INK)


def annotate(axes: Axes, text: str, point: tuple[float, float], shift: tuple[float, float], **style: Any) -> None:
    """Text beside a point, `shift` points (1/72 inch) away, with a halo that keeps it apart from lines."""
    style = {"color": INK, "fontsize": 9, "zorder": 6, **style}
    written = axes.annotate(text, point, shift, textcoords="offset points", **style)
    written.set_path_effects([withStroke(linewidth=3, foreground="white")])
