"""Files of a run: on this machine, on a shared file system, or in an object store (`s3://`, `gs://`).

Every write is atomic. On a disk a temporary file is written and then renamed; an object store writes whole objects
anyway. While a storage does not answer, the operation is tried again. A file has the mode that the umask gives,
whatever library wrote it: safetensors gives its files to their owner alone.
"""

import errno
import logging
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from bora_sweep.config.paths import expand_home
from bora_sweep.errors import InputError, redact

if TYPE_CHECKING:
    from upath import UPath

    Folder: TypeAlias = Path | UPath
    """A run's folder, or a file in one."""
else:
    Folder = Path

T = TypeVar("T")

RETRY_SECONDS = 300.0
"""How long an operation is tried again while the storage does not answer."""
LONGEST_PAUSE = 10.0
"""Seconds between two tries."""
FINAL_ERRORS = (FileNotFoundError, FileExistsError, PermissionError, IsADirectoryError, NotADirectoryError, InputError)
LOST_CONNECTION = {errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETUNREACH}

log = logging.getLogger(__name__)


class StorageFullError(OSError):
    """No space is left where a run is written. The files that are there are complete, and the run can be resumed."""


def cache_folder() -> Path:
    """Folder for files that can be made again.

    `$BORA_SWEEP_CACHE`, else `$XDG_CACHE_HOME/bora_sweep`, else `~/.cache/bora_sweep`.
    """
    if cache := os.environ.get("BORA_SWEEP_CACHE"):
        return Path(expand_home(cache, "BORA_SWEEP_CACHE"))
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bora_sweep"


def folder_at(address: str | Folder) -> Folder:
    """The folder at a path of this machine, or at an address such as `s3://bucket/folder`.

    Args:
        address: A leading `~` is the user's home folder, and `~user` that of another.

    Raises:
        InputError: The kind of storage is unknown here, the address contains a password or a wildcard, or there is no
            such user.
    """
    text = str(address)
    if redact(text) != text:
        raise InputError(
            f"{redact(text)}: contains a password; set it in the environment instead, where the client reads it"
        )
    if "://" not in text:
        path = Path(expand_home(text))
        return path.absolute() if str(path).startswith("~") else path  # ./~name has become ~name, which is no home
    if text.startswith("file:"):
        raise InputError(f"{text}: give the path itself, without file://")
    if any(sign in text for sign in "*?[]"):
        raise InputError(f"{text}: contains one of * ? [ ], which are wildcards there; give another address")
    from upath import UPath  # not needed for runs on this machine

    try:
        path = UPath(text, use_listings_cache=False)
        path.fs  # noqa: B018, imports the client of this kind of storage
    except (ImportError, ValueError) as error:
        kind = text.partition("://")[0]
        mend = f"pip install 'bora-sweep[{kind}]'" if kind in ("s3", "gs") else "give a folder, s3://… or gs://…"
        raise InputError(f"{text}: cannot be opened ({' '.join(str(error).split())}); {mend}") from None
    return path


def atomic_write(path: Folder, write: Callable[[Path], Any]) -> None:
    """Write a file completely or not at all.

    Args:
        path: The file.
        write: Writes the content to the local path that it is given. That file becomes `path` once it is on disk.

    Raises:
        StorageFullError: No space is left; `path` is unchanged.
    """
    retry(path, lambda: _write_local(path, write) if isinstance(path, Path) else _upload(path, write))


def write_bytes(path: Folder, content: bytes) -> None:
    """`atomic_write` of `content`."""
    atomic_write(path, lambda file: file.write_bytes(content))


def read_bytes(path: Folder) -> bytes:
    """The content of a file."""
    return retry(path, path.read_bytes)


def exists(path: Folder) -> bool:
    """Whether the file exists, or a folder that is not empty."""
    return retry(path, path.exists)


def list_files(path: Folder, pattern: str) -> list[Folder]:
    """The files and folders directly in `path` whose names match the pattern, sorted by name."""
    return retry(path, lambda: sorted(path.glob(pattern), key=lambda file: file.name))


