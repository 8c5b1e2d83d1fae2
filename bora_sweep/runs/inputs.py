"""What a run was made from, as one short digest for the data and one for the base, for a report to show."""

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from bora_sweep.runs.folder import FINGERPRINTS
from bora_sweep.runs.storage import Folder, read_bytes

DAMAGED = "damaged"
_DIGITS = 12


@dataclass(frozen=True)
class Inputs:
    """Digests: `DAMAGED` where the file cannot be read, None where the run has none."""

    data: str | None
    """Of the documents of all tasks, with their names, ids, splits and texts."""
    model: str | None
    """Of the base's files."""


def read_inputs(run: Folder) -> Inputs:
    """The digests of a run's inputs. Two runs of the same documents have the same `data`, in whatever order of tasks.

    Args:
        run: The run's folder.
    """
    try:
        stored = json.loads(read_bytes(run / FINGERPRINTS).decode(errors="surrogatepass"))
        return Inputs(_digest(stored["tasks"]), _digest(stored["model"]))
    except FileNotFoundError:
        return Inputs(None, None)
    except (ValueError, TypeError, KeyError):
        return Inputs(DAMAGED, DAMAGED)


def _digest(value: Any) -> str:
    """The first digits of the SHA-256 of a value as JSON with sorted keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:_DIGITS]
