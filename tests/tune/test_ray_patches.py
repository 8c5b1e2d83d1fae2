"""The patches of Ray's private parts: what they do, and that Ray still has these parts and still needs the patches.

Ray does not run here; tests/tune/test_faults.py loses real workers.
"""

import re
import tomllib
from inspect import signature
from pathlib import Path
from types import MethodType, SimpleNamespace
from unittest.mock import MagicMock

import pytest
import ray
from packaging.specifiers import SpecifierSet
from ray.air.execution._internal.actor_manager import RayActorManager
from ray.exceptions import ActorDiedError, OutOfMemoryError, RayActorError, RayTaskError
from ray.tune.execution.tune_controller import TuneController
from ray.tune.experiment import Trial

from bora_sweep.train.checkpoint import num_recorded_ooms
from bora_sweep.tune import ray_patches
from bora_sweep.tune.ray_patches import patch_worker_failures

REPOSITORY = Path(__file__).resolve().parents[2]
KILLED_BY_MONITOR = "1 worker(s) were killed due to the node running low on memory."
KILLED_BY_KERNEL = "The actor died ... (1) the process was killed by the OOM killer due to high memory usage"


def test_the_patches_are_tried_with_the_versions_of_ray_that_are_allowed():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    packages = [*project["dependencies"], *project["optional-dependencies"]["cluster"]]
    allowed = {re.sub(r"^ray\[\w+]", "", package) for package in packages if package.startswith("ray[")}
    assert len(allowed) == 1
    assert f"ray{allowed.copy().pop()}" in (ray_patches.__doc__ or "")
    assert ray.__version__ in SpecifierSet(allowed.pop())


def test_ray_has_the_private_parts_that_are_used():
    assert list(signature(RayActorManager._actor_task_failed).parameters) == ["self", "tracked_actor_task", "exception"]
    assert list(signature(TuneController._process_trial_failure).parameters) == ["self", "trial", "exception"]
    assert "_resetting_trials" in TuneController.__init__.__code__.co_names
    with pytest.raises(RuntimeError, match=r"Unknown keyword argument\(s\): other$"):  # `_temp_dir` is known
        ray.init("local", _temp_dir="/tmp/ray", other=1)


def test_ray_still_ends_a_sweep_where_a_worker_is_killed_for_memory():
    """If this fails, Ray has mended it: `as_actor_error` can go."""
    with pytest.raises(RuntimeError, match="unexpected exception"):
        RayActorManager._actor_task_failed(MagicMock(), MagicMock(), OutOfMemoryError(KILLED_BY_MONITOR))


def test_tune_still_counts_a_worker_that_dies_while_it_is_reset_twice():
    """If this fails, Ray has mended it: that part of `once` can go."""
    actor = MagicMock()
    controller = MagicMock(_fail_fast=False, _pending_trials={1}, _paused_trials=set(), _actor_to_trial={actor: 1})
    for name in ("_actor_failed", "_trial_task_failure"):
        setattr(controller, name, MethodType(getattr(TuneController, name), controller))
    actor._on_error = controller._actor_failed
    task = SimpleNamespace(_tracked_actor=actor, _on_error=lambda _, error: controller._trial_task_failure(1, error))
    RayActorManager._actor_task_failed(MagicMock(), task, ActorDiedError())
    assert controller._process_trial_failure.call_count == 2
    trial = MagicMock(status=Trial.PENDING)  # the first call has put it back
    TuneController._process_trial_failure(controller, trial, ActorDiedError())
    controller._schedule_trial_stop.assert_called_once()


@pytest.fixture
def controller(monkeypatch):
    """Tune's, reduced to failures: a trial with tries left is pending again, another has ended."""

    def process_trial_failure(self, trial, exception) -> None:
        self.failures.append(exception)
        trial.status = "PENDING" if trial.has_tries_left else "ERROR"

    monkeypatch.setattr(TuneController, "_process_trial_failure", process_trial_failure)
    return SimpleNamespace(failures=[], _resetting_trials=[])


def make_trial(*, has_tries_left: bool) -> SimpleNamespace:
    """A trial of Tune's, a pack of two fits."""
    fits = [{"trial_id": "003"}, {"trial_id": "004"}]
    trial = SimpleNamespace(status="RUNNING", has_tries_left=has_tries_left, config={"fits": fits})
    trial.is_finished = lambda: trial.status == "ERROR"
    return trial


@pytest.mark.parametrize(("message", "ooms"), [(KILLED_BY_MONITOR, 1), (KILLED_BY_KERNEL, 0)])
@pytest.mark.parametrize("has_tries_left", [True, False])
def test_a_kill_by_rays_memory_monitor_is_recorded_for_each_fit_that_starts_again(
    message, ooms, has_tries_left, controller, tmp_path
):
    with patch_worker_failures(tmp_path):
        trial = make_trial(has_tries_left=has_tries_left)
        TuneController._process_trial_failure(controller, trial, RayActorError("", message))
    recorded = [num_recorded_ooms(tmp_path / "trials" / name) for name in ("003", "004", "005")]
    assert recorded == ([ooms, ooms, 0] if has_tries_left else [0, 0, 0])


def test_a_trial_that_tune_gives_up_is_yielded_with_the_error_that_ended_it(controller, tmp_path):
    trial = make_trial(has_tries_left=True)
    with patch_worker_failures(tmp_path) as given_up:
        TuneController._process_trial_failure(controller, trial, RayActorError("", "first"))
        assert given_up == []
        trial.has_tries_left = False
        for message in ("second", "third, of a process that was ending"):
            TuneController._process_trial_failure(controller, trial, RayActorError("", message))
    assert [(fit["trial_id"], str(error)) for fit, error in given_up] == [("003", "second"), ("004", "second")]


def test_any_other_error_of_ray_is_a_lost_worker(monkeypatch, tmp_path):
    passed_on = []
    monkeypatch.setattr(RayActorManager, "_actor_task_failed", lambda _, __, exception: passed_on.append(exception))
    errors = [
        OutOfMemoryError(KILLED_BY_MONITOR),
        ActorDiedError(),
        RayTaskError("train", "", ValueError("no")),
        ValueError("no"),
    ]
    with patch_worker_failures(tmp_path):
        for error in errors:
            RayActorManager._actor_task_failed(None, None, error)
    assert isinstance(passed_on[0], RayActorError)
    assert str(passed_on[0]) == KILLED_BY_MONITOR
    assert passed_on[1:] == errors[1:]


def test_a_worker_lost_between_two_trials_is_one_failure(controller, tmp_path):
    trial = make_trial(has_tries_left=True)
    controller._resetting_trials.append(trial)
    before = TuneController._process_trial_failure
    with patch_worker_failures(tmp_path):
        for _ in range(2):
            TuneController._process_trial_failure(controller, trial, ActorDiedError())
        assert (len(controller.failures), controller._resetting_trials) == (1, [])
        TuneController._process_trial_failure(controller, trial, ActorDiedError())  # later, of another worker
        assert len(controller.failures) == 2
    assert TuneController._process_trial_failure is before
