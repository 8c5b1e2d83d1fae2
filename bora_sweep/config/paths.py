"""Paths as users write them."""

import os.path

from bora_sweep.errors import InputError


def expand_home(path: str, key: str = "") -> str:
    """`path` with `~` and `~user` at its beginning as that user's home folder.

    Args:
        path: As given; an address such as `s3://…` stays as it is.
        key: That it was given for, if any.

    Raises:
        InputError: It is empty, or there is no such user.
    """
    given = f"{key}={path}" if key else path
    if not path or "\0" in path:
        raise InputError(f"{given!r}: is no path; give one, or leave it out")
    found = os.path.expanduser(path)
    if found.startswith("~"):
        user = path.partition("/")[0]
        raise InputError(f"{given}: {user} has no home folder here; a folder of that name is ./{path}")
    return found


def local_path(path: str, key: str = "") -> str:
    """`expand_home` of what must be on this machine.

    Raises:
        InputError: As there; or it is an address.
    """
    if "://" in path:
        given = f"{key}={path}" if key else path
        raise InputError(f"{given}: is an address; give a path of this machine, and copy to it what is there")
    return expand_home(path, key)
