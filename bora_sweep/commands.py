"""The commands of `bora-sweep`, one function each. Each returns its exit code.

0: done. 1: the run failed, and what finished is kept; or what is planned does not fit. 2: the input is wrong, with one
message. 130: interrupted.
"""

import argparse
import json
import os
import shlex
import time
import traceback
import webbrowser
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from bora_sweep.config import Setting, is_setting, load_config
from bora_sweep.errors import InputError, one_line, plural, redact, visible
from bora_sweep.runs.storage import Folder, StorageFullError, exists, folder_at, read_bytes, write_bytes

DONE, FAILED, WRONG_INPUT, INTERRUPTED = 0, 1, 2, 130
PAGE = "index.html"

if os.environ.get("COLUMNS") == "0":  # some programs set it without a terminal, and rich would print nothing
    del os.environ["COLUMNS"]
err = Console(stderr=True, highlight=False, soft_wrap=True)
out = Console(highlight=False, soft_wrap=True)


def fit(parsed: argparse.Namespace) -> int:
    """Fit at one value of tau."""
    from bora_sweep.launch import join_processes

    with join_processes(parsed.settings, parsed.resume) as is_rank_zero:
        err.quiet = out.quiet = not is_rank_zero
        return _fit(parsed, is_rank_zero)


def _fit(parsed: argparse.Namespace, is_rank_zero: bool) -> int:
    from bora_sweep.launch import claim_run, run_fit
    from bora_sweep.prepare import prepare_fit

    prepared = prepare_fit(parsed.settings, parsed.resume, err)
    if not is_rank_zero:
        run_fit(prepared, err)
        return DONE

    def work() -> int:
        with claim_run(prepared, "fit"):
            row = run_fit(prepared, err)
        if row["stopped_by"] == "divergence":
            err.print(f"[yellow]ended at its best epoch:[/] {escape(row['error'])}")
        test, epoch = row["test_perplexity"], row["best_epoch"]
        means = json.loads(row["test_metrics"] or "{}")
        shown = "".join(f", {escape(name)} {mean:.3f}" for name, mean in means.items())
        out.print(f"test perplexity {test:.3f}{shown}, best epoch {epoch}, results in {escape(str(prepared.run))}")
        return DONE

    return _with_resume_hint("fit", prepared.run, work)


def sweep(parsed: argparse.Namespace) -> int:
    """Search tau on Ray, then write a report."""
    from bora_sweep.launch import claim_run, run_prepared_sweep
    from bora_sweep.prepare import prepare_sweep
    from bora_sweep.report import write_report
    from bora_sweep.runs.results import trial_rows

    prepared = prepare_sweep(parsed.settings, parsed.resume, err)

    def work() -> int:
        with claim_run(prepared, "sweep"):
            is_complete = run_prepared_sweep(prepared, err)
            rows = trial_rows(prepared.run)
            failed = [row for row in rows if row["status"] == "failed"]
            for row in failed:
                err.print(f"[bold red]trial {row['trial_id']} failed:[/] {escape(row['error'] or 'no reason known')}")
            for row in rows:
                if row["stopped_by"] == "divergence":
                    err.print(f"[yellow]trial {row['trial_id']} ended at its best epoch:[/] {escape(row['error'])}")
            if any(row["status"] == "finished" and row["method"] == "map" for row in rows):
                _show_report(write_report(prepared.run))
        if not is_complete:
            raise KeyboardInterrupt
        return FAILED if failed else DONE

    return _with_resume_hint("sweep", prepared.run, work)


