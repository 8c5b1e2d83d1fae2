"""A tar file whose bytes depend on its content alone: its members are sorted, and have no owner and no time."""

import io
import os
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

from bora_sweep.runs.storage import Folder, read_local

TIME = 315_532_800
"""Of all members, in seconds since 1970: the first of January 1980, before which some programs refuse times."""


def write_tar(path: Path, files: Mapping[str, Folder | bytes]) -> None:
    """Write a tar file.

    Args:
        path: Where to.
        files: From a member's name to its file, or to its content.
    """
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for name, source in sorted(files.items()):
            if isinstance(source, bytes):
                _add(tar, name, io.BytesIO(source), len(source))
            else:
                read_local(source, lambda local, name=name: _add_file(tar, name, local))


def _add_file(tar: tarfile.TarFile, name: str, local: Path) -> None:
    with local.open("rb") as opened:
        _add(tar, name, opened, os.fstat(opened.fileno()).st_size)


def _add(tar: tarfile.TarFile, name: str, content: BinaryIO, size: int) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mtime, member.mode = size, TIME, 0o644
    tar.addfile(member, content)
