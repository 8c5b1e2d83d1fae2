"""Workers that are lost: what Tune makes of it, what it gets wrong, and which trials begin again in smaller parts.

A process that is killed for its node's memory can say nothing. The driver learns of it from Ray's memory monitor, and
leaves a note in the trial's folder before the trial begins again. What the kernel kills looks like any other lost
process: Ray's monitor is there to be first.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ray import tune
from ray.air.execution._internal.actor_manager import RayActorManager
from ray.air.execution._internal.tracked_actor_task import TrackedActorTask
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.tune.execution.tune_controller import TuneController
from ray.tune.experiment import Trial

from bora_sweep.storage import Folder
from bora_sweep.train.checkpoint import note_kill

MONITOR = "low on memory"
"""Stands in what Ray says of a worker that its monitor killed, and not of one that died otherwise."""


class Losses(tune.Callback):
    """Hears of each.

    Args:
        run: The run's folder.
    """

    def __init__(self, run: Folder) -> None:
        self.run = run
        self.failed: list[tuple[dict[str, Any], Exception]] = []
        """Fits that Tune gave up, and why. Its own results do not name a fit that never reported."""

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune pickles its callbacks for a restore that no one makes."""
        return {}

    def on_trial_recover(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:  # noqa: ARG002
        """A trial's process is gone, and the trial will begin again."""
        _, _, last = str(trial.get_error() or "").rpartition("Failure # ")
        if MONITOR in last:
            for fit in trial.config["fits"]:
                note_kill(self.run / "trials" / fit["trial_id"])

    def on_trial_error(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:  # noqa: ARG002
        """A trial failed for good."""
        error = trial.get_pickled_error() or trial.get_error()
        self.failed += [(fit, error) for fit in trial.config["fits"]]


@contextmanager
def each_loss_is_one_failure() -> Iterator[None]:
    """Within, a worker that is lost in whatever way is one failure of the trial that it had.

    Tune knows two kinds of Ray's errors, and ends the whole sweep at any other: a worker killed for memory is one. And
    of a worker that dies between two trials it hears twice, and at the second time gives the trial up.
    """
    task_failed, trial_failed = RayActorManager._actor_task_failed, TuneController._trial_task_failure

    def known(self: RayActorManager, tracked_actor_task: TrackedActorTask, exception: Exception) -> None:
        is_other = isinstance(exception, RayError) and not isinstance(exception, (RayActorError, RayTaskError))
        task_failed(self, tracked_actor_task, RayActorError(error_msg=str(exception)) if is_other else exception)

    def once(self: TuneController, trial: Trial, exception: Exception) -> None:
        is_lost = isinstance(exception, RayActorError) and trial in self._resetting_trials
        if is_lost and trial.status == Trial.PENDING:  # the first time made it so
            self._resetting_trials.remove(trial)
        else:
            trial_failed(self, trial, exception)

    RayActorManager._actor_task_failed, TuneController._trial_task_failure = known, once
    try:
        yield
    finally:
        RayActorManager._actor_task_failed, TuneController._trial_task_failure = task_failed, trial_failed
