"""Trials that Ray killed because their node ran out of memory: they are taken up again, in smaller parts.

The process that is killed can say nothing. The driver learns of it from Ray's memory monitor, and leaves a note in the
trial's folder before the trial begins again. What the kernel kills looks like any other lost process: Ray's monitor is
there to be first.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ray import tune
from ray.air.execution._internal.actor_manager import RayActorManager
from ray.air.execution._internal.tracked_actor_task import TrackedActorTask
from ray.exceptions import RayActorError, RayError, RayTaskError

from bora_sweep.storage import Folder
from bora_sweep.train.checkpoint import note_kill

MONITOR = "low on memory"
"""Stands in what Ray says of a worker that its monitor killed, and not of one that died otherwise."""


class MemoryKills(tune.Callback):
    """Notes them.

    Args:
        run: The run's folder.
    """

    def __init__(self, run: Folder) -> None:
        self.run = run

    def on_trial_recover(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:  # noqa: ARG002
        """A trial's process is gone, and the trial will begin again."""
        _, _, last = str(trial.get_error() or "").rpartition("Failure # ")
        if MONITOR in last:
            for fit in trial.config["fits"]:
                note_kill(self.run / "trials" / fit["trial_id"])


@contextmanager
def other_errors_are_lost_workers() -> Iterator[None]:
    """Within, whatever Ray says of a trial's worker is that trial's failure.

    Tune knows two kinds of Ray's errors, and ends the whole sweep at any other; a worker killed for memory is one.
    """
    known = RayActorManager._actor_task_failed

    def failed(self: RayActorManager, tracked_actor_task: TrackedActorTask, exception: Exception) -> None:
        is_other = isinstance(exception, RayError) and not isinstance(exception, (RayActorError, RayTaskError))
        known(self, tracked_actor_task, RayActorError(error_msg=str(exception)) if is_other else exception)

    RayActorManager._actor_task_failed = failed
    try:
        yield
    finally:
        RayActorManager._actor_task_failed = known
