"""What another terminal asks of a run that a process works on, as files in the run's folder.

Each is written atomically and read by the processes of the run, which look for it now and then.
"""

import json
import math
import time
from pathlib import Path

from bora_sweep.runs.storage import Folder, list_files, read_bytes, write_bytes

STOP_FILE = "stop"
"""In the run's folder: every fit of the run writes a checkpoint and ends."""
STOP_TRIAL_FILE = "stop-asked"
"""In a trial's folder: its fit ends with its best epoch."""
TRY_FILES = "try-*.json"
"""In the run's folder: a value of tau that is to be fitted next."""
USER = "user"
"""`stopped_by` of a fit that `STOP_TRIAL_FILE` ended."""
POLL_SECONDS, POLL_REMOTE_SECONDS = 0.2, 2.0
"""Between two looks for a file of the run."""
TRIAL_POLL_REMOTE_SECONDS = 10.0
"""The same for a file of each trial, in an object store."""


class Poll:
    """Looks for files no more often than it should.

    Args:
        folder: Where the files would be.
        remote_seconds: Between two looks in an object store.
    """

    def __init__(self, folder: Folder, remote_seconds: float = POLL_REMOTE_SECONDS) -> None:
        self.seconds, self.polled_at = POLL_SECONDS if isinstance(folder, Path) else remote_seconds, -math.inf

    def is_due(self) -> bool:
        """Whether it is time for another look, which is then made."""
        now = time.monotonic()
        if now - self.polled_at < self.seconds:
            return False
        self.polled_at = now
        return True


def is_there(file: Folder) -> bool:
    """Whether the file is there; False where the storage does not answer, without waiting for it."""
    try:
        return file.exists()
    except Exception:  # each storage has its own for a lost connection; writing results will wait for it
        return False


def ask_to_try(run: Folder, tau: float) -> None:
    """Ask the sweep that runs to fit this value next."""
    write_bytes(run / f"try-{time.time_ns():020d}.json", json.dumps({"tau": tau}).encode())


def asked_to_try(run: Folder) -> list[tuple[Folder, float]]:
    """The values that wait to be fitted, with the file of each, in the order in which they were asked for."""
    found = []
    for file in list_files(run, TRY_FILES):
        try:
            tau = float(json.loads(read_bytes(file))["tau"])
        except FileNotFoundError:  # the sweep has just taken it
            continue
        except (ValueError, TypeError, KeyError):  # not of `ask_to_try`
            continue
        if 0 < tau < math.inf:
            found.append((file, tau))
    return found
