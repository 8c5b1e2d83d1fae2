"""What each command of `bora-sweep` does; each returns its exit code.

Exit codes: 0 done; 1 the run failed (what finished is kept); 2 the input is wrong (one message); 130 interrupted.
"""

import argparse
import shlex
import traceback
import webbrowser
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape

from bora_sweep.config import Config, load_config
from bora_sweep.data.tokens import TokenizedCorpus
from bora_sweep.errors import InputError, one_line, redact
from bora_sweep.interrupt import noting_signals
from bora_sweep.runs import create_run, driving, new_run, reopen_run
from bora_sweep.storage import Folder, StorageFullError, folder_at, read_bytes, write_bytes

if TYPE_CHECKING:
    from transformers import PreTrainedModel

DONE, FAILED, WRONG_INPUT, INTERRUPTED = 0, 1, 2, 130
PAGE = "index.html"

err = Console(stderr=True, highlight=False, soft_wrap=True)
out = Console(highlight=False, soft_wrap=True)


def fit(parsed: argparse.Namespace) -> int:
    """One fit."""
    from bora_sweep.model.base import load_base
    from bora_sweep.progress import FitProgress
    from bora_sweep.train.device import refuse_other_count
    from bora_sweep.train.ranks import first, is_first, join
    from bora_sweep.train.run import Trial, run_trial

    join()
    err.quiet = out.quiet = not is_first()
    config, run = first(lambda: _open(parsed, "fit"))
    refuse_other_count(config)
    if config.method not in ("map", "vi", "zero_shot", "pfedme"):
        raise InputError(
            f"method={config.method}: begins with another trial's adapters; search.baselines of a sweep has it"
        )
    corpus = _tokenized(config)
    if not parsed.resume:
        _check_model(config, corpus)

    def base() -> "PreTrainedModel":
        return load_base(config.model, config.data)

    def work() -> int:
        with noting_signals(_say_stopping) as pulse, FitProgress(config.train.max_epochs, err) as bar:
            row = run_trial(Trial("fit", config), corpus, base, run, bar.on_step, bar.on_epoch, pulse)
        if row["stopped_by"] == "divergence":
            err.print(f"[yellow]ended at its best epoch:[/] {escape(row['error'])}")
        out.print(f"test perplexity {row['test_perplexity']:.3f}, best epoch {row['best_epoch']}, results in {run}")
        return DONE

    return _guarded("fit", config, run, work) if is_first() else work()


def sweep(parsed: argparse.Namespace) -> int:
    """Many fits on Ray, and a report of them."""
    from bora_sweep.report import write_report
    from bora_sweep.results import trial_rows
    from bora_sweep.sweep import run_sweep

    config, run = _open(parsed, "sweep")
    if config.init_from is not None:
        raise InputError(
            f"init_from={config.init_from}: only fit begins with adapters; a sweep compares fits that know nothing of "
            "the data but their own training: drop it"
        )
    corpus = _tokenized(config)
    groups = _check_model(config, corpus)

    def work() -> int:
        ended = run_sweep(config, corpus, run, groups, err)
        rows = trial_rows(run)
        failed = [row for row in rows if row["status"] == "failed"]
        for row in failed:
            err.print(f"[bold red]trial {row['trial_id']} failed:[/] {escape(row['error'] or 'no reason known')}")
        for row in rows:
            if row["stopped_by"] == "divergence":
                err.print(f"[yellow]trial {row['trial_id']} ended at its best epoch:[/] {escape(row['error'])}")
        if any(row["status"] == "finished" and row["method"] == "map" for row in rows):
            _show_report(write_report(run))
        if not ended:
            raise KeyboardInterrupt
        return FAILED if failed else DONE

    return _guarded("sweep", config, run, work)


def report(parsed: argparse.Namespace) -> int:
    """Tables, figures and a page of a run; with `--open` the page in a browser."""
    from bora_sweep.report import write_report

    run = folder_at(parsed.run)
    if parsed.open and not isinstance(run, Path):
        raise InputError(f"--open {run}: not on this machine; drop --open, and copy {run}/report/index.html to it")
    written = write_report(run)
    _show_report(written)
    if parsed.open and not webbrowser.open((written.parent / PAGE).absolute().as_uri()):
        err.print("no browser found to open the page with")
    return DONE


def export(parsed: argparse.Namespace) -> int:
    """Adapters in folders that PEFT loads."""
    from bora_sweep.data.read import counted
    from bora_sweep.export import export as write_folders

    folders = write_folders(folder_at(parsed.run), Path(parsed.out), parsed.trial, parsed.task, merge=parsed.merge)
    what = "full models" if parsed.merge else "adapters"
    out.print(f"{escape(parsed.out)}: {what} of _global and {counted(len(folders), 'task')}, named in tasks.json")
    return DONE


def generate(parsed: argparse.Namespace) -> int:
    """Texts of several adapters below one another."""
    from bora_sweep.generate import Sampling, visible
    from bora_sweep.generate import generate as texts_of

    sampling = Sampling(parsed.max_new_tokens, parsed.temperature, parsed.seed)
    texts = texts_of(folder_at(parsed.run), parsed.prompt, parsed.task, parsed.trial, sampling)
    out.print(escape(visible(parsed.prompt)))
    for name, text in texts:
        out.print(f"\n[bold]== {escape(visible(name))} ==[/]\n{escape(visible(text))}")
    return DONE


def describe(parsed: argparse.Namespace) -> int:
    """Tables of a corpus."""
    from bora_sweep.data.corpus import load_corpus
    from bora_sweep.data.describe import describe as describe_corpus
    from bora_sweep.data.tokens import tokenize
    from bora_sweep.model.base import load_tokenizer

    paths = [a for a in parsed.settings if "=" not in a and not a.endswith((".yaml", ".yml"))]
    config = load_config([*(a for a in parsed.settings if a not in paths), *(f"data.path={path}" for path in paths)])
    corpus = load_corpus(config.data)
    counts = None
    if config.model.name is not None or config.data.kind == "synthetic":
        counts = tokenize(corpus, load_tokenizer(config.model, config.data), config.model.max_tokens).table()
    for part in describe_corpus(corpus, counts):
        out.print(part)
    return DONE


def _open(parsed: argparse.Namespace, command: str) -> tuple[Config, Folder]:
    config, run = reopen_run(parsed.settings, command) if parsed.resume else new_run(parsed.settings, command)
    err.print(f"{'resuming' if parsed.resume else 'run folder'}: {run}")
    return config, run


def _tokenized(config: Config) -> TokenizedCorpus:
    from bora_sweep.data.corpus import load_corpus
    from bora_sweep.data.tokens import tokenize
    from bora_sweep.model.base import load_tokenizer

    corpus = load_corpus(config.data)
    for note in corpus.notes:
        err.print(f"[yellow]note:[/] {escape(note)}")
    tokenized = tokenize(corpus, load_tokenizer(config.model, config.data), config.model.max_tokens)
    num_cut = int(tokenized.documents["was_cut"].to_numpy().sum())
    err.print(f"{corpus.name}: {len(corpus.tasks)} tasks, {len(corpus.documents):,} documents, "
              f"{tokenized.num_tokens('train'):,} tokens to train on")  # fmt: skip
    if num_cut:
        longer = f"longer than model.max_tokens={config.model.max_tokens} and were cut"
        err.print(f"[yellow]note:[/] {num_cut:,} documents are {longer}")
    return tokenized


def _check_model(config: Config, corpus: TokenizedCorpus) -> list[str]:
    """Refuse a model, targets or adapters that no trial could use, before anything is begun.

    Returns:
        The groups of parameters that have a tau of their own.
    """
    from bora_sweep.model.adapters import make_layout
    from bora_sweep.model.base import empty_base, refuse_mismatch
    from bora_sweep.model.interchange import read_adapters
    from bora_sweep.model.prior import refuse_unknown_groups

    base = empty_base(config.model, config.data)
    refuse_mismatch(base, corpus.largest_token, corpus.longest)
    layout = make_layout(base, config.lora)
    if config.init_from is not None:
        read_adapters(Path(config.init_from), layout, config.lora, corpus.tasks)
    return refuse_unknown_groups(config.prior, layout)


def _say_stopping() -> None:
    err.print("stopping: writing a checkpoint … (Ctrl-C again to stop at once)")


def _guarded(command: str, config: Config, run: Folder, work: Callable[[], int]) -> int:
    """Run `work` as the only one in the run's folder; whatever ends it early, say how to go on from what is there."""
    hint = f"go on with: bora-sweep {command} --resume output={shlex.quote(str(run))}"
    try:
        with driving(run):
            create_run(config, run)
            return work()
    except KeyboardInterrupt:
        err.print(f"interrupted; {hint}")
        return INTERRUPTED
    except InputError:
        raise
    except Exception as error:
        with suppress(StorageFullError):
            write_bytes(run / "error.txt", redact(traceback.format_exc()).encode())
        err.print(f"[bold red]failed:[/] {escape(one_line(error))} (details in {run}/error.txt); {hint}")
        return FAILED


def _show_report(path: Folder) -> None:
    """The report's answer, its first paragraph after the title, and where the rest is."""
    paragraphs = read_bytes(path).decode().split("\n\n")
    out.print(escape(next(text for text in paragraphs if text and not text.startswith("#"))))
    out.print(f"report: {path}\npage: {path.parent / PAGE}")
