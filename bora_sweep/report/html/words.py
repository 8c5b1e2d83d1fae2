"""The report's Markdown as a reader sees it, for the page."""

from collections.abc import Iterable
from typing import Any

from markdown_it import MarkdownIt

_MARKDOWN = MarkdownIt("commonmark").enable("table")

Words = list[list[tuple[str, str]]]
"""Paragraphs of (style, text); a style is "", strong, em, code, sup or the address of a table."""


def words(markdown: str) -> Words:
    """Paragraphs without headings and tables."""
    paragraphs, inside = [], ""
    for token in _MARKDOWN.parse(markdown):
        if token.type in ("table_open", "heading_open"):
            inside = token.type.replace("open", "close")
        elif token.type == inside:
            inside = ""
        elif token.type == "inline" and not inside:
            paragraphs.append(_runs(token.children or []))
    return paragraphs


def _runs(children: Iterable[Any]) -> list[tuple[str, str]]:
    """Runs of text, each with its style."""
    runs: list[tuple[str, str]] = []
    style = ""
    for child in children:
        if child.type in ("strong_open", "em_open"):
            style = child.type.removesuffix("_open")
        elif child.type == "html_inline":
            style = "sup" if child.content == "<sup>" else ""
        elif child.type == "link_open":
            style = child.attrs["href"]
        elif child.type.endswith("_close"):
            style = ""
        elif child.type == "code_inline":
            runs.append(("code", child.content))
        elif text := " " if child.type == "softbreak" else child.content:
            before = runs.pop()[1] if runs and runs[-1][0] == style else ""
            runs.append((style, before + text))
    return runs
