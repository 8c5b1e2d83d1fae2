"""All benchmarks that a GPU changes, in one command of at most eight minutes.

    python benchmarks/gpu.py

Runs step.py, mfu.py, tasks.py, pack.py and loss.py as processes of their own, so that one that fails leaves the others
be; also where the package is not installed, but torch, Transformers and Accelerate are. Exits with 1 if any failed.
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
COMMANDS = (["step.py", "opt-350m"], ["mfu.py"], ["tasks.py"], ["pack.py"], ["step.py", "llama-1b"], ["loss.py"])
SECONDS = 460


def run() -> int:
    """The exit code."""
    started, failed = time.monotonic(), []
    paths = [str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}
    for command in COMMANDS:
        left = SECONDS - (time.monotonic() - started)
        try:
            subprocess.run([sys.executable, HERE / command[0], *command[1:]], env=environment, check=True, timeout=left)
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
            failed.append(f"{' '.join(command)}: {type(error).__name__}")
        print(f"[{' '.join(command)}: {time.monotonic() - started:.0f} s since the start]", flush=True)
    for failure in failed:
        print(f"failed: {failure}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    sys.exit(run())
