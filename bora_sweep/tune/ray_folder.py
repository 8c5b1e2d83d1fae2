"""What a local Ray needs of this machine, checked before any long work: a folder for its sockets, a token, no file
that hides a module.

The path of a Unix socket holds 107 bytes at most, and Ray's own part takes 68 of them. Where the path of the folder for
temporary files is too long, or the folder cannot hold a socket, a short one is made under `/tmp`. Only its user may
enter it, and it is removed when Ray ends.
"""

import os
import secrets
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from bora_sweep.errors import InputError

LONGEST_SOCKET = "ray/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store"
"""The longest path that Ray makes below its folder."""
FREE_BYTES = 1 << 20
"""That a folder must still have room for: the logs of Ray's processes."""
SHORT_FOLDER = Path("/tmp")


def check_ray_folder() -> None:
    """Refuse to begin where Ray could not start.

    Raises:
        InputError: As `ray_folder`.
    """
    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        with ray_folder():
            pass


@contextmanager
def ray_folder() -> Iterator[str]:
    """The folder for Ray's files: `ray` in `RAY_TMPDIR`, else in `TMPDIR`, else in `/tmp`.

    Raises:
        InputError: No such folder can hold Ray's sockets and logs.
    """
    ray_tmpdir = os.environ.get("RAY_TMPDIR")
    parent = Path(ray_tmpdir or os.environ.get("TMPDIR") or SHORT_FOLDER).absolute()
    reason = _why_unusable(parent)
    if reason is None:
        yield str(parent / "ray")
        return
    problem = f"{'RAY_TMPDIR' if ray_tmpdir else 'TMPDIR'}={parent}: Ray cannot keep its files there ({reason})"
    mend = "set RAY_TMPDIR to a folder that you can write in, with a short path, on a disk of this machine with room"
    if ray_tmpdir:
        raise InputError(f"{problem}; {mend}")
    try:
        temporary = tempfile.TemporaryDirectory(prefix="ray-", dir=SHORT_FOLDER, ignore_cleanup_errors=True)
    except OSError as error:
        raise InputError(f"{problem}, nor in {SHORT_FOLDER} ({error.strerror}); {mend}") from None
    with temporary as folder:  # Ray lets everybody into the folder that it is given, so it is given one inside
        if reason := _why_unusable(Path(folder)):
            raise InputError(f"{problem}, nor in {SHORT_FOLDER} ({reason}); {mend}")
        yield f"{folder}/ray"


def ensure_auth_token() -> None:
    """Set `RAY_AUTH_TOKEN` where no home folder can hold Ray's token file.

    A local Ray writes the token of its processes to `~/.ray/auth_token`, and ends where it cannot. Other users cannot
    read the environment either.
    """
    if "RAY_AUTH_TOKEN_PATH" in os.environ:
        return
    with suppress(OSError, RuntimeError):  # RuntimeError: there is no home folder at all
        folder = Path.home() / ".ray"
        if (folder / "auth_token").exists():
            return
        folder.mkdir(exist_ok=True)
        if os.access(folder, os.W_OK):
            return
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))


def refuse_shadowing_files() -> None:
    """Refuse files in the working folder that have the name of a module in use.

    Ray puts the working folder first on its workers' module path: they would import `random.py` from there.

    Raises:
        InputError: There is such a file.
    """
    folder = Path.cwd()
    for name in sorted({module.partition(".")[0] for module in sys.modules}):
        for file in (folder / f"{name}.py", folder / name / "__init__.py"):
            imported_from = getattr(sys.modules.get(name), "__file__", None)
            is_imported = imported_from is not None and Path(imported_from).absolute().is_relative_to(folder)
            if file.is_file() and not is_imported:
                raise InputError(
                    f"{file}: Ray's workers would import it in place of the module `{name}` that they need; rename it, "
                    "or start in another folder"
                )


def _why_unusable(parent: Path) -> str | None:
    """Why Ray's sockets or logs cannot be in `parent`; None where they can."""
    max_bytes = 103 if sys.platform == "darwin" else 107
    if len(os.fsencode(parent / LONGEST_SOCKET)) > max_bytes:
        return f"its path is too long for a socket, which has {max_bytes} bytes at most"
    try:
        parent.mkdir(parents=True, exist_ok=True)
        existing = parent / "ray"  # of the user who started a Ray here first
        with tempfile.TemporaryDirectory(prefix="ray-try-", dir=existing if existing.exists() else parent) as folder:
            (Path(folder) / "log").write_bytes(bytes(FREE_BYTES))
            with socket.socket(socket.AF_UNIX) as opened:
                opened.bind(f"{folder}/socket")
    except OSError as error:
        return error.strerror or str(error)
    return None
