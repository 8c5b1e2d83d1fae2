"""Files of a run, in a folder of this machine, of a shared file system or of an object store (`s3://`, `gs://`).

Every file is written whole or not at all: into a file beside it that then takes its name, or, where a store puts whole
objects anyway, at once. A storage that does not answer is waited for.
"""

import errno
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable
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

PATIENCE = 300.0  # seconds for which a storage that does not answer is asked again
LONGEST_PAUSE = 10.0
FINAL = (FileNotFoundError, FileExistsError, PermissionError, IsADirectoryError, NotADirectoryError, InputError)
UNREACHABLE = {errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETUNREACH}

log = logging.getLogger(__name__)


class StorageFullError(OSError):
    """No space is left where a run is written; what is there is whole, and the run goes on from it."""


def cache_folder() -> Path:
    """Where what can be made anew is kept: `$BORA_SWEEP_CACHE`, else `$XDG_CACHE_HOME/bora_sweep`, else
    `~/.cache/bora_sweep`."""
    if cache := os.environ.get("BORA_SWEEP_CACHE"):
        return Path(expand_home(cache, "BORA_SWEEP_CACHE"))
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bora_sweep"


def folder_at(address: str | Folder) -> Folder:
    """The folder at a path of this machine, or at an address such as `s3://bucket/folder`.

    Args:
        address: `~` at its beginning is the user's home, `~user` another's.

    Raises:
        InputError: The address is of a kind that is not known here, carries a password, or has signs that stand for
            others when a store is listed; there is no such user.
    """
    text = str(address)
    if redact(text) != text:
        raise InputError(f"{redact(text)}: holds a password; its client reads it from the environment")
    if "://" not in text:
        path = Path(expand_home(text))
        return path.absolute() if str(path).startswith("~") else path  # of ./~name its name is left, which is no home
    if text.startswith("file:"):
        raise InputError(f"{text}: give the path itself, without file://")
    if any(sign in text for sign in "*?[]"):
        raise InputError(f"{text}: has one of * ? [ ], which would stand for other names there; give another address")
    from upath import UPath  # fits in a local folder need no such package

    try:
        path = UPath(text, use_listings_cache=False)
        path.fs  # noqa: B018, connects the package that speaks with this kind of storage
    except (ImportError, ValueError) as error:
        kind = text.partition("://")[0]
        mend = f"pip install 'bora-sweep[{kind}]'" if kind in ("s3", "gs") else "give a folder, s3://… or gs://…"
        raise InputError(f"{text}: cannot be opened ({' '.join(str(error).split())}); {mend}") from None
    return path


def atomic_write(path: Folder, write: Callable[[Path], Any]) -> None:
    """Let `write` fill a local file, which becomes `path` once it is complete and on disk.

    Raises:
        StorageFullError: No space is left; `path` is as it was.
    """
    retry(path, lambda: _write_local(path, write) if isinstance(path, Path) else _upload(path, write))


def write_bytes(path: Folder, content: bytes) -> None:
    """`atomic_write` of bytes at hand."""
    atomic_write(path, lambda file: file.write_bytes(content))


def read_bytes(path: Folder) -> bytes:
    """The file's content."""
    return retry(path, path.read_bytes)


def exists(path: Folder) -> bool:
    """Whether there is such a file, or a folder with anything in it."""
    return retry(path, path.exists)


def list_files(path: Folder, pattern: str) -> list[Folder]:
    """The files and folders right in `path` whose names match, in the order of their names."""
    return retry(path, lambda: sorted(path.glob(pattern), key=lambda found: found.name))


def modified_at(path: Folder) -> float:
    """When the file was written last, in seconds since 1970 by the storage's clock."""
    return retry(path, lambda: path.stat().st_mtime)


def remove(path: Folder) -> None:
    """Remove a file; one that is gone already is no error."""
    retry(path, lambda: path.unlink(missing_ok=True))


def read_local(path: Folder, read: Callable[[Path], T]) -> T:
    """What `read` makes of the file, of which it is given a copy on this machine where it is not there already."""
    if isinstance(path, Path):
        return retry(path, lambda: read(path))
    with tempfile.TemporaryDirectory(prefix="bora-sweep-") as scratch:
        copy = Path(scratch) / path.name
        retry(path, lambda: path.fs.get_file(path.path, str(copy)))
        return read(copy)


def retry(path: Folder, work: Callable[[], T]) -> T:
    """`work`, again and again while the storage does not answer, for at most `PATIENCE` seconds."""
    deadline, pause = time.monotonic() + PATIENCE, 0.5
    while True:
        try:
            return work()
        except Exception as error:
            if not _may_pass(path, error) or time.monotonic() + pause > deadline:
                raise
            log.warning("%s does not answer (%s); trying again in %.1f s", path, redact(str(error)), pause)
        time.sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE)


def _may_pass(path: Folder, error: Exception) -> bool:
    """Whether to wait: any failure of a remote store but the final ones, and of a disk those of a lost connection."""
    if isinstance(error, (*FINAL, StorageFullError)):
        return False
    return not isinstance(path, Path) or (isinstance(error, OSError) and error.errno in UNREACHABLE)


def _write_local(path: Path, write: Callable[[Path], Any]) -> None:
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(part)
        _flush(part)
        part.replace(path)
        _flush(path.parent)
    except Exception as error:  # each library has its own for a full disk
        if _is_full(error):
            free = shutil.disk_usage(_existing(path)).free
            raise StorageFullError(
                errno.ENOSPC, f"no space left for {path} ({free:,} bytes free); make room, and go on by --resume"
            ) from error
        raise
    finally:
        part.unlink(missing_ok=True)


def _is_full(error: Exception) -> bool:
    number = getattr(error, "errno", None)
    return number in (errno.ENOSPC, errno.EDQUOT) or "os error 28" in str(error) or "[Errno 28]" in str(error)


def _existing(path: Path) -> Path:
    return next(parent for parent in path.absolute().parents if parent.exists())


def _upload(path: "UPath", write: Callable[[Path], Any]) -> None:
    with tempfile.TemporaryDirectory(prefix="bora-sweep-") as scratch:
        copy = Path(scratch) / path.name
        write(copy)
        path.fs.put_file(str(copy), path.path)


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
