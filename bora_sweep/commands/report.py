"""`bora-sweep report`."""

import argparse
import webbrowser
from pathlib import Path

from rich.markup import escape

from bora_sweep.commands.common import DONE, PAGE, err, out, show_report
from bora_sweep.errors import InputError
from bora_sweep.runs.storage import Folder, exists, folder_at, read_bytes

TEXT = "Write tables, figures and a page of a run, finished or not."


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("run", metavar="RUN", help="the run's folder")
    parser.add_argument("--open", action="store_true", help="also show the page, RUN/report/index.html, in a browser")
    text = "write one page in everyday words instead, RUN/report/manager.md and .html"
    parser.add_argument("--for", dest="reader", choices=["manager"], help=text)
    parser.add_argument("--against", choices=["paper"], help="also compare the run with the paper's results")


def run(parsed: argparse.Namespace) -> int:
    """Write tables, figures and a page of a run; with `--open` show the page in a browser."""
    from bora_sweep.report import write_report

    run = folder_at(parsed.run)
    if parsed.open and not isinstance(run, Path):
        raise InputError(f"--open {run}: is not on this machine; drop --open, and copy {run}/report/index.html here")
    if parsed.reader is not None:
        return _for_manager(run, parsed)
    written = write_report(run, against_paper=parsed.against == "paper")
    if parsed.open and not exists(written.parent / PAGE):
        raise InputError(f"--open {run}: the report of an add has no page; read {written}")
    show_report(written)
    if parsed.against == "paper":
        _show_paper(written.parent / "paper.md")
    if parsed.open and not webbrowser.open((written.parent / PAGE).absolute().as_uri()):
        err.print("no browser found to open the page with")
    return DONE


def _for_manager(run: Folder, parsed: argparse.Namespace) -> int:
    """Write the page for the person who decides, and print what it advises."""
    from bora_sweep.report.manager import PAGE as MANAGER_PAGE
    from bora_sweep.report.manager import write_manager

    if parsed.against is not None:
        raise InputError("--against paper, --for manager: the comparison is part of the whole report; drop one of them")
    written = write_manager(run)
    page = written.parent / MANAGER_PAGE
    out.print(escape(read_bytes(written).decode().split("\n\n")[1]))
    out.print(escape(f"page for the person who decides: {written}"))
    out.print(escape(f"the same to print: {page}"))
    if parsed.open and not webbrowser.open(page.absolute().as_uri()):
        err.print("no browser found to open the page with")
    return DONE


def _show_paper(path: Folder) -> None:
    """Print the beginning of `paper.md`: its answer, and Table 1 beside ours."""
    from rich.markdown import Markdown

    _, answer, table, *_ = read_bytes(path).decode().split("\n\n")
    out.print(Markdown(f"{answer}\n\n{table}"))
    out.print(escape(f"comparison with the paper: {path}"))
