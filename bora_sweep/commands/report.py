"""`bora-sweep report`."""

import argparse
import webbrowser
from pathlib import Path

from rich.markup import escape

from bora_sweep.commands.common import DONE, PAGE, err, out, show_report
from bora_sweep.errors import InputError
from bora_sweep.runs.storage import Folder, exists, folder_at, read_bytes

TEXT = """Write tables, figures and a page of a run, finished or not; of several runs, compare them.

With one RUN the report goes to RUN/report. With several, each stays as it is, and a comparison goes to --out: what
differs between them, the best tau of each, and paired differences on test where they scored the same documents."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("runs", nargs="+", metavar="RUN", help="the run's folder; several: runs to compare")
    parser.add_argument("--open", action="store_true", help="also show the page, RUN/report/index.html, in a browser")
    text = "write one page in everyday words instead, RUN/report/manager.md and .html"
    parser.add_argument("--for", dest="reader", choices=["manager"], help=text)
    parser.add_argument("--against", choices=["paper"], help="also compare the run with the paper's results")
    parser.add_argument(
        "--out", metavar="FOLDER", help="of several runs: where the comparison goes; default: comparison"
    )


def run(parsed: argparse.Namespace) -> int:
    """Write tables, figures and a page of a run; with `--open` show the page in a browser. Of several, compare them."""
    if len(parsed.runs) > 1:
        return _compare(parsed)
    from bora_sweep.report import write_report

    (path,) = parsed.runs
    if parsed.out is not None:
        raise InputError(f"--out {parsed.out}: is for the comparison of several runs; the report of {path} is in it")
    run = folder_at(path)
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


def _compare(parsed: argparse.Namespace) -> int:
    from rich.markdown import Markdown

    from bora_sweep.report import Comparison
    from bora_sweep.report.comparison.words import overview

    options = {"--open": parsed.open, "--for": parsed.reader, "--against": parsed.against}
    for option, is_given in options.items():
        if is_given:
            raise InputError(f"{option}: is of one run; drop it, or give one of {', '.join(parsed.runs)}")
    comparison = Comparison(parsed.runs)
    written = comparison.write("comparison" if parsed.out is None else parsed.out)
    out.print(Markdown(overview(comparison)))
    out.print(escape(f"comparison: {written}"))
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
