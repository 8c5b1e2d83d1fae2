"""What a notebook shows of a report: Markdown and figures as HTML that holds all of it, pictures too."""

import base64
import html
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

from markdown_it import MarkdownIt

from bora_sweep.report.figures.draw import draw
from bora_sweep.report.figures.style import render_png
from bora_sweep.report.text.captions import CaptionedFigure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MARKDOWN = MarkdownIt("commonmark", {"html": False}).enable("table")
_LINK = re.compile(r"(?:,| )*\[[^\]]*\]\(tables/[^)]*\)\.?")  # to files that a notebook is not beside
_DOTS_PER_INCH = 110


class Figures(dict[str, "Figure"]):
    """Figures by the names of their files; a notebook shows all, with their captions."""

    def __init__(self, captioned: Iterable[CaptionedFigure]) -> None:
        drawn = [shown for shown in captioned if shown.data is not None]
        super().__init__({shown.name: draw(shown.data) for shown in drawn if shown.data is not None})
        self._texts = {shown.name: (shown.alt, shown.caption) for shown in drawn}

    def html(self, name: str) -> str:
        """One figure with its caption."""
        return figure_html(self[name], *self._texts[name])

    def _repr_html_(self) -> str:
        return "\n".join(map(self.html, self))


def markdown_html(markdown: str) -> str:
    """Markdown of a report as HTML. A name from the data never acts as markup; links to its files are left out."""
    return _MARKDOWN.render(_LINK.sub("", markdown))


def figure_html(figure: "Figure", alt: str, caption: str) -> str:
    """A figure as an element that holds its picture."""
    picture = base64.b64encode(render_png(figure, _DOTS_PER_INCH)).decode()
    image = f'<img alt="{html.escape(alt)}" src="data:image/png;base64,{picture}" style="max-width: 100%">'
    return f"<figure>{image}<figcaption>{markdown_html(caption)}</figcaption></figure>"
