"""What is made of what Ray says of a lost worker, without Ray; tests/test_faults.py has real ones."""

from types import SimpleNamespace

import pytest
from ray.air.execution._internal.actor_manager import RayActorManager
from ray.exceptions import ActorDiedError, OutOfMemoryError, RayActorError, RayTaskError
from ray.tune.execution.tune_controller import TuneController

from bora_sweep.train.checkpoint import num_recorded_ooms
from bora_sweep.tune.ray_patches import patch_worker_failures

MONITOR = "1 worker(s) were killed due to the node running low on memory."
KERNEL = "The actor died ... (1) the process was killed by the OOM killer due to high memory usage"


@pytest.fixture
def controller(monkeypatch):
    """Tune's, as far as it deals with failures: a trial that may begin again waits, another has ended."""

    def failed(self, trial, exception) -> None:
        self.heard.append(exception)
        trial.status = "PENDING" if trial.may_begin_again else "ERROR"

    monkeypatch.setattr(TuneController, "_process_trial_failure", failed)
    return SimpleNamespace(heard=[], _resetting_trials=[])


def trial(*, may_begin_again: bool) -> SimpleNamespace:
    """One of Tune's, of two fits."""
    fits = [{"trial_id": "003"}, {"trial_id": "004"}]
    own = SimpleNamespace(status="RUNNING", may_begin_again=may_begin_again, config={"fits": fits})
    own.is_finished = lambda: own.status == "ERROR"
    return own


@pytest.mark.parametrize(("error", "kills"), [(MONITOR, 1), (KERNEL, 0)])
@pytest.mark.parametrize("may_begin_again", [True, False])
def test_what_the_monitor_killed_and_begins_again_is_noted_for_each_fit(
    error, kills, may_begin_again, controller, tmp_path
):
    with patch_worker_failures(tmp_path):
        TuneController._process_trial_failure(
            controller, trial(may_begin_again=may_begin_again), RayActorError("", error)
        )
    noted = [num_recorded_ooms(tmp_path / "trials" / name) for name in ("003", "004", "005")]
    assert noted == ([kills, kills, 0] if may_begin_again else [0, 0, 0])


def test_a_trial_given_up_is_known_with_its_last_error_though_it_never_reported(controller, tmp_path):
    lost = trial(may_begin_again=True)
    with patch_worker_failures(tmp_path) as given_up:
        TuneController._process_trial_failure(controller, lost, RayActorError("", "first"))
        assert given_up == []
        lost.may_begin_again = False
        for error in ("second", "third, of a process on its way out"):
            TuneController._process_trial_failure(controller, lost, RayActorError("", error))
    assert [(fit["trial_id"], str(error)) for fit, error in given_up] == [("003", "second"), ("004", "second")]


def test_any_other_error_of_ray_s_is_a_lost_worker(monkeypatch, tmp_path):
    heard = []
    monkeypatch.setattr(RayActorManager, "_actor_task_failed", lambda _, __, exception: heard.append(exception))
    raised = [
        OutOfMemoryError(MONITOR),
        ActorDiedError(),
        RayTaskError("train", "", ValueError("no")),
        ValueError("no"),
    ]
    with patch_worker_failures(tmp_path):
        for error in raised:
            RayActorManager._actor_task_failed(None, None, error)
    assert isinstance(heard[0], RayActorError)
    assert str(heard[0]) == MONITOR
    assert heard[1:] == raised[1:]


def test_a_worker_lost_between_two_trials_is_one_failure(controller, tmp_path):
    """As Tune does: the first telling puts the trial back among those that wait."""
    reset = trial(may_begin_again=True)
    controller._resetting_trials.append(reset)
    before = TuneController._process_trial_failure
    with patch_worker_failures(tmp_path):
        for _ in range(2):
            TuneController._process_trial_failure(controller, reset, ActorDiedError())
        assert (len(controller.heard), controller._resetting_trials) == (1, [])
        TuneController._process_trial_failure(controller, reset, ActorDiedError())  # and again later, in another worker
        assert len(controller.heard) == 2
    assert TuneController._process_trial_failure is before
