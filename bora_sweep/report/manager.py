"""Writes the page for the person who decides: `manager.md`, and `manager.html` that prints on one sheet."""

import html

from markdown_it import MarkdownIt

from bora_sweep.errors import InputError
from bora_sweep.report.added import is_added
from bora_sweep.report.stats.analysis import analyse
from bora_sweep.report.stats.method_comparison import compare_methods
from bora_sweep.report.stats.pool_trials import summarise
from bora_sweep.report.stats.recommendation import recommend
from bora_sweep.report.text.formats import plain
from bora_sweep.report.text.manager import manager_page
from bora_sweep.runs.results import read_results
from bora_sweep.runs.storage import Folder, folder_at, write_bytes

PAGE = "manager.html"
_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:42em;margin:2em auto;padding:0 1em;overflow-wrap:anywhere;"
    "color-scheme:light dark}h1{font-size:1.4em}h2{font-size:1.05em;margin:1.2em 0 .3em}p,ul,ol{margin:.3em 0}"
    "@media print{body{font-size:11pt;margin:0}}"
)


def write_manager(run: str | Folder) -> Folder:
    """Write the page of a run, finished or not.

    Args:
        run: The run's folder.

    Returns:
        The path of `RUN/report/manager.md`; `manager.html` is beside it.

    Raises:
        InputError: Not a run's folder, a run of `add`, or no fit has finished yet.
    """
    run = folder_at(run)
    results = read_results(run)
    if is_added(results):
        raise InputError(f"{run}: is a run of `add`, which chooses nothing; its report.md is all there is")
    summary = summarise(results)
    analysis = analyse(summary)
    name = run.absolute().name
    text = manager_page(analysis, recommend(analysis), compare_methods(summary), name)
    page = run / "report" / "manager.md"
    write_bytes(page.parent / PAGE, _page(text, name))
    write_bytes(page, f"{text}\n".encode())
    return page


def _page(text: str, name: str) -> bytes:
    """The Markdown as a page of its own, which has no script and asks nothing of any network."""
    body = MarkdownIt("commonmark", {"html": False}).render(text)
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f"<title>{html.escape(plain(name, 80))} · what to serve</title><style>{_STYLE}</style>"
    )
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n{body}</body></html>\n'.encode()
