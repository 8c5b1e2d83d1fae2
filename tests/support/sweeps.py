"""Sweeps as a user starts them, for the tests that watch, interrupt and compare them."""

import contextlib
import io
import os
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import psutil
import pytest

from bora_sweep.cli import main
from bora_sweep.runs.results import SCHEMAS, read_results, trial_rows
from bora_sweep.tune import LOOPBACK, QUIET

TIMES = {
    "started_at", "ended_at", "train_seconds", "tokens_per_second", "seconds", "peak_memory_bytes", "run", "attempts",
}  # fmt: skip
SMALL = [
    "model.max_tokens=16",
    "lora.rank=2",
    "train.learning_rate=0.02",
    "train.max_epochs=3",
    "search.num_trials=2",
    "search.sampler=gp",
    "train.device=cpu",
    "ray.max_concurrent=2",  # what the search asks for depends on it, and it on the machine
]


def here(*arguments: object) -> tuple[int, str]:
    """Run a command in this process; its sweeps run on `ray_here`. Returns the exit code and the output."""
    with contextlib.redirect_stdout(io.StringIO()) as output, contextlib.redirect_stderr(output):
        code = main([str(argument) for argument in arguments])
    return code, output.getvalue()


def outside() -> dict[str, str]:
    """The environment without the variables of `ray_here`, which asks for a token that other Rays do not have."""
    of_ray_here = {*QUIET, *LOOPBACK, "RAY_AUTH_MODE"}
    return {name: value for name, value in os.environ.items() if name not in of_ray_here}


def start(*arguments: str, cwd: Path, **environment: str) -> subprocess.Popen:
    """Start a command in a new process."""
    return subprocess.Popen(
        [sys.executable, "-m", "bora_sweep.cli", *arguments],
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**outside(), "HOME": str(cwd), "COLUMNS": "200", **environment},
    )


def finish(process: subprocess.Popen, timeout: float = 300) -> tuple[int, str]:
    output, _ = process.communicate(timeout=timeout)
    return process.returncode, output


def wait_for(condition, process: subprocess.Popen, timeout: float = 240) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert process.poll() is None, process.stdout.read()
        if time.monotonic() > deadline:
            process.terminate()
            pytest.fail(f"not within {timeout} s: {finish(process)[1]}")
        time.sleep(0.2)


def workers(pid: int, name: str = "ImplicitFunc") -> list[psutil.Process]:
    """Ray's worker processes below process `pid`, by the name that Ray gives them.

    Args:
        pid: A driver or a raylet.
        name: `ImplicitFunc`: the first process of a trial; `ImplicitFunc.train`: of one that trains now; `GroupMember`:
            the other processes of a trial.
    """
    named = []
    for child in psutil.Process(pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if name in " ".join(child.cmdline()):
                named.append(child)
    return named


def under_way(run: Path) -> list[dict]:
    """The rows of trials that run and have finished an epoch."""
    return [row for row in trial_rows(run) if row["status"] == "running" and row["epochs"] >= 1]


def numbers(run: Path) -> dict[str, pd.DataFrame]:
    """The tables without the columns that differ between two runs of the same configuration."""
    tables = {}
    for name in SCHEMAS:
        frame = getattr(read_results(run), name)
        frame = frame.drop(columns=[column for column in frame if column in TIMES | {"config_json", "host"}])
        tables[name] = frame.sort_values(list(frame.columns[:3])).reset_index(drop=True)
    return tables


def listening(process: subprocess.Popen) -> set[str]:
    """Addresses at which the process and its descendants accept connections."""
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    pids = {member.pid for member in family}
    connections = psutil.net_connections("inet")
    return {c.laddr[0] for c in connections if c.laddr and c.status == psutil.CONN_LISTEN and c.pid in pids}
