"""Which process is meant, and whether it lives: its number alone is given to others, and means nothing elsewhere."""

import fcntl
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

BOOT, PIDS = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
SAME_START = 2.0
"""Seconds; the clock that starts are read from is set in whole ones."""


def this_process() -> dict[str, Any]:
    """This process, as JSON: its number, when it started, and where such numbers are given."""
    return {**_place(), "pid": os.getpid(), "started": _started(os.getpid())}


def is_here(told: Mapping[str, Any]) -> bool:
    """Whether the number of a process told by `this_process` is one of this machine, since it was booted last, and of
    this container; what an older release did not tell is taken to be so."""
    return told["host"] == socket.gethostname() and all(
        told.get(key, value) == value for key, value in _place().items()
    )


def is_same_kernel(told: Mapping[str, Any]) -> bool:
    """Whether it ran on this machine since that was booted last, in whichever container."""
    return told.get("boot") is not None and told["boot"] == _place()["boot"]


def lives(told: Mapping[str, Any]) -> bool:
    """Whether a process that `is_here` has not ended.

    Its number may have gone to another since, which started at another time; so it has where it is this process's own
    and nothing was told of the start, as an older release did.
    """
    pid, started = int(told["pid"]), told.get("started")
    if pid <= 0 or (started is None and pid == os.getpid()):
        return False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass  # another user's
    try:
        ended = psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
        return not ended and (started is None or abs(_started(pid) - float(started)) < SAME_START)
    except psutil.Error:
        return True  # it is there, and what it is may not be seen


@contextmanager
def locked(folder: Path) -> Iterator[bool]:
    """Within, the folder is this process's alone among all of this machine's, as far as they ask; the system lets go of
    it when the process ends, however that may be.

    Yields:
        Whether this file system can lock.

    Raises:
        BlockingIOError: Another process has it.
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
    except OSError:  # some network file systems cannot
        return False
    return True


def _place() -> dict[str, Any]:
    """Where processes have their numbers from: the host, its last boot, and within it the container."""
    boot = BOOT.read_text().strip() if BOOT.is_file() else None
    pids = None
    with suppress(OSError):
        pids = os.readlink(PIDS)
    return {"host": socket.gethostname(), "boot": boot, "pids": pids}


def _started(pid: int) -> float:
    """Seconds after the machine's boot; the time of day may be set anew."""
    return psutil.Process(pid).create_time() - psutil.boot_time()
