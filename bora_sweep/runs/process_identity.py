"""Recognise a process again, and tell whether it still runs.

A process number alone is not enough: the system gives it to other processes later, and another machine or container
has its own numbers.
"""

import fcntl
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

BOOT_ID, PID_NAMESPACE = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
START_TOLERANCE = 2.0
"""Seconds. The clock that start times are read from counts whole ones."""


def this_process() -> dict[str, Any]:
    """What identifies this process, as JSON: its number, its start time, and the machine."""
    return {**_machine(), "pid": os.getpid(), "started": _start_time(os.getpid())}


def is_local(process: Mapping[str, Any]) -> bool:
    """Whether the process is of this machine since its last boot, and of this container.

    Args:
        process: As `this_process` gives it. An older release wrote fewer keys; a missing one counts as equal.
    """
    return process["host"] == socket.gethostname() and all(
        process.get(key, value) == value for key, value in _machine().items()
    )


def is_same_boot(process: Mapping[str, Any]) -> bool:
    """Whether the process is of this machine since its last boot, in any container."""
    return process.get("boot") is not None and process["boot"] == _machine()["boot"]


def is_running(process: Mapping[str, Any]) -> bool:
    """Whether a process that `is_local` has not ended.

    A process with its number but another start time is a different one. An older release wrote no start time; its
    process cannot be this one, so this process's own number counts as a different process too.
    """
    pid, started = int(process["pid"]), process.get("started")
    if pid <= 0 or (started is None and pid == os.getpid()):
        return False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass  # another user's
    try:
        is_zombie = psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
        return not is_zombie and (started is None or abs(_start_time(pid) - float(started)) < START_TOLERANCE)
    except psutil.Error:
        return True  # it exists, but this user may not look at it


@contextmanager
def lock_folder(folder: Path) -> Iterator[bool]:
    """Lock the folder against every other process of this machine that also locks it.

    The system releases the lock when the process ends, however it ends.

    Yields:
        Whether the file system supports locks.

    Raises:
        BlockingIOError: Another process has locked it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        yield _lock(handle)
    finally:
        os.close(handle)


def _lock(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:  # some network file systems have no locks
        return False
    return True


def _machine() -> dict[str, Any]:
    """What process numbers belong to: the host, its last boot, and the container (PID namespace)."""
    boot = BOOT_ID.read_text().strip() if BOOT_ID.is_file() else None
    pids = None
    with suppress(OSError):
        pids = os.readlink(PID_NAMESPACE)
    return {"host": socket.gethostname(), "boot": boot, "pids": pids}


def _start_time(pid: int) -> float:
    """Seconds from the machine's boot to the start of the process; the time of day may be changed."""
    return psutil.Process(pid).create_time() - psutil.boot_time()
