"""A run's folder: where it is, what was asked for in it, and who works on it."""

import json
import os
import shlex
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from bora_sweep.config import Config, load_config, with_values
from bora_sweep.errors import InputError
from bora_sweep.storage import Folder, exists, folder_at, read_bytes, remove, with_local, write_bytes

FREE_ON_RESUME = ("output", "ray.", "search.num_trials", "train.checkpoint_minutes")
HOME = Path("runs")

DRIVER = "driver.json"
BEAT = 15.0
"""Seconds between two signs of life of the process that drives a run."""
SILENT = 4 * BEAT
"""After which it counts as dead."""


def new_run(settings: Sequence[str], command: str) -> tuple[Config, Folder]:
    """The configuration that `settings` ask for, and the folder of a run that is not there yet.

    Raises:
        InputError: The settings are wrong, or the folder holds a run.
    """
    config = _absolute(load_config(settings))
    run = folder_at(config.output or HOME / f"{datetime.now():%Y-%m-%dT%H-%M-%S}-{command}")
    if exists(run / "config.yaml"):
        again = f"bora-sweep {command} --resume output={shlex.quote(str(run))}"
        raise InputError(f"output={run}: holds a run already; go on with it by {again}, or give another output")
    return config, run


def reopen_run(settings: Sequence[str], command: str) -> tuple[Config, Folder]:
    """The configuration of a run that was begun, with what may change on the way, and its folder.

    Raises:
        InputError: There is no such run, or the settings would change what its results mean.
    """
    asked = load_config(settings).output
    found = sorted(HOME.glob(f"*-{command}/config.yaml"))
    if asked is None and not found:
        raise InputError(f"--resume: no run of `{command}` in {HOME}/; name its folder with output=…")
    run = folder_at(asked) if asked is not None else found[-1].parent
    if not exists(run / "config.yaml"):
        raise InputError(f"output={run}: no config.yaml there, so no run to go on with; drop --resume to begin one")
    before = _config_of(run)
    config = _absolute(load_config(settings, base=before))
    for key, value in _flat(config.to_dict()).items():
        if value != _flat(before.to_dict())[key] and not key.startswith(FREE_ON_RESUME):
            raise InputError(
                f"{key}={value}: the run was begun with {_flat(before.to_dict())[key]}; give another output for this"
            )
    return config, run


def _config_of(run: Folder) -> Config:
    """What the run was begun with."""
    return with_local(run / "config.yaml", lambda file: load_config([str(file)]))


def create_run(config: Config, run: Folder) -> None:
    """Make the folder and write the resolved configuration, whole or not at all."""
    write_bytes(run / "config.yaml", config.to_yaml().encode())


@contextmanager
def driving(run: Folder) -> Iterator[None]:
    """Hold the run: a second process that would drive it is refused, until this one ends or falls silent.

    Raises:
        InputError: Another holds it.
    """
    _refuse_second(run)
    own = {"host": socket.gethostname(), "pid": os.getpid()}
    ended = threading.Event()

    def beat() -> None:
        write_bytes(run / DRIVER, json.dumps({**own, "alive_at": time.time()}).encode())

    def beat_on() -> None:
        while not ended.wait(BEAT):
            with suppress(Exception):  # a full disk, a storage that is away: the next may be written
                beat()

    beat()
    thread = threading.Thread(target=beat_on, name="bora-sweep driver", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        remove(run / DRIVER)


def _refuse_second(run: Folder) -> None:
    try:
        other = json.loads(read_bytes(run / DRIVER))
    except (FileNotFoundError, ValueError):
        return
    silent = time.time() - other["alive_at"]
    here = other["host"] == socket.gethostname()
    if silent > SILENT or (here and not _lives(other["pid"])):
        return
    who = f"process {other['pid']} on {other['host']}"
    mend = (
        f"stop it (kill {other['pid']}) or let it end"
        if here
        else f"after {SILENT:.0f} s without one it counts as dead"
    )
    raise InputError(f"{run}: driven by {who}, which gave a sign of life {max(0.0, silent):.0f} s ago; {mend}")


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _absolute(config: Config) -> Config:
    """Local paths made absolute, so that a resume or a worker elsewhere finds them from any folder."""
    changes: dict[str, Any] = {}
    if config.data.path is not None and config.data.kind == "file":
        changes["data"] = {"path": str(Path(config.data.path).absolute())}
    if config.model.name is not None and Path(config.model.name).is_dir():
        changes["model"] = {"name": str(Path(config.model.name).absolute())}
    if config.init_from is not None:
        changes["init_from"] = str(Path(config.init_from).absolute())
    return with_values(config, **changes)


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"prior": {"tau": 1.0}}` as `{"prior.tau": 1.0}`."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat
