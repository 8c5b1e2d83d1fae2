"""Run a fit or a sweep that has been prepared: join its processes, claim its folder, and do the work."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape

from bora_sweep.config import Config, Setting
from bora_sweep.errors import InputError, plural
from bora_sweep.prepare import PreparedRun
from bora_sweep.process import defer_signals
from bora_sweep.runs.folder import FIT, create_run, new_run, reopen_run
from bora_sweep.runs.run_lock import run_lock
from bora_sweep.runs.storage import Folder, exists

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from bora_sweep.data.tokens import TokenizedCorpus


@contextmanager
def join_processes(settings: Sequence[Setting], resume: bool) -> Iterator[bool]:
    """Join the processes that a launcher such as torchrun started for a fit; without a launcher there is one.

    Yields:
        Whether this process has rank zero, which alone prints and writes.

    Raises:
        InputError: The launcher's variables in the environment do not match the fit, or not all processes came.
    """
    from bora_sweep.train.distributed import process_group

    rank, count = process_group.launcher_rank()
    if count > 1 and (rank == 0 or not resume):  # only rank zero is sure to see the run's folder
        config, _ = (reopen_run if resume else new_run)(settings, "fit")
        process_group.check_launcher(config.ray.workers_per_trial)
    with process_group.joined_processes():
        yield process_group.is_rank_zero()


@contextmanager
def claim_run(prepared: PreparedRun, command: str, console: Console) -> Iterator[None]:
    """Write the run's folder with its configuration, and let this process alone work on it within the context.

    Args:
        prepared: The run.
        command: `fit`, `sweep` or `add`.
        console: Gets the folder's name, once the run has begun.

    Raises:
        InputError: Another process works on it.
    """
    from bora_sweep.data.known_documents import write_documents
    from bora_sweep.trials.add import write_foundation
    from bora_sweep.trials.fingerprints import write_fingerprints
    from bora_sweep.tune.numbering import write_numbering

    run = prepared.run
    with run_lock(run, command):
        if not prepared.resumed and exists(run / "config.yaml"):  # since it was checked
            raise InputError(f"output={run}: another process has just begun a run there; give another output")
        if prepared.record is not None:
            write_documents(run, prepared.record)
        write_fingerprints(run, prepared.fingerprints)
        if prepared.foundation is not None:
            write_foundation(run, prepared.foundation)
        if prepared.numbering is not None:  # before the configuration, which may ask for more than was numbered
            write_numbering(run, prepared.numbering)
        create_run(prepared.config, run)
        console.print(f"{'resuming' if prepared.resumed else 'run folder'}: {escape(str(run))}")
        yield


def run_fit(prepared: PreparedRun, console: Console, model: "PreTrainedModel | None" = None) -> dict[str, Any]:
    """Fit, or add tasks, with progress on `console`. Ctrl-C writes a checkpoint first.

    Args:
        prepared: The run.
        console: Shows the progress.
        model: The base model, where it is loaded already.

    Returns:
        The fit's row of `trials`.
    """
    from bora_sweep.model.base import load_base
    from bora_sweep.progress import FitProgress
    from bora_sweep.train.distributed.process_group import from_rank_zero
    from bora_sweep.trials.add import run_add
    from bora_sweep.trials.pass_cost import about_pass, with_measured_pass
    from bora_sweep.trials.rate_test import with_chosen_rate
    from bora_sweep.trials.trial import Trial, run_trial
    from bora_sweep.tune.watchdog import StopCheck

    config, run = prepared.config, prepared.run

    def base() -> "PreTrainedModel":
        return load_base(config.model, config.data) if model is None else model

    def say_stopping() -> None:
        console.print("stopping after this step … (Ctrl-C again to stop at once)")

    stop_asked = StopCheck(run)
    with defer_signals(say_stopping) as check_signal:

        def check_stop() -> None:
            check_signal()
            stop_asked()

        if config.train.pass_tokens == "auto":
            model = base()
            config = with_measured_pass(config, prepared.corpus, model)
            from_rank_zero(lambda: create_run(config, run))
            console.print(about_pass(config))
        if config.train.learning_rate == "auto":
            model = base()
            config, about_rate = with_chosen_rate(config, prepared.corpus, model, check_stop)
            from_rank_zero(lambda: create_run(config, run))
            console.print(about_rate)
        with FitProgress(config.train.max_epochs, console) as bar:
            place = prepared.corpus, base, run
            calls = {"on_step": bar.on_step, "on_epoch": bar.on_epoch, "check_stop": check_stop}
            if config.method == "add":
                return run_add(config, *place, **calls)
            row = run_trial(Trial(FIT, config), *place, **calls)
        if config.search.unseen_folds is not None:
            _fit_unseen(config, prepared.corpus, base, run, console, check_stop)
    return row


def _fit_unseen(
    config: Config,
    corpus: "TokenizedCorpus",
    load_base: Callable[[], "PreTrainedModel"],
    run: Folder,
    console: Console,
    check_stop: Callable[[], None],
) -> None:
    """The fits that leave tasks out, one after another, with progress on `console`."""
    from bora_sweep.progress import FitProgress
    from bora_sweep.trials.unseen import read_fold, run_fold, trial_folds, write_unseen

    folds = trial_folds(config, corpus, run, FIT)
    missing = [fold for fold in folds if read_fold(fold) is None]
    model = load_base() if missing else None
    for fold in missing:
        assert model is not None
        check_stop()
        console.print(f"{fold.name}: {plural(len(fold.tasks), 'task')} left out")
        with FitProgress(config.train.max_epochs, console) as bar:
            run_fold(fold, config, corpus, model, on_step=bar.on_step, on_epoch=bar.on_epoch, check_stop=check_stop)
    write_unseen(run, FIT, folds)


def run_prepared_sweep(prepared: PreparedRun, console: Console) -> bool:
    """Fit every trial of a sweep; False if it was interrupted."""
    from bora_sweep.tune import run_sweep

    return run_sweep(prepared.config, prepared.corpus, prepared.run, prepared.groups, console)
