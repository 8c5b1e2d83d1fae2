"""Hooks of `mkdocs build`: pages at their places in the repository, and equations as MathML.

Links then mean the same in the repository and on the site, and the site needs no script from elsewhere.
"""

import re
from html import unescape
from pathlib import Path

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
SHOWN = [
    "README.md", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "docs/*.md", "docs/*.ipynb", "docs/figures/*",
    "examples/*", "benchmarks/results/*.md", "benchmarks/results/*.jsonl", "benchmarks/results/*.png",
    "bora_sweep/config/protocol/*.yaml",
]  # fmt: skip
EQUATION = re.compile(r'<(?:span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</(?:span|div)>', re.DOTALL)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    paths = [path for pattern in SHOWN for path in sorted(ROOT.glob(pattern)) if path.is_file()]
    of_theme = [file for file in files if file.src_dir != config.docs_dir]
    ours = [File(str(path.relative_to(ROOT)), str(ROOT), config.site_dir, config.use_directory_urls) for path in paths]
    return Files([*of_theme, *ours])


def on_page_content(html: str, **_: object) -> str:
    def as_mathml(match: re.Match[str]) -> str:
        tex = unescape(match[2]).replace(r"\log ", r"\log\, ").replace(r"\max_", r"\max\limits_")  # as TeX sets them
        return convert(tex, display="inline" if match[1] == "(" else "block")

    return EQUATION.sub(as_mathml, html)
