"""The page `index.html`: one file that draws itself from the document within it, and asks nothing of any network."""

import base64
import hashlib
import html
from functools import cache
from importlib.resources import files
from typing import Any

import vl_convert

from bora_sweep.report.figures.style import PALETTE
from bora_sweep.report.html.document import to_json
from bora_sweep.report.text.formats import plain

_SCRIPTS = (
    "elements.js",
    "charts.js",
    "tau.js",
    "by_size.js",
    "learning.js",
    "tables.js",
    "alike.js",
    "scroll.js",
    "page.js",
)


def page(document: dict[str, Any]) -> bytes:
    """The page of `document`; the same document always gives the same bytes.

    What may run and what may style it is named by hash in its Content-Security-Policy, and all else is refused: no
    text from the data could act as a script, were it ever taken for one.
    """
    ours = "\n".join(_asset(name) for name in _SCRIPTS)
    ours = f"(() => {{\n{ours}}})();"  # a scope of its own: the bundle declares some thousand names at the top
    scripts, style = [_vega(), ours], _asset("page.css").replace("/* palette */", _palette())
    policy = "; ".join(
        [
            "default-src 'none'",
            f"script-src {' '.join(map(_hash, scripts))}",
            f"style-src {_hash(style)}",
            "base-uri 'none'",
            "form-action 'none'",
        ]
    )
    parts = {
        "[policy]": policy,
        "[title]": html.escape(plain(", ".join(document["runs"]), 80)) + " · bora_sweep",
        "[style]": style,
        "[data]": to_json(document),
        "[scripts]": "\n".join(f"<script>{script}</script>" for script in scripts),
    }
    text = _asset("page.html")
    for mark, part in parts.items():
        before, after = text.split(mark)
        text = f"{before}{part}{after}"
    return text.encode()


def _palette() -> str:
    """The figures' colors as custom properties of CSS."""
    return "\n".join(f"  --{name}: light-dark({light}, {dark});" for name, (_, light, dark) in PALETTE.items())


@cache
def _vega() -> str:
    """Vega with Vega-Embed, as vl-convert bundles them; it interprets expressions, so that no text is made a script."""
    bundle = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    assert "</script" not in bundle and "<!--" not in bundle, "the bundle would end its element"  # noqa: PT018
    return bundle


@cache
def _asset(name: str) -> str:
    return (files("bora_sweep.report.html") / "assets" / name).read_text(encoding="utf-8")


def _hash(content: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"