def add(parsed: argparse.Namespace) -> int:
    """Fit adapters for tasks that a run has not seen, then write a report."""
    from bora_sweep.launch import claim_run, run_fit
    from bora_sweep.prepare_add import prepare_add
    from bora_sweep.report.added import write_added_report

    paths = [a for a in parsed.settings if not is_setting(a) and not a.endswith((".yaml", ".yml"))]
    if len(paths) > 2:
        raise InputError(f"add: {paths[2]!r} is one too many; give one run, one file, and settings such as output=…")
    settings: list[Setting] = [a for a in parsed.settings if a not in paths]
    if len(paths) == 2:
        also_named = next((a for a in settings if isinstance(a, str) and a.startswith("data.path=")), None)
        if also_named is not None:
            raise InputError(f"{also_named}: {paths[1]} names the documents too; drop one of the two")
        settings.append({"data": {"path": paths[1]}})
    run = paths[0] if paths else None
    prepared = prepare_add(run, settings, err, trial=parsed.trial, refresh=parsed.refresh, resume=parsed.resume)

    def work() -> int:
        with claim_run(prepared, "add"):
            row = run_fit(prepared, err)
            if row["stopped_by"] == "divergence":
                err.print(f"[yellow]ended at its best epoch:[/] {escape(row['error'])}")
            _show_report(write_added_report(prepared.run))
        return DONE

    return _with_resume_hint("add", prepared.run, work)


def plan(parsed: argparse.Namespace) -> int:
    """Show whether a fit fits on a card; exit with 1 if it does not."""
    from bora_sweep.plan import make_plan, render

    planned = make_plan(parsed.settings, parsed.card, parsed.tasks)
    for part in render(planned):
        out.print(part)
    return DONE if planned.is_fitting else FAILED


def status(parsed: argparse.Namespace) -> int:
    """Show the progress of a run; with `--watch` repeatedly, until no process works on it."""
    from bora_sweep.tune.status import render, run_status

    if parsed.watch is not None and not 0 < parsed.watch < float("inf"):
        raise InputError(f"--watch {parsed.watch:g}: need a finite number of seconds above 0")
    run = folder_at(parsed.run)
    while True:
        stands = run_status(run)
        if parsed.watch is not None:
            out.clear()  # has an effect in a terminal only
        out.print(render(stands))
        if parsed.watch is None or not stands.is_driven:
            return DONE
        time.sleep(parsed.watch)


def report(parsed: argparse.Namespace) -> int:
    """Write tables, figures and a page of a run; with `--open` show the page in a browser."""
    from bora_sweep.report import write_report

    run = folder_at(parsed.run)
    if parsed.open and not isinstance(run, Path):
        raise InputError(f"--open {run}: is not on this machine; drop --open, and copy {run}/report/index.html here")
    written = write_report(run, against_paper=parsed.against == "paper")
    if parsed.open and not exists(written.parent / PAGE):
        raise InputError(f"--open {run}: the report of an add has no page; read {written}")
    _show_report(written)
    if parsed.against == "paper":
        _show_paper(written.parent / "paper.md")
    if parsed.open and not webbrowser.open((written.parent / PAGE).absolute().as_uri()):
        err.print("no browser found to open the page with")
    return DONE


def export(parsed: argparse.Namespace) -> int:
    """Write a trial's adapters as folders that PEFT loads."""
    from bora_sweep.runs.folder import config_of
    from bora_sweep.serve.bank import export_bank
    from bora_sweep.serve.export import export as write_folders

    if parsed.bank:
        tasks = export_bank(parsed.run, parsed.out, parsed.trial, parsed.task)
    else:
        tasks = write_folders(parsed.run, parsed.out, parsed.trial, parsed.task, merge=parsed.merge)
    what = "full models" if parsed.merge else "a bank of adapters" if parsed.bank else "adapters"
    out.print(f"{escape(parsed.out)}: {what} of _global and {plural(len(tasks), 'task')}, named in tasks.json")
    if (quantization := config_of(folder_at(parsed.run)).model.quantization) is not None:
        where = "merged into the base as it was before" if parsed.merge else "as the cards load the base"
        out.print(f"fitted and scored on a base in {quantization}, {where}")
    return DONE


