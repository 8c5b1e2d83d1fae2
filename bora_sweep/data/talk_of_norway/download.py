"""A file from an address, whole or not at all; and the same file ever after, by its size and checksum."""

import hashlib
import http.client
import json
import os
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from bora_sweep.errors import InputError, one_line
from bora_sweep.runs.storage import write_bytes

ATTEMPTS = 5
"""Each goes on where the one before ended."""
TIMEOUT = 60.0  # seconds without a byte
_BLOCK_BYTES = 1 << 20


def fetch(address: str, path: Path) -> None:
    """Write what is at `address` to `path`, with a bar on stderr.

    It grows beside `path`, as `.NAME.part`, and takes its name once it is complete. One that was cut off is gone on
    with, also by a later call, where the server still has the same file; else it is begun anew.

    Raises:
        InputError: It cannot be fetched, or not be written.
    """
    part = path.with_name(f".{path.name}.part")
    columns = TextColumn(path.name), BarColumn(), DownloadColumn(), TimeRemainingColumn()
    error: Exception | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            shown = bar.add_task("")
            for _ in range(ATTEMPTS):
                try:
                    _go_on(address, part, bar, shown)
                    break
                except urllib.error.HTTPError as answer:
                    if answer.code != http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                        raise _unreachable(address, path, answer) from None
                    part.unlink(missing_ok=True)  # there is no rest: it is all there, or of another file
                except (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError) as cut_off:
                    error = cut_off
            else:
                raise _unreachable(address, path, error)
        part.replace(path)
        _about(part).unlink(missing_ok=True)
    except OSError as full:
        raise InputError(f"data.path={path.parent}: {path.name} cannot be written there: {one_line(full)}") from None


def _unreachable(address: str, path: Path, error: Exception | None) -> InputError:
    why = one_line(error) if error else "no answer"
    return InputError(
        f"{address}: cannot be fetched ({why}); try again, or fetch it elsewhere and put it at {path}: data.path takes "
        "the archive, its folder, or the ton.csv in it"
    )


def _go_on(address: str, part: Path, bar: Progress, shown: TaskID) -> None:
    """One request: for the rest where there is a part of this same file, else for the whole."""
    request = urllib.request.Request(address)
    tag = _tag_of(part)
    if tag is not None:
        request.add_header("Range", f"bytes={part.stat().st_size}-")
        request.add_header("If-Range", tag)
    with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
        has_rest = answer.status == http.HTTPStatus.PARTIAL_CONTENT
        begun = part.stat().st_size if has_rest else 0
        length = answer.headers.get("Content-Length")
        total = None if length is None else begun + int(length)
        if not has_rest:
            part.unlink(missing_ok=True)
            tag = answer.headers.get("ETag") or answer.headers.get("Last-Modified") or ""
            _about(part).write_text(json.dumps({"tag": tag}))
        bar.update(shown, total=total, completed=begun)
        with open(part, "ab") as file:
            while block := answer.read(_BLOCK_BYTES):
                file.write(block)
                bar.advance(shown, len(block))
            file.flush()
            os.fsync(file.fileno())
            if total is not None and file.tell() < total:
                raise http.client.IncompleteRead(b"", total - file.tell())


def _about(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _tag_of(part: Path) -> str | None:
    """What names the version that `part` is of, where its server said one."""
    with suppress(OSError, ValueError, KeyError):
        if part.stat().st_size:
            return json.loads(_about(part).read_text())["tag"] or None
    return None


def verified(path: Path) -> str:
    """The file's SHA-256, as it was when the file was first used.

    Size and checksum are written to `NAME.json` beside it at first, where its folder can be written to, and compared
    from then on.

    Raises:
        InputError: The file is another than it was.
    """
    with open(path, "rb") as file:
        found = {"size": os.fstat(file.fileno()).st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
    record = path.with_name(f"{path.name}.json")
    try:
        known = json.loads(record.read_text(encoding="utf-8"))
        differs = [f"{name} {found[name]}, not {known[name]}" for name in found if found[name] != known[name]]
    except FileNotFoundError:
        with suppress(OSError):
            write_bytes(record, f"{json.dumps(found)}\n".encode())
        return found["sha256"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{record}: cannot be read ({one_line(error)}); remove it, and it is made anew") from None
    if differs:
        raise InputError(
            f"{path}: not the file that was first used, by {record.name} beside it: {' and '.join(differs)}. Fetch it "
            f"anew, or remove {record.name} if the change is meant"
        )
    return found["sha256"]
