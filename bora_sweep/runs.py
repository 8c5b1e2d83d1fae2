"""A run's folder: where it is, what was asked for in it, and who works on it."""

import json
import os
import shlex
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from bora_sweep.config import Config, Setting, load_config, with_values
from bora_sweep.errors import InputError
from bora_sweep.storage import Folder, exists, folder_at, read_bytes, remove, with_local, write_bytes

FREE_ON_RESUME = ("output", "ray.", "search.num_trials", "tracking", "train.checkpoint_minutes")
HOME = Path("runs")

DRIVER = "driver.json"
BEAT = 15.0
"""Seconds between two signs of life of the process that drives a run."""
SILENT = 4 * BEAT
"""After which it counts as dead."""


def new_run(settings: Sequence[Setting], command: str) -> tuple[Config, Folder]:
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


def reopen_run(settings: Sequence[Setting], command: str) -> tuple[Config, Folder]:
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
    before = config_of(run)
    config = _absolute(load_config(settings, base=before))
    for key, value in _flat(config.to_dict()).items():
        if value != _flat(before.to_dict())[key] and not key.startswith(FREE_ON_RESUME):
            raise InputError(
                f"{key}={value}: the run was begun with {_flat(before.to_dict())[key]}; give another output for this"
            )
    return config, run


def config_of(run: Folder) -> Config:
    """What the run was begun with.

    Raises:
        InputError: `config.yaml` is not there, is damaged, or has keys that this version does not know.
    """
    path = run / "config.yaml"

    def read(file: Path) -> Config:
        if not file.is_file():
            raise FileNotFoundError
        try:
            return load_config([str(file)])
        except InputError as error:
            said = str(error).replace(str(file), str(path))
            raise InputError(f"{said}; the file is as another version of bora_sweep wrote it, or was changed") from None

    try:
        return with_local(path, read)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None


def create_run(config: Config, run: Folder) -> None:
    """Make the folder and write the resolved configuration, whole or not at all."""
    write_bytes(run / "config.yaml", config.to_yaml().encode())


@dataclass(frozen=True)
class Driver:
    """The process that drives a run, by the file that it renews while it lives: all as it was when that was read."""

    command: str
    """`fit` or `sweep`."""
    host: str
    pid: int
    silent_seconds: float
    """Since its last sign of life."""
    is_here: bool
    """Whether it runs on this machine."""
    is_alive: bool
    """Whether it could still write: on this machine that is known, elsewhere its silence tells."""


def driver_of(run: Folder) -> Driver | None:
    """Who drives the run, or did when it was killed; None where nobody does."""
    try:
        told = json.loads(read_bytes(run / DRIVER))
        silent = max(0.0, time.time() - told["alive_at"])
        command, host, pid = str(told.get("command", "sweep")), str(told["host"]), int(told["pid"])
    except (FileNotFoundError, ValueError, TypeError, KeyError):
        return None
    is_here = host == socket.gethostname()
    return Driver(command, host, pid, silent, is_here, is_alive=silent <= SILENT and (not is_here or _lives(pid)))


@contextmanager
def driving(run: Folder, command: str = "sweep") -> Iterator[None]:
    """Hold the run: a second process that would drive it is refused, until this one ends or falls silent.

    Raises:
        InputError: Another holds it.
    """
    _refuse_second(run)
    own = {"command": command, "host": socket.gethostname(), "pid": os.getpid()}
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
    other = driver_of(run)
    if other is None or not other.is_alive:
        return
    mend = (
        f"stop it (kill {other.pid}) or let it end"
        if other.is_here
        else f"after {SILENT:.0f} s without one it counts as dead"
    )
    raise InputError(
        f"{run}: driven by process {other.pid} on {other.host}, which gave a sign of life {other.silent_seconds:.0f} s "
        f"ago; {mend}"
    )


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
    if config.data.path is not None and (config.data.kind != "hub" or Path(config.data.path).exists()):
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
