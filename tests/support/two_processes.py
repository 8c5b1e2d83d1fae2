"""Two processes that make one fit, on the CPU by Gloo, and what must not depend on how many made it."""

import faulthandler
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.distributed import FileStore  # pyright: ignore[reportPrivateImportUsage]
from torch.multiprocessing.spawn import start_processes

from bora_sweep.train.distributed import process_group
from bora_sweep.train.state import Fit


def run_in_two(work: Callable[[int, Path], dict], folder: Path) -> list[dict]:
    """What `work(rank, folder)` returns in each of two processes that form a process group.

    Args:
        work: A function of a module.
        folder: A folder of its own.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")  # threads of two processes that wait for each other would take turns
        started = start_processes(_join, (work, folder), 2, join=False, start_method="spawn")
    assert started is not None
    try:
        while not started.join():
            pass
    finally:
        for process in started.processes:
            process.kill()  # type: ignore[reportAttributeAccessIssue]
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in (0, 1)]


def _join(rank: int, work: Callable[[int, Path], dict], folder: Path) -> None:
    faulthandler.dump_traceback_later(500, exit=True)  # before pytest gives up: where it stands, should it wait in vain
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    process_group.init_from_store(
        FileStore(str(folder / "store"), 2), rank, 2
    )  # a port chosen here may be another's by then
    torch.save(work(rank, folder), folder / f"{rank}.pt")
    faulthandler.cancel_dump_traceback_later()


ROUNDED = ("nll_nats", "log_prior", "learnt_tau")
"""Numbers of a curve that the order of sums decides in their last digits."""


def found(done: Fit) -> dict:
    """What must not depend on how many processes made a fit."""
    curve = [{k: v for k, v in row.items() if k != "seconds"} for row in done.state.curve]
    return {
        "curve": [{k: v for k, v in row.items() if k not in ROUNDED} for row in curve],
        "nats": np.array([[row[name] or 0.0 for name in ROUNDED] for row in curve]),
        "best_epochs": done.state.best_epochs,
        "stopped_by": done.stopped_by,
        "scores": np.concatenate(list(done.nll_nats.values())),
        "mean_P": done.mean_P.numpy(),
        "theta_KP": done.theta_KP.numpy(),
    }


def assert_same(one: dict, other: dict, banks: bool = True) -> None:
    """Whether two of `found` are the same up to rounding in float64."""
    assert one["curve"] == other["curve"]
    assert (one["best_epochs"], one["stopped_by"]) == (other["best_epochs"], other["stopped_by"])
    for name in ("nats", "scores", "mean_P", *(["theta_KP"] if banks else [])):
        np.testing.assert_allclose(one[name], other[name], rtol=1e-9, atol=1e-11, err_msg=name)
