"""What is made of what Ray says of a lost worker, without Ray; tests/test_faults.py has real ones."""

from types import SimpleNamespace

import pytest
from ray.air.execution._internal.actor_manager import RayActorManager
from ray.exceptions import ActorDiedError, OutOfMemoryError, RayActorError, RayTaskError
from ray.tune.execution.tune_controller import TuneController

from bora_sweep.train.checkpoint import num_kills
from bora_sweep.tune.losses import Losses, each_loss_is_one_failure

MONITOR = "1 worker(s) were killed due to the node running low on memory."
KERNEL = "The actor died ... (1) the process was killed by the OOM killer due to high memory usage"


class Failed:
    """One of Tune's trials, and the errors that Tune has noted of it."""

    def __init__(self, *errors: str) -> None:
        self.config = {"fits": [{"trial_id": "003"}, {"trial_id": "004"}]}
        self.errors = errors

    def get_error(self) -> Exception:
        return RuntimeError(
            "".join(f"Failure # {n} (occurred at noon)\n{text}\n" for n, text in enumerate(self.errors))
        )

    def get_pickled_error(self) -> None:
        return None


@pytest.mark.parametrize(
    ("errors", "kills"), [([MONITOR], 1), ([KERNEL], 0), ([KERNEL, MONITOR], 1), ([MONITOR, KERNEL], 0)]
)
def test_what_the_monitor_killed_last_is_noted_for_each_fit_of_the_trial(errors, kills, tmp_path):
    Losses(tmp_path).on_trial_recover(0, [], Failed(*errors))
    assert [num_kills(tmp_path / "trials" / name) for name in ("003", "004", "005")] == [kills, kills, 0]


def test_a_trial_that_failed_for_good_is_known_though_it_never_reported(tmp_path):
    losses = Losses(tmp_path)
    losses.on_trial_error(0, [], Failed(KERNEL))
    assert [(fit["trial_id"], KERNEL in str(error)) for fit, error in losses.failed] == [("003", True), ("004", True)]


def test_any_other_error_of_ray_s_is_a_lost_worker(monkeypatch):
    heard = []
    monkeypatch.setattr(RayActorManager, "_actor_task_failed", lambda _, __, exception: heard.append(exception))
    raised = [
        OutOfMemoryError(MONITOR),
        ActorDiedError(),
        RayTaskError("train", "", ValueError("no")),
        ValueError("no"),
    ]
    with each_loss_is_one_failure():
        for error in raised:
            RayActorManager._actor_task_failed(None, None, error)
    assert isinstance(heard[0], RayActorError)
    assert str(heard[0]) == MONITOR
    assert heard[1:] == raised[1:]


def test_a_worker_lost_between_two_trials_is_one_failure(monkeypatch):
    """As Tune does: the first telling puts the trial back among those that wait."""
    heard = []

    def failed(_, trial, exception) -> None:
        heard.append(exception)
        trial.status = "PENDING"

    monkeypatch.setattr(TuneController, "_trial_task_failure", failed)
    trial = SimpleNamespace(status="RUNNING")
    controller = SimpleNamespace(_resetting_trials=[trial])
    with each_loss_is_one_failure():
        for _ in range(2):
            TuneController._trial_task_failure(controller, trial, ActorDiedError())
        assert (len(heard), controller._resetting_trials) == (1, [])
        TuneController._trial_task_failure(controller, trial, ActorDiedError())  # and again later, in another worker
        assert len(heard) == 2
    assert TuneController._trial_task_failure is failed
