"""The sweep on Ray Tune. Ray is imported after its environment is set, because it reads some of it at import."""

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
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # this package's handler has the trials write checkpoints first
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # under `uv run` it would ship the working folder to every worker
}
LOOPBACK = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # has Ray listen at 127.0.0.1 alone
    "RAY_OBJECT_STORE_ALLOW_SLOW_STORAGE": "1",  # a container's /dev/shm may be small; a sweep stores little
}


def run_sweep(
    config: Config, corpus: "TokenizedCorpus", run: Folder, groups: Sequence[str], console: "Console"
) -> bool:
    """Fit every trial of the sweep that has no result in `run` yet, and show the progress on `console`.

    A local Ray is reachable from this machine alone, provided that Ray was not imported before.

    Args:
        config: The sweep's.
        corpus: Of all tasks.
        run: The run's folder, which holds the configuration already.
        groups: The groups of parameters that `prior.groups` gives a tau of their own.
        console: Gets a live table if it is a terminal, else lines.

    Returns:
        Whether every trial finished or failed; False where the sweep was interrupted.
    """
    os.environ.update(QUIET | (LOOPBACK if config.ray.address is None else {}))
    from bora_sweep.tune.live_view import SweepView
    from bora_sweep.tune.tuner import run_tuner

    with SweepView(config, run, console) as view:
        return run_tuner(config, corpus, run, groups, view)
