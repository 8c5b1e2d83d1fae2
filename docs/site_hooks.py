"""Hooks of `mkdocs build`: pages at their places in the repository, and equations as MathML.

Links then mean the same in the repository and on the site, and the site needs no script from elsewhere. Pages are
CommonMark, which MkDocs reads a little differently; a page that would lose structure is a warning.
"""

import logging
import re
from collections import Counter
from html import unescape
from pathlib import Path

from latex2mathml.converter import convert
from markdown_it import MarkdownIt
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
SHOWN = [
    "README.md", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "docs/*.md", "docs/*.ipynb", "docs/figures/*",
    "examples/*", "benchmarks/results/*.md", "benchmarks/results/*.jsonl", "benchmarks/results/*.png",
    "bora_sweep/**/*.py", "bora_sweep/config/protocol/*.yaml",
]  # fmt: skip
EQUATION = re.compile(r'<(?:span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</(?:span|div)>', re.DOTALL)
FENCE = re.compile(r"^( *```\w+) .*$", re.MULTILINE)
BLOCK = re.compile(r"<(h[1-6]|ul|ol|li|pre|table|blockquote)\b")
log = logging.getLogger("mkdocs.hooks.site")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    paths = [path for pattern in SHOWN for path in sorted(ROOT.glob(pattern)) if path.is_file()]
    of_theme = [file for file in files if file.src_dir != config.docs_dir]
    ours = [File(str(path.relative_to(ROOT)), str(ROOT), config.site_dir, config.use_directory_urls) for path in paths]
    return Files([*of_theme, *ours])


def on_page_markdown(markdown: str, **_: object) -> str:
    return FENCE.sub(r"\1", markdown)  # of "```bash no-run", MkDocs knows the language alone


def on_page_content(html: str, page: Page, **_: object) -> str:
    """The page with its equations as MathML."""
    markdown = page.markdown or ""
    expected = Counter(BLOCK.findall(MarkdownIt("commonmark").enable("table").render(markdown)))
    if "\n:::" not in markdown and (lost := expected - Counter(BLOCK.findall(html))):
        log.warning(f"{page.file.src_uri}: lost {dict(lost)}; is there a blank line before each list and block?")

    def as_mathml(match: re.Match[str]) -> str:
        tex = unescape(match[2]).replace(r"\log ", r"\log\, ").replace(r"\max_", r"\max\limits_")  # as TeX sets them
        return convert(tex, display="inline" if match[1] == "(" else "block")

    return EQUATION.sub(as_mathml, html)
