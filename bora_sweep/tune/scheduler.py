"""Early stopping across trials by Tune's own rules: a fit that lags behind the others at the same epoch ends early.

Tune stops a trial by ending its process, and would lose what the fit has reached. Here a decision to stop is a file in
the trial's folder. The fit sees it after its epoch, scores its best epoch and ends like any other.
"""

from typing import Any

from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, MedianStoppingRule, TrialScheduler

from bora_sweep.config import Config
from bora_sweep.runs.storage import Folder, write_bytes
from bora_sweep.tune.points import Point

EARLY_STOP_FILE = "stop"
"""In the folder of a trial that is to end after its epoch."""


class EarlyStopping(FIFOScheduler):
    """Asks Tune's rule after each epoch, and writes a file for each fit that the rule would stop.

    Both ends, tau = 0 and inf, and the baselines are never stopped: all other fits are compared with them.

    Args:
        config: `search.scheduler` names the rule; it stops no fit before `search.grace_epochs`.
        run: The run's folder.
    """

    def __init__(self, config: Config, run: Folder) -> None:
        super().__init__()
        self.run, grace = run, config.search.grace_epochs
        self.stopped: set[str] = set()
        self.rule: TrialScheduler
        if config.search.scheduler == "asha":
            max_epochs = max(grace, config.train.max_epochs) + 1
            self.rule = AsyncHyperBandScheduler(
                "epoch", "validation_nll_nats", "min", grace_period=grace, max_t=max_epochs
            )
        else:
            self.rule = MedianStoppingRule("epoch", "validation_nll_nats", "min", grace_period=grace)

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """Pass a new trial on to the rule."""
        self.rule.on_trial_add(tune_controller, trial)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict) -> str:
        """Ask the rule, write down a decision to stop, and let Tune continue the trial."""
        (fit,) = trial.config["fits"]
        if not can_be_stopped(Point(**fit["point"])) or fit["trial_id"] in self.stopped:
            return TrialScheduler.CONTINUE
        if self.rule.on_trial_result(tune_controller, trial, result) == TrialScheduler.STOP:
            self.stopped.add(fit["trial_id"])
            write_bytes(self.run / "trials" / fit["trial_id"] / EARLY_STOP_FILE, b"")
        return TrialScheduler.CONTINUE

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict) -> None:
        """Pass the end of a trial on to the rule."""
        self.rule.on_trial_complete(tune_controller, trial, result)


def can_be_stopped(point: Point) -> bool:
    """Whether it is a value of the search: a MAP fit of the sweep's own rank with a finite tau above 0."""
    return point.method == "map" and point.rank is None and 0 < point.tau < float("inf")