def generate(parsed: argparse.Namespace) -> int:
    """Generate text from several adapters, one below the other."""
    from bora_sweep.serve.generate import Sampling, prompts_of
    from bora_sweep.serve.generate import generate as texts_of

    sampling = Sampling(parsed.max_new_tokens, parsed.temperature, parsed.seed)
    prompts = prompts_of(
        parsed.prompt, chat=parsed.chat, system=parsed.system, file=parsed.messages, columns=parsed.column
    )
    replies = texts_of(folder_at(parsed.run), prompts, parsed.task, parsed.trial, sampling)
    for number, (prompt, texts) in enumerate(replies):
        out.print(("\n" if number else "") + escape(visible(prompt.shown)))
        for name, text in texts:
            out.print(f"\n[bold]== {escape(visible(name))} ==[/]\n{escape(visible(text))}")
    return DONE


def forget(parsed: argparse.Namespace) -> int:
    """Take tasks out of a run or an export, and say what is still there of them."""
    from bora_sweep.forgetting import forget as take_out

    done = take_out(parsed.run, parsed.task)
    names = ", ".join(repr(name) for name in done.tasks)
    out.print(escape(f"{done.place}: {plural(len(done.tasks), 'task')} taken out: {names}"))
    for note in done.notes:
        out.print(escape(f"• {note}"))
    if done.refit is not None:
        out.print(escape(f"to fit anew without: {done.refit}"))
    return DONE


def describe(parsed: argparse.Namespace) -> int:
    """Describe each corpus that is named, or else that of the settings."""
    from bora_sweep.data.corpus import load_corpus
    from bora_sweep.data.describe import describe as describe_corpus
    from bora_sweep.data.describe import example
    from bora_sweep.data.known_documents import record_folders
    from bora_sweep.data.tokens import token_notes, tokenize_for
    from bora_sweep.model.base import load_tokenizer

    paths = [a for a in parsed.settings if not is_setting(a) and not a.endswith((".yaml", ".yml"))]
    settings = [a for a in parsed.settings if a not in paths]
    also_named = next((setting for setting in settings if setting.startswith("data.path=")), None)
    if paths and also_named is not None:
        raise InputError(f"{also_named}: {paths[0]} names a corpus too; drop one of the two")
    for config in [load_config([*settings, {"data": {"path": path}}]) for path in paths] or [load_config(settings)]:
        corpus = load_corpus(config.data, record_folders(config))
        if config.model.name is None and config.data.kind != "synthetic":
            for part in describe_corpus(corpus):
                out.print(part)
            continue
        tokenizer = load_tokenizer(config.model, config.data)
        tokenized = tokenize_for(config, corpus, tokenizer)
        notes = [f"• {escape(note)}" for note in token_notes(tokenized)]
        for part in (*describe_corpus(corpus, tokenized.table()), *notes):
            out.print(part)
        out.print(example(tokenized, tokenizer, in_color=out.is_terminal))
    return DONE


def _with_resume_hint(command: str, run: Folder, work: Callable[[], int]) -> int:
    """The exit code of `work`. If it is interrupted or fails, print the command that resumes the run."""
    hint = escape(f"resume with: bora-sweep {command} --resume output={shlex.quote(str(run))}")
    try:
        return work()
    except KeyboardInterrupt:
        err.print(f"interrupted; {hint}")
        return INTERRUPTED
    except InputError:
        raise
    except Exception as error:
        with suppress(StorageFullError, OSError):
            write_bytes(run / "error.txt", redact(traceback.format_exc()).encode())
        err.print(f"[bold red]failed:[/] {escape(one_line(error))} (details in {escape(str(run))}/error.txt); {hint}")
        return FAILED


def _show_report(path: Folder) -> None:
    """Print the report's answer, which is the first paragraph after the title, and where the rest is."""
    paragraphs = read_bytes(path).decode().split("\n\n")
    out.print(escape(next(text for text in paragraphs if text and not text.startswith("#"))))
    out.print(escape(f"report: {path}"))
    if exists(path.parent / PAGE):  # an add has none
        out.print(escape(f"page: {path.parent / PAGE}"))


def _show_paper(path: Folder) -> None:
    """Print the beginning of `paper.md`: its answer, and Table 1 beside ours."""
    from rich.markdown import Markdown

    _, answer, table, *_ = read_bytes(path).decode().split("\n\n")
    out.print(Markdown(f"{answer}\n\n{table}"))
    out.print(escape(f"comparison with the paper: {path}"))
