"""The sweep on Ray Tune. Ray is imported only once its environment is set: it reads some of it at import."""

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from bora_sweep.config import Config
from bora_sweep.runs.storage import Folder

if TYPE_CHECKING:  # `bora-sweep status` is quick without them
    from rich.console import Console

    from bora_sweep.data.tokens import TokenizedCorpus

QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # ours tells the trials to write checkpoints first
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # under `uv run` it would ship the working folder to every worker
}
LOOPBACK = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # Ray then binds 127.0.0.1, as it does where it has no clusters
    "RAY_OBJECT_STORE_ALLOW_SLOW_STORAGE": "1",  # a container's /dev/shm may be small; what a sweep puts there is, too
}


def run_sweep(
    config: Config, corpus: "TokenizedCorpus", run: Folder, groups: Sequence[str], console: "Console"
) -> bool:
    """Fit every trial of the sweep that `run` holds no result of, and show on `console` how it goes.

    A local Ray is reachable from this machine alone, provided that Ray was not imported before. `groups` are those that
    `prior.groups` gives a tau of their own.

    Returns:
        Whether every trial was run to its end, well or badly; False where the sweep was interrupted.
    """
    os.environ.update(QUIET | (LOOPBACK if config.ray.address is None else {}))
    from bora_sweep.tune.live_view import SweepView
    from bora_sweep.tune.tuner import tune_run

    with SweepView(config, run, console) as view:
        return tune_run(config, corpus, run, groups, view)
