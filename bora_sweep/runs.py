"""A run's folder: where it is, what was asked for in it, and who works on it."""

import json
import logging
import shlex
import socket
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

from bora_sweep.config import Config, Setting, load_config, with_values
from bora_sweep.errors import InputError
from bora_sweep.processes import is_here, is_same_kernel, lives, locked, this_process
from bora_sweep.storage import Folder, exists, folder_at, read_bytes, remove, with_local, write_bytes

FREE_ON_RESUME = ("output", "ray.", "search.num_trials", "tracking", "train.checkpoint_minutes")
HOME = Path("runs")

DRIVER = "driver.json"
BEAT = 15.0
"""Seconds between two signs of life of the process that drives a run."""
SILENT = 4 * BEAT
"""After which it counts as dead."""

log = logging.getLogger(__name__)


def new_run(settings: Sequence[Setting], command: str) -> tuple[Config, Folder]:
    """The configuration that `settings` ask for, and the folder of a run that is not there yet.

    Raises:
        InputError: The settings are wrong, or the folder holds a run or cannot be made.
    """
    config = _absolute(load_config(settings))
    run = folder_at(config.output or HOME / f"{datetime.now():%Y-%m-%dT%H-%M-%S}-{command}")
    _refuse_no_folder(run)
    if exists(run / "config.yaml"):
        again = f"bora-sweep {command} --resume output={shlex.quote(str(run))}"
        raise InputError(f"output={run}: holds a run already; go on with it by {again}, or give another output")
    return config, run


def _refuse_no_folder(run: Folder) -> None:
    """Refuse, before any long work, a folder that cannot be made or written in."""
    if not isinstance(run, Path):
        return
    try:
        there = next(folder for folder in (run, *run.absolute().parents) if folder.exists())
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise InputError(
            f"output={run}: cannot be made or written in ({error.strerror}); give another output"
        ) from None


def reopen_run(settings: Sequence[Setting], command: str) -> tuple[Config, Folder]:
    """The configuration of a run that was begun, with what may change on the way, and its folder.

    Raises:
        InputError: There is no such run, or the settings would change what its results mean.
    """
    asked = load_config(settings).output
    found = sorted(HOME.glob(f"????-??-??T??-??-??-{command}/config.yaml"))
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
            return load_config([file])
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
    """Whether it runs on this machine, and in this container."""
    is_alive: bool
    """Whether it could still write: here that is known, elsewhere its silence tells."""


def driver_of(run: Folder) -> Driver | None:
    """Who drives the run, or did when it was killed; None where nobody does."""
    told = _told(run)
    if told is None:
        return None
    silent = max(0.0, time.time() - told["alive_at"])
    here = is_here(told)
    is_alive = lives(told) and ("started" in told or silent <= SILENT) if here else silent <= SILENT
    return Driver(str(told.get("command", "sweep")), str(told["host"]), int(told["pid"]), silent, here, is_alive)


def _told(run: Folder) -> dict[str, Any] | None:
    """What the driver's file says, None where there is none that can be read."""
    try:
        told = json.loads(read_bytes(run / DRIVER))
        told |= {"host": str(told["host"]), "pid": int(told["pid"]), "alive_at": float(told["alive_at"])}
        return told
    except (FileNotFoundError, ValueError, TypeError, KeyError):
        return None


@contextmanager
def driving(run: Folder, command: str = "sweep") -> Iterator[None]:
    """Hold the run: a second process that would drive it is refused, until this one ends or falls silent.

    Raises:
        InputError: Another holds it.
    """
    with ExitStack() as held:
        lock = isinstance(run, Path) and _lock(run, held)
        _refuse_second(run, lock)
        own = {"command": command, **this_process(), "locked": lock}
        held.callback(_remove_own, run, own)
        held.enter_context(_beating(run, own))
        yield


@contextmanager
def _beating(run: Folder, own: dict[str, Any]) -> Iterator[None]:
    """Within, the driver's file is renewed."""
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


def _remove_own(run: Folder, own: dict[str, Any]) -> None:
    """Remove the driver's file, unless another has taken this process for dead and drives the run by now."""
    told = _told(run)
    if told is None or all(told.get(key) == value for key, value in own.items()):
        remove(run / DRIVER)


def _lock(run: Path, held: ExitStack) -> bool:
    """Whether the run's folder is now locked; not on some network file systems."""
    try:
        return held.enter_context(locked(run))
    except BlockingIOError:
        other = driver_of(run)
        if other is not None:
            _refuse(run, other)
        raise InputError(f"{run}: another process of this machine has just begun to drive it; let it end") from None


def _refuse_second(run: Folder, lock: bool) -> None:
    """Refuse a run whose driver may live; where that cannot be seen, its next sign of life is waited for."""
    told, other = _told(run), driver_of(run)
    if told is None or other is None or not other.is_alive:
        return
    if lock and told.get("locked") and is_same_kernel(told):
        return  # the system has taken the lock from it: it has ended, though its number may be another's
    is_ahead = told["alive_at"] > time.time() + BEAT
    if other.is_here or (other.host != socket.gethostname() and not is_ahead) or _gives_sign(run, other):
        _refuse(run, other)


def _gives_sign(run: Folder, other: Driver) -> bool:
    """Whether the driver renews its file within the time after which it counts as dead, by this process's clock.

    Its host has this one's name, as a container has that is started again, or its clock is ahead.
    """
    before, deadline = _told(run), time.monotonic() + SILENT - other.silent_seconds
    log.warning(
        "%s: process %d on %s may still drive it; waiting for a sign of life, for at most %.0f s",
        run, other.pid, other.host, SILENT - other.silent_seconds,
    )  # fmt: skip
    while time.monotonic() < deadline:
        time.sleep(min(1.0, SILENT / 10))
        if (told := _told(run)) != before:
            return told is not None
    return False


def _refuse(run: Folder, other: Driver) -> NoReturn:
    mend = (
        f"stop it (kill {other.pid}) or let it end"
        if other.is_here
        else f"after {SILENT:.0f} s without one it counts as dead"
    )
    raise InputError(
        f"{run}: driven by process {other.pid} on {other.host}, which gave a sign of life {other.silent_seconds:.0f} s "
        f"ago; {mend}"
    )


def _absolute(config: Config) -> Config:
    """Local paths made absolute, so that a resume or a worker elsewhere finds them from any folder."""
    changes: dict[str, Any] = {}
    if config.data.path is not None and (config.data.kind != "hub" or Path(config.data.path).exists()):
        changes["data"] = {"path": str(Path(config.data.path).absolute())}
    if config.data.split_from is not None and "://" not in config.data.split_from:
        split_from = str(Path(config.data.split_from).absolute())
        changes["data"] = {**changes.get("data", {}), "split_from": split_from}
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
