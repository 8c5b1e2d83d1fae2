"""The folder in which a Ray of our own keeps its sockets and logs: found, and tried, before any long work.

The path of a Unix socket holds 107 bytes at most, of which Ray's own part takes 68. Where the folder for temporary
files is too long, or cannot hold a socket, a short one is made that only its user may enter, and removed with the Ray.
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

SOCKET = "ray/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store"
"""A path as Ray makes them, at its longest."""
TRIED_BYTES = 1 << 20
"""That a folder must still hold: logs of Ray's processes."""
SHORT = Path("/tmp")


def check_ray_folder() -> None:
    """Refuse to begin where Ray could not start.

    Raises:
        InputError: No folder that is offered can hold its sockets.
    """
    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        with ray_folder():
            pass


@contextmanager
def ray_folder() -> Iterator[str]:
    """Where `ray.init` is to put its files: in `RAY_TMPDIR`, else in `TMPDIR`, else in `/tmp`.

    Raises:
        InputError: As for `check_ray_folder`.
    """
    named = os.environ.get("RAY_TMPDIR")
    place = Path(named or os.environ.get("TMPDIR") or SHORT).absolute()
    why = _trouble(place)
    if why is None:
        yield str(place / "ray")
        return
    said = f"{'RAY_TMPDIR' if named else 'TMPDIR'}={place}: Ray cannot keep its files there ({why})"
    mend = "name by RAY_TMPDIR a folder that you can write in, of few letters, on a disk of this machine with room"
    if named:
        raise InputError(f"{said}; {mend}")
    try:
        own = tempfile.TemporaryDirectory(prefix="ray-", dir=SHORT, ignore_cleanup_errors=True)
    except OSError as error:
        raise InputError(f"{said}, nor in {SHORT} ({error.strerror}); {mend}") from None
    with own as folder:  # Ray lets everybody into the folder that it is given, which is one in this
        if why := _trouble(Path(folder)):
            raise InputError(f"{said}, nor in {SHORT} ({why}); {mend}")
        yield f"{folder}/ray"


def keep_secret() -> None:
    """Have a Ray of our own find the secret by which its processes know each other, where no home folder can keep it.

    Ray writes it to `~/.ray/auth_token`, and ends where it cannot. Of the environment, too, others can read nothing.
    """
    if "RAY_AUTH_TOKEN_PATH" in os.environ:
        return
    with suppress(OSError, RuntimeError):  # the latter: no home folder at all
        folder = Path.home() / ".ray"
        if (folder / "auth_token").exists():
            return
        folder.mkdir(exist_ok=True)
        if os.access(folder, os.W_OK):
            return
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))


def refuse_shadows() -> None:
    """Refuse files of the working folder that bear the name of a module which is in use.

    Ray puts the working folder first where its workers look for modules: they would import `random.py` from there.

    Raises:
        InputError: There is such a file.
    """
    here = Path.cwd()
    for name in sorted({module.partition(".")[0] for module in sys.modules}):
        for own in (here / f"{name}.py", here / name / "__init__.py"):
            used = getattr(sys.modules.get(name), "__file__", None)
            if own.is_file() and (used is None or not Path(used).absolute().is_relative_to(here)):
                raise InputError(
                    f"{own}: Ray's workers would import it in place of the module `{name}` that they need; rename it, "
                    "or start in another folder"
                )


def _trouble(place: Path) -> str | None:
    """Why a socket of Ray's, or what it writes, cannot be there."""
    longest = place / SOCKET
    if len(os.fsencode(longest)) > _most_bytes():
        return f"its path would leave too few of the {_most_bytes()} bytes that a socket's may have"
    try:
        place.mkdir(parents=True, exist_ok=True)
        others = place / "ray"  # of whoever started a Ray here first
        with tempfile.TemporaryDirectory(prefix="ray-try-", dir=others if others.exists() else place) as tried:
            (Path(tried) / "log").write_bytes(bytes(TRIED_BYTES))
            with socket.socket(socket.AF_UNIX) as opened:
                opened.bind(f"{tried}/socket")
    except OSError as error:
        return error.strerror or str(error)
    return None


def _most_bytes() -> int:
    return 103 if sys.platform == "darwin" else 107
