"""The run and the trial that a run of `add` stands on: `added_to.json` in its folder."""

import json
from dataclasses import asdict, dataclass

from bora_sweep.errors import InputError
from bora_sweep.runs.storage import Folder, read_bytes, write_bytes

SOURCE = "added_to.json"


@dataclass(frozen=True)
class Source:
    """The trial that new tasks are added to."""

    run: str
    """The run's folder, of this machine by its absolute path."""
    trial_id: str
    method: str
    tau: float
    refreshed: list[str]
    """Tasks of that trial that are fitted anew."""
    fingerprints: dict[str, str]
    """SHA-256 of files of that run, by their paths in it."""

    @property
    def folder(self) -> str:
        """The trial's folder."""
        return f"{self.run}/trials/{self.trial_id}"


def write_source(run: Folder, source: Source) -> None:
    """Write it into the folder of a run of `add`."""
    write_bytes(run / SOURCE, json.dumps(asdict(source), ensure_ascii=False, indent=1).encode(errors="surrogatepass"))


def read_source(run: Folder) -> Source:
    """What the run of `add` stands on.

    Raises:
        InputError: The run is of another command, or the file is gone or damaged.
    """
    try:
        return Source(**json.loads(read_bytes(run / SOURCE).decode(errors="surrogatepass")))
    except FileNotFoundError:
        raise InputError(f"{run}: has no {SOURCE}, so no `add` began it, or not all of it is here") from None
    except (ValueError, TypeError):
        raise InputError(f"{run / SOURCE}: damaged; restore it from a copy") from None
