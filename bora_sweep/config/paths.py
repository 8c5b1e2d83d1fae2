"""Paths as users write them, with `~` for a home folder."""

import os.path

from bora_sweep.errors import InputError


def expand_home(path: str, key: str = "") -> str:
    """`path` with a leading `~` or `~user` replaced by that user's home folder.

    Args:
        path: A path, or an address such as `s3://…`, which stays as it is.
        key: The configuration key that it was given for, if any.

    Raises:
        InputError: The path is empty, or there is no such user.
    """
    shown = f"{key}={path}" if key else path
    if not path or "\0" in path:
        raise InputError(f"{shown!r}: is not a path; give one, or leave it out")
    expanded = os.path.expanduser(path)
    if expanded.startswith("~"):
        user = path.partition("/")[0]
        raise InputError(f"{shown}: {user} has no home folder here; for a folder of that name write ./{path}")
    return expanded


def local_path(path: str, key: str = "") -> str:
    """`expand_home` of a path that must be on this machine.

    Raises:
        InputError: It is an address, or `expand_home` refuses it.
    """
    if "://" in path:
        shown = f"{key}={path}" if key else path
        raise InputError(f"{shown}: is an address; copy it to this machine and give its path")
    return expand_home(path, key)
