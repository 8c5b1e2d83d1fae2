"""One process at a time works on a run. It holds a lock and renews a file, the heartbeat, while it lives.

The lock works within one machine. The heartbeat also works across machines and in object stores.
"""

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
from bora_sweep.runs.process_identity import is_local, is_running, is_same_boot, lock_folder, this_process
from bora_sweep.runs.requests import STOP_FILE
from bora_sweep.runs.storage import Folder, read_bytes, remove, write_bytes

DRIVER_FILE = "driver.json"
"""In a run's folder: the process that works on it, and its last heartbeat."""
HEARTBEAT = 15.0
"""Seconds between two heartbeats."""
DEAD_AFTER = 4 * HEARTBEAT
"""Seconds without a heartbeat after which a process counts as dead."""
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Driver:
    """The process that works on a run, as its file said when it was read."""

    command: str
    """`fit` or `sweep`."""
    host: str
    pid: int
    silent_seconds: float
    """Since its last heartbeat."""
    is_local: bool
    """Whether it is of this machine and this container."""
    is_alive: bool
    """Whether it may still write. A local process can be looked up; of another only the heartbeat is known."""


@contextmanager
def run_lock(run: Folder, command: str = "sweep") -> Iterator[None]:
    """Let this process alone work on the run, until it leaves the context, ends, or has no heartbeat.

    Raises:
        InputError: Another process works on it.
    """
    with ExitStack() as stack:
        is_locked = isinstance(run, Path) and _lock_or_refuse(run, stack)
        _refuse_second(run, is_locked)
        remove(run / STOP_FILE)  # of an earlier start; one that comes once the driver's file is there is of this one
        driver = {"command": command, **this_process(), "locked": is_locked}
        stack.callback(_remove_driver_file, run, driver)
        stack.enter_context(_heartbeat(run, driver))
        yield


def read_driver(run: Folder) -> Driver | None:
    """The process that works on the run, or did when it was killed; None where there is none."""
    content = _read_driver_file(run)
    if content is None:
        return None
    silent = max(0.0, time.time() - content["alive_at"])
    local, has_heartbeat = is_local(content), silent <= DEAD_AFTER
    is_alive = is_running(content) and ("started" in content or has_heartbeat) if local else has_heartbeat
    return Driver(str(content.get("command", "sweep")), content["host"], content["pid"], silent, local, is_alive)


def _read_driver_file(run: Folder) -> dict[str, Any] | None:
    """The content of the driver's file; None where there is none that can be read."""
    try:
        content = json.loads(read_bytes(run / DRIVER_FILE))
        checked = {"host": str(content["host"]), "pid": int(content["pid"]), "alive_at": float(content["alive_at"])}
        return content | checked
    except (FileNotFoundError, ValueError, TypeError, KeyError):
        return None


@contextmanager
def _heartbeat(run: Folder, driver: dict[str, Any]) -> Iterator[None]:
    """Renew the driver's file every `HEARTBEAT` seconds, in a thread."""
    ended = threading.Event()

    def beat() -> None:
        write_bytes(run / DRIVER_FILE, json.dumps({**driver, "alive_at": time.time()}).encode())

    def beat_until_ended() -> None:
        while not ended.wait(HEARTBEAT):
            with suppress(Exception):  # the disk is full or the storage away: the next one may succeed
                beat()

    beat()
    thread = threading.Thread(target=beat_until_ended, name="bora-sweep driver", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _remove_driver_file(run: Folder, driver: dict[str, Any]) -> None:
    """Remove this process's file. Another process may have replaced it, having counted this one as dead."""
    content = _read_driver_file(run)
    if content is None or all(content.get(key) == value for key, value in driver.items()):
        remove(run / DRIVER_FILE)


def _lock_or_refuse(run: Path, stack: ExitStack) -> bool:
    """Lock the run's folder; False where the file system has no locks."""
    try:
        return stack.enter_context(lock_folder(run))
    except BlockingIOError:
        other = read_driver(run)
        if other is not None:
            _refuse(run, other)
        raise InputError(f"{run}: another process of this machine has just begun to work on it; let it end") from None


def _refuse_second(run: Folder, is_locked: bool) -> None:
    """Refuse a run whose driver may be alive; where that cannot be known, wait for its next heartbeat."""
    content, other = _read_driver_file(run), read_driver(run)
    if content is None or other is None or not other.is_alive:
        return
    if is_locked and content.get("locked") and is_same_boot(content):
        return  # it had the lock that this process has now, so it has ended, even if its number is in use again
    clock_is_ahead = content["alive_at"] > time.time() + HEARTBEAT
    is_elsewhere = other.host != socket.gethostname() and not clock_is_ahead
    if other.is_local or is_elsewhere or _await_heartbeat(run, other):
        _refuse(run, other)


def _await_heartbeat(run: Folder, other: Driver) -> bool:
    """Whether the driver renews its file before it counts as dead, by this process's clock.

    This is for a driver whose host has this one's name, as after a restart of a container, or whose clock is ahead.
    """
    before, deadline = _read_driver_file(run), time.monotonic() + DEAD_AFTER - other.silent_seconds
    log.warning(
        "%s: process %d on %s may still work on it; waiting for a heartbeat, for at most %.0f s",
        run, other.pid, other.host, DEAD_AFTER - other.silent_seconds,
    )  # fmt: skip
    while time.monotonic() < deadline:
        time.sleep(min(1.0, DEAD_AFTER / 10))
        if (content := _read_driver_file(run)) != before:
            return content is not None
    return False


def _refuse(run: Folder, other: Driver) -> NoReturn:
    mend = (
        f"stop it (kill {other.pid}) or let it end"
        if other.is_local
        else f"let it end; after {DEAD_AFTER:.0f} s without a heartbeat it counts as dead"
    )
    raise InputError(
        f"{run}: process {other.pid} on {other.host} works on it, with a heartbeat {other.silent_seconds:.0f} s ago; "
        f"{mend}"
    )