def modified_at(path: Folder) -> float:
    """When the file was last written, in seconds since 1970 by the storage's clock."""
    return retry(path, lambda: path.stat().st_mtime)


def remove(path: Folder) -> None:
    """Remove a file, if it exists."""
    retry(path, lambda: path.unlink(missing_ok=True))


def remove_folder(path: Folder) -> None:
    """Remove a folder with all that is in it, if it exists."""

    def work() -> None:
        if isinstance(path, Path):
            shutil.rmtree(path)
        else:
            path.fs.rm(path.path, recursive=True)

    with suppress(FileNotFoundError):
        retry(path, work)


def remove_parts(folder: Folder) -> None:
    """Remove the files in it whose writing was cut off: `atomic_write` leaves one where its process is killed."""
    for part in list_files(folder, ".*.part"):
        remove(part)


def read_local(path: Folder, read: Callable[[Path], T]) -> T:
    """`read(path)` of a local file; of a remote one, `read` of a temporary local copy."""
    if isinstance(path, Path):
        return retry(path, lambda: read(path))
    with tempfile.TemporaryDirectory(prefix="bora-sweep-") as scratch:
        copy = Path(scratch) / path.name
        retry(path, lambda: path.fs.get_file(path.path, str(copy)))
        return read(copy)


def retry(path: Folder, work: Callable[[], T]) -> T:
    """The result of `work`, which is tried again for `RETRY_SECONDS` while the storage does not answer."""
    deadline, pause = time.monotonic() + RETRY_SECONDS, 0.5
    while True:
        try:
            return work()
        except Exception as error:
            if not _is_temporary(path, error) or time.monotonic() + pause > deadline:
                raise
            log.warning("%s does not answer (%s); trying again in %.1f s", path, redact(str(error)), pause)
        time.sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE)


def _is_temporary(path: Folder, error: Exception) -> bool:
    """Whether to try again: after errors of a remote store that are not final, and after lost connections of a disk."""
    if isinstance(error, (*FINAL_ERRORS, StorageFullError)):
        return False
    return not isinstance(path, Path) or (isinstance(error, OSError) and error.errno in LOST_CONNECTION)


def _write_local(path: Path, write: Callable[[Path], Any]) -> None:
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.touch()
        mode = stat.S_IMODE(part.stat().st_mode)
        write(part)
        _set_mode(part, mode)
        _fsync(part)
        part.replace(path)
        _fsync(path.parent)
    except Exception as error:  # each library raises its own for a full disk
        if _is_disk_full(error):
            existing = next(parent for parent in path.absolute().parents if parent.exists())
            free = shutil.disk_usage(existing).free
            raise StorageFullError(
                errno.ENOSPC, f"no space left for {path} ({free:,} bytes free); free some space, then use --resume"
            ) from error
        raise
    finally:
        part.unlink(missing_ok=True)


def give_usual_modes(folder: Path) -> None:
    """Give files that other libraries have written, in a folder and below, the modes that the umask gives."""
    with tempfile.TemporaryDirectory(dir=folder, prefix=".") as scratch:
        new = Path(scratch) / "new"
        new.touch()
        mode = stat.S_IMODE(new.stat().st_mode)
    for place, _, names in os.walk(folder):
        for name in names:
            _set_mode(Path(place) / name, mode)


def _set_mode(file: Path, mode: int) -> None:
    if stat.S_IMODE(file.stat().st_mode) != mode:
        file.chmod(mode)


def _is_disk_full(error: Exception) -> bool:
    number = getattr(error, "errno", None)
    return number in (errno.ENOSPC, errno.EDQUOT) or "os error 28" in str(error) or "[Errno 28]" in str(error)


def _upload(path: "UPath", write: Callable[[Path], Any]) -> None:
    with tempfile.TemporaryDirectory(prefix="bora-sweep-") as scratch:
        copy = Path(scratch) / path.name
        write(copy)
        path.fs.put_file(str(copy), path.path)


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
