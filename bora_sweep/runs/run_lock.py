"""Who works on a run: one process at a time, known by a file that it renews while it lives."""

import json
import logging
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from bora_sweep.errors import InputError
from bora_sweep.runs.processes import is_here, is_same_kernel, lives, locked, this_process
from bora_sweep.runs.storage import Folder, read_bytes, remove, write_bytes

DRIVER = "driver.json"
BEAT = 15.0
"""Seconds between two signs of life of the process that drives a run."""
SILENT = 4 * BEAT
"""After which it counts as dead."""
log = logging.getLogger(__name__)


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


def read_driver(run: Folder) -> Driver | None:
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
def run_lock(run: Folder, command: str = "sweep") -> Iterator[None]:
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
        other = read_driver(run)
        if other is not None:
            _refuse(run, other)
        raise InputError(f"{run}: another process of this machine has just begun to drive it; let it end") from None


def _refuse_second(run: Folder, lock: bool) -> None:
    """Refuse a run whose driver may live; where that cannot be seen, its next sign of life is waited for."""
    told, other = _told(run), read_driver(run)
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
