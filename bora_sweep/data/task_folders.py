"""The folder of each task: a name that every file system takes, and that no two tasks share."""

import re
import unicodedata
from collections.abc import Sequence

from bora_sweep.errors import InputError

_MAX_BYTES = 240
"""File systems take 255; some of them need room for a suffix."""


def folder_name(task: str) -> str:
    """A folder name for `task`: at most 100 characters, never a path, never hidden.

    Letters, marks and digits of any script stay, and so do dots, hyphens and underscores within the name. All else
    becomes an underscore. No name begins with a dot, a hyphen or an underscore, so `_global` stays free.
    """
    kept = "".join(c if unicodedata.category(c)[0] in "LMN" or c in ".-_" else " " for c in _nfc(task))
    name = "_".join(kept.split())[:100].encode()[:_MAX_BYTES].decode(errors="ignore").strip("._-")
    reserved = re.fullmatch(r"(con|prn|aux|nul|(com|lpt)[0-9¹²³])(\..*)?", name, re.IGNORECASE)  # on Windows
    return f"task_{name}"[:100].rstrip("._-") if reserved or not name else name


def refuse_shared_folders(source: object, tasks: Sequence[str]) -> None:
    """Refuse tasks that would have the same folder, also where upper and lower case are the same.

    Raises:
        InputError: Two tasks would share a folder.
    """
    task_of_folder: dict[str, str] = {}
    for task in tasks:
        folder = folder_name(task)
        other = task_of_folder.setdefault(folder.casefold(), task)
        if other != task:
            show = ascii if _nfc(other) == _nfc(task) else repr  # repr would print both alike
            raise InputError(
                f"{source}: tasks {show(other)} and {show(task)} would share the folder {folder!r}; rename one of "
                "them, or give both one name if they are one task"
            )


def _nfc(text: str) -> str:
    return unicodedata.normalize("NFC", text)
