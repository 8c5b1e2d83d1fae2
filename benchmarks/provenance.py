"""Where a figure comes from: the command, the commit, the machine, the versions."""

import os
import platform
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

RESULTS = Path(__file__).parent / "results"


def provenance() -> str:
    """One paragraph of Markdown."""
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "ray", "optuna"))
    return (
        f"Made by `python {shlex.join(sys.argv)}` on {datetime.now(UTC):%Y-%m-%d}, commit {_commit()}; "
        f"{_cpu()}, {os.cpu_count()} cores, {platform.system()}; Python {platform.python_version()}, {packages}."
    )


def _commit() -> str:
    found = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=RESULTS, check=False
    )
    return found.stdout.strip() or "unknown"


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
