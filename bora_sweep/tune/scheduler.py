"""Early stopping across trials, by Tune's own rules: a fit that lags behind the others at the same epoch ends there.

Tune would end a trial by ending its process, and what the fit has reached would be lost. Here the rule's verdict is a
file in the trial's folder: the fit finds it after its epoch, scores its best epoch and ends like any other.
"""

from typing import Any

from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, MedianStoppingRule, TrialScheduler

from bora_sweep.config import Config
from bora_sweep.runs.storage import Folder, write_bytes
from bora_sweep.tune.points import Point

VERDICT = "stop"


class EarlyStopping(FIFOScheduler):
    """Asks Tune's rule after each epoch, and writes down whom it would stop.

    Both ends, tau = 0 and inf, and baselines are never stopped: everything is judged against them.

    Args:
        config: `search.scheduler` is the rule; `search.grace_epochs` are granted to every fit.
        run: The run's folder.
    """

    def __init__(self, config: Config, run: Folder) -> None:
        super().__init__()
        self.run, grace = run, config.search.grace_epochs
        self.stopped: set[str] = set()
        self.rule: TrialScheduler
        if config.search.scheduler == "asha":
            last = max(grace, config.train.max_epochs) + 1
            self.rule = AsyncHyperBandScheduler("epoch", "objective", "min", grace_period=grace, max_t=last)
        else:
            self.rule = MedianStoppingRule("epoch", "objective", "min", grace_period=grace)

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """As Tune calls it."""
        self.rule.on_trial_add(tune_controller, trial)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict) -> str:
        """Never Tune's own STOP; see the module."""
        (fit,) = trial.config["fits"]
        if not may_stop(Point(**fit["point"])) or fit["trial_id"] in self.stopped:
            return TrialScheduler.CONTINUE
        if self.rule.on_trial_result(tune_controller, trial, result) == TrialScheduler.STOP:
            self.stopped.add(fit["trial_id"])
            write_bytes(self.run / "trials" / fit["trial_id"] / VERDICT, b"")
        return TrialScheduler.CONTINUE

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict) -> None:
        """As Tune calls it."""
        self.rule.on_trial_complete(tune_controller, trial, result)


def may_stop(point: Point) -> bool:
    """Whether it is a value of the search."""
    return point.method == "map" and point.rank is None and 0 < point.tau < float("inf")
