"""Workers that are lost: what Tune makes of it, what it gets wrong, and which trials begin again in smaller parts.

A process that is killed for its node's memory can say nothing. The driver learns of it from Ray's memory monitor, and
leaves a note in the trial's folder before the trial begins again. What the kernel kills looks like any other lost
process: Ray's monitor is there to be first.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ray.air.execution._internal.actor_manager import RayActorManager
from ray.air.execution._internal.tracked_actor_task import TrackedActorTask
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.tune.error import TuneError
from ray.tune.execution import class_cache
from ray.tune.execution.tune_controller import TuneController
from ray.tune.experiment import Trial

from bora_sweep.runs.storage import Folder
from bora_sweep.train.checkpoint import record_oom

MONITOR = "low on memory"
"""Stands in what Ray says of a worker that its monitor killed, and not of one that died otherwise."""


@contextmanager
def patch_worker_failures(run: Folder) -> Iterator[list[tuple[dict[str, Any], Exception]]]:
    """Within, a worker that is lost in whatever way is one failure of the trial that it had.

    Tune knows two kinds of Ray's errors, and ends the whole sweep at any other: a worker killed for memory is one. And
    of a worker that dies between two trials it hears twice, and at the second time gives the trial up.

    Args:
        run: The run's folder.

    Yields:
        The fits that Tune gives up, and why: its own results do not name a fit that never reported, and the errors
        that it keeps in files may not be there yet.
    """
    given_up: list[tuple[dict[str, Any], Exception]] = []
    task_failed, trial_failed = RayActorManager._actor_task_failed, TuneController._process_trial_failure

    def known(self: RayActorManager, tracked_actor_task: TrackedActorTask, exception: Exception) -> None:
        is_other = isinstance(exception, RayError) and not isinstance(exception, (RayActorError, RayTaskError))
        task_failed(self, tracked_actor_task, RayActorError(error_msg=str(exception)) if is_other else exception)

    def once(self: TuneController, trial: Trial, exception: TuneError | RayTaskError | RayActorError) -> None:
        is_lost = isinstance(exception, RayActorError) and trial in self._resetting_trials
        if is_lost and trial.status == Trial.PENDING:  # the first time made it so
            self._resetting_trials.remove(trial)
            return
        has_ended = trial.is_finished()
        trial_failed(self, trial, exception)
        if not has_ended and trial.is_finished():
            given_up.extend((fit, exception) for fit in trial.config["fits"])
        elif MONITOR in str(exception):
            for fit in trial.config["fits"]:
                record_oom(run / "trials" / fit["trial_id"])

    RayActorManager._actor_task_failed, TuneController._process_trial_failure = known, once
    try:
        yield given_up
    finally:
        RayActorManager._actor_task_failed, TuneController._process_trial_failure = task_failed, trial_failed


@contextmanager
def _started_workers() -> Iterator[None]:
    """Within, trials go to the workers that Ray starts ahead: for a variable of Lightning's Tune would have others."""
    variables = class_cache.DEFAULT_ENV_VARS.copy()
    class_cache.DEFAULT_ENV_VARS.clear()
    try:
        yield
    finally:
        class_cache.DEFAULT_ENV_VARS.update(variables)
