"""Whole sweeps as a user starts them, for the tests that watch, cut and compare them."""

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
    """A command in this process, where nothing is to be killed; a sweep of it runs on `ray_here`, without a new Ray."""
    with contextlib.redirect_stdout(io.StringIO()) as output, contextlib.redirect_stderr(output):
        code = main([str(argument) for argument in arguments])
    return code, output.getvalue()


def outside() -> dict[str, str]:
    """The environment without what these tests' own Ray has put there; it asks for a token that others do not have."""
    own = {*QUIET, *LOOPBACK, "RAY_AUTH_MODE"}
    return {name: value for name, value in os.environ.items() if name not in own}


def start(*arguments: str, cwd: Path, **environment: str) -> subprocess.Popen:
    """A command in a process of its own."""
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
            pytest.fail(f"waited {timeout} s in vain: {finish(process)[1]}")
        time.sleep(0.2)


def workers(pid: int, at: str = "ImplicitFunc") -> list[psutil.Process]:
    """The processes in which trials run, of those that this one started, by the names that Ray gives them.

    `ImplicitFunc.train`: of trials that train now. `GroupMember`: a trial's others, beside its first.
    """
    found = []
    for child in psutil.Process(pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if at in " ".join(child.cmdline()):
                found.append(child)
    return found


def under_way(run: Path) -> list[dict]:
    """The trials that run and have an epoch behind them."""
    return [row for row in trial_rows(run) if row["status"] == "running" and row["epochs"] >= 1]


def numbers(run: Path) -> dict[str, pd.DataFrame]:
    """The tables without what must differ between two runs of the same configuration."""
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
    return {c.laddr.ip for c in psutil.net_connections("inet") if c.status == psutil.CONN_LISTEN and c.pid in pids}
