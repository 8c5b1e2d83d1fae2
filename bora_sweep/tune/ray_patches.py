"""Patches of Ray's private parts: all of them are in this file, each with its reason.

They are tried with ray>=2.59,<2.61, the range that pyproject.toml allows. `tests/tune/test_ray_patches.py` fails where
Ray has moved a part that is patched here, or no longer needs a patch.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ray.air.execution._internal.actor_manager import RayActorManager
from ray.air.execution._internal.tracked_actor_task import TrackedActorTask
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.tune.error import TuneError
from ray.tune.execution.tune_controller import TuneController
from ray.tune.experiment import Trial

from bora_sweep.runs.storage import Folder
from bora_sweep.train.checkpoint import record_oom

KILLED_BY_MONITOR = "low on memory"
"""In Ray's message about a worker that its memory monitor killed; not in its messages about other lost workers."""


@contextmanager
def patch_worker_failures(run: Folder) -> Iterator[list[tuple[dict[str, Any], Exception]]]:
    """Within, each lost worker is one failure of its trial, whatever it was lost to.

    Two patches:

    - `RayActorManager._actor_task_failed` accepts `RayActorError` and `RayTaskError`, and ends the whole sweep at any
      other error of Ray's. A worker killed for its node's memory raises such an error. It becomes a `RayActorError`.
    - `TuneController._process_trial_failure` is called twice for a worker that dies while it is reset for its next
      trial, and gives the trial up at the second call. The second call is dropped.

    A process that is killed for memory cannot write anything. So the second patch also leaves a note in the folder of
    each fit that Ray's memory monitor killed and that starts again: it goes on with fewer documents in a forward pass.
    A kill by the kernel looks like any other lost process; Ray's monitor is meant to act first.

    Args:
        run: The run's folder.

    Yields:
        The fits that Tune gives up, and the error of each. Tune's own results do not name a fit that never reported,
        and its error files may not be there yet.
    """
    given_up: list[tuple[dict[str, Any], Exception]] = []
    actor_task_failed, process_trial_failure = RayActorManager._actor_task_failed, TuneController._process_trial_failure

    def as_actor_error(self: RayActorManager, tracked_actor_task: TrackedActorTask, exception: Exception) -> None:
        if isinstance(exception, RayError) and not isinstance(exception, (RayActorError, RayTaskError)):
            exception = RayActorError(error_msg=str(exception))
        actor_task_failed(self, tracked_actor_task, exception)

    def once(self: TuneController, trial: Trial, exception: TuneError | RayTaskError | RayActorError) -> None:
        is_lost = isinstance(exception, RayActorError) and trial in self._resetting_trials
        if is_lost and trial.status == Trial.PENDING:  # the first call made it so
            self._resetting_trials.remove(trial)
            return
        had_ended = trial.is_finished()
        process_trial_failure(self, trial, exception)
        if not had_ended and trial.is_finished():
            given_up.extend((fit, exception) for fit in trial.config["fits"])
        elif KILLED_BY_MONITOR in str(exception):
            for fit in trial.config["fits"]:
                record_oom(run / "trials" / fit["trial_id"])

    RayActorManager._actor_task_failed, TuneController._process_trial_failure = as_actor_error, once
    try:
        yield given_up
    finally:
        RayActorManager._actor_task_failed = actor_task_failed
        TuneController._process_trial_failure = process_trial_failure
