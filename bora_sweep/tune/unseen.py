"""At the end of a sweep: the fits that leave tasks out, at the tau that validation chose, in processes of Ray's."""

import os
from collections.abc import Callable

import ray
import torch
from ray.exceptions import RayError
from rich.console import Console
from rich.markup import escape

from bora_sweep.config import Config
from bora_sweep.data.tokens import TokenizedCorpus
from bora_sweep.errors import InputError, one_line, plural
from bora_sweep.process import Interrupted, defer_signals
from bora_sweep.report.stats.pool_trials import summarise
from bora_sweep.runs.requests import STOP_FILE, is_there
from bora_sweep.runs.results import read_results, read_trial_row
from bora_sweep.runs.storage import Folder, exists, folder_at
from bora_sweep.train.checkpoint import record_oom
from bora_sweep.trials.unseen import Fold, read_fold, run_fold, trial_folds, write_unseen
from bora_sweep.tune.gpu_share import limit_gpu_memory
from bora_sweep.tune.points import point_of, trial_config
from bora_sweep.tune.ray_patches import KILLED_BY_MONITOR
from bora_sweep.tune.watchdog import StopCheck, watchdog
from bora_sweep.tune.worker import cached_base

WAIT_SECONDS = 1.0
"""Between two looks for a signal."""


def fit_unseen(
    config: Config,
    corpus: TokenizedCorpus,
    run: str,
    *,
    resources: dict[str, float],
    at_once: int,
    console: Console,
    stop: Callable[[], None],
) -> bool:
    """Make the folds of the best trial that are missing, and fill its column `unseen_nll_nats` once there are all.

    A fold that fails is tried again as a trial would be, then named on `console`; `--resume` tries it once more.

    Args:
        config: The sweep's, with numbers where settings were `auto`.
        corpus: Of all tasks.
        run: Path or address of the run's folder.
        resources: What one process of a trial reserves.
        at_once: Fits that run at once.
        console: Gets a line for each fold.
        stop: Called when a signal arrives; writes `STOP_FILE`, which makes the folds' `StopCheck` end them.

    Returns:
        Whether it came to its end; False where it was interrupted.
    """
    folder = folder_at(run)
    trial_id = best_trial(folder)
    if trial_id is None:
        return True
    config = config_of_trial(config, folder, trial_id)
    folds = trial_folds(config, corpus, folder, trial_id)
    missing = [fold for fold in folds if read_fold(fold) is None]
    if missing:
        console.print(f"tasks without text: {plural(len(missing), 'fit')} that leave tasks out, as trial {trial_id}")
    with defer_signals(stop):
        _Folds(config, corpus, run, trial_id, resources).run(missing, at_once, console)
    if all(read_fold(fold) is not None for fold in folds):
        write_unseen(folder, trial_id, folds)
        return True
    return not exists(folder / STOP_FILE)


def best_trial(run: Folder) -> str | None:
    """The trial of the report's best fit, of several seeds the first; None where no fit has finished."""
    try:
        summary = summarise(read_results(run))
    except InputError:  # nothing to report, which the sweep itself says
        return None
    return min(trial_id for _, trial_id in summary.settings[summary.best].trials)


def config_of_trial(config: Config, run: Folder, trial_id: str) -> Config:
    """The configuration of a trial of the sweep."""
    row = read_trial_row(run, trial_id)
    point = None if row is None else point_of(row)
    assert row is not None
    assert point is not None
    return trial_config(config, point, row["seed"] - config.train.seed)


class _Folds:
    """Folds that run in processes of Ray's, so many at once."""

    def __init__(
        self, config: Config, corpus: TokenizedCorpus, run: str, trial_id: str, resources: dict[str, float]
    ) -> None:
        umask = os.umask(0)
        os.umask(umask)
        self.stop_file = folder_at(run) / STOP_FILE
        self.config, self.arguments = config, (config, ray.put(corpus), run, trial_id, umask)
        options = {"num_cpus": resources["CPU"], "num_gpus": resources["GPU"], "max_retries": 0}
        self.remote = ray.remote(_run_fold).options(**options)
        self.failures: dict[int, int] = {}

    def run(self, missing: list[Fold], at_once: int, console: Console) -> None:
        """Run them; those that wait when the run is to stop are not begun."""
        waiting, running = list(missing), {}
        while waiting or running:
            if is_there(self.stop_file):
                waiting = []
            while waiting and len(running) < at_once:
                fold = waiting.pop(0)
                running[self.remote.remote(fold.number, *self.arguments)] = fold
            for ended in ray.wait(list(running), timeout=WAIT_SECONDS)[0] if running else []:
                fold = running.pop(ended)
                if self._is_to_retry(fold, ended, console):
                    waiting.append(fold)

    def _is_to_retry(self, fold: Fold, ended: ray.ObjectRef, console: Console) -> bool:
        """Report how a fold ended; whether it is to be run again."""
        try:
            if ray.get(ended):
                console.print(f"{fold.name}: done")
            return False
        except RayError as error:  # also whatever the fold raised, as an instance of its class
            self.failures[fold.number] = self.failures.get(fold.number, 0) + 1
            if KILLED_BY_MONITOR in str(error):
                record_oom(fold.folder)
            if self.failures[fold.number] <= self.config.ray.max_failures and not isinstance(error, InputError):
                return True
            reason = escape(one_line(getattr(error, "cause", error)))
            console.print(f"[bold red]{fold.name} failed:[/] {reason}; --resume tries it again")
            return False


def _run_fold(number: int, config: Config, corpus: TokenizedCorpus, run: str, trial_id: str, umask: int) -> bool:
    """A fold in a process of Ray's; False where the run is to stop."""
    os.umask(umask)
    torch.set_num_threads(max(1, int(config.ray.cpus_per_trial)))
    limit_gpu_memory(config)
    folder = folder_at(run)
    check_stop = StopCheck(folder)
    fold = trial_folds(config, corpus, folder, trial_id)[number - 1]
    try:
        with watchdog(check_stop, config.ray.trial_timeout, lambda _: None):
            check_stop()
            run_fold(fold, config, corpus, cached_base(config.model, config.data, run), check_stop=check_stop)
    except Interrupted:
        return False
    return True
