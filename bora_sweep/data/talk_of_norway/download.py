"""Download a file with resumption, and verify that it stays the same file, by size and checksum."""

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
"""Requests per download. Each resumes where the one before ended."""
TIMEOUT = 60.0
"""Seconds without a byte after which a request has failed."""
_BLOCK_BYTES = 1 << 20


def fetch(address: str, path: Path) -> None:
    """Download `address` to `path`, with a progress bar on stderr.

    The download is written to `.NAME.part` beside `path`, and renamed once it is complete. An interrupted download
    resumes, also in a later call, if the server still has the same file. Otherwise it starts again.

    Raises:
        InputError: It cannot be downloaded or written.
    """
    part = path.with_name(f".{path.name}.part")
    columns = TextColumn(path.name), BarColumn(), DownloadColumn(), TimeRemainingColumn()
    error: Exception | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task("")
            for _ in range(ATTEMPTS):
                try:
                    _request(address, part, bar, task)
                    break
                except urllib.error.HTTPError as answer:
                    if answer.code != http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                        raise _unreachable(address, path, answer) from None
                    part.unlink(missing_ok=True)  # nothing is left: the part is complete, or of another file
                except (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError) as failure:
                    error = failure
            else:
                raise _unreachable(address, path, error)
        part.replace(path)
        _tag_file(part).unlink(missing_ok=True)
    except OSError as failure:
        raise InputError(f"data.path={path.parent}: {path.name} cannot be written there: {one_line(failure)}") from None


def _unreachable(address: str, path: Path, error: Exception | None) -> InputError:
    why = one_line(error) if error else "no answer"
    return InputError(
        f"{address}: cannot be downloaded ({why}); try again, or put the file at {path} yourself: data.path takes "
        "the archive, its folder, or the ton.csv in it"
    )


def _request(address: str, part: Path, bar: Progress, task: TaskID) -> None:
    """One request: for the rest of the file, if `part` is of the same file; else for all of it."""
    request = urllib.request.Request(address)
    tag = _tag_of(part)
    if tag is not None:
        request.add_header("Range", f"bytes={part.stat().st_size}-")
        request.add_header("If-Range", tag)
    with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
        is_rest = answer.status == http.HTTPStatus.PARTIAL_CONTENT
        start = part.stat().st_size if is_rest else 0
        length = answer.headers.get("Content-Length")
        total = None if length is None else start + int(length)
        if not is_rest:
            part.unlink(missing_ok=True)
            tag = answer.headers.get("ETag") or answer.headers.get("Last-Modified") or ""
            _tag_file(part).write_text(json.dumps({"tag": tag}))
        bar.update(task, total=total, completed=start)
        with open(part, "ab") as file:
            while block := answer.read(_BLOCK_BYTES):
                file.write(block)
                bar.advance(task, len(block))
            file.flush()
            os.fsync(file.fileno())
            if total is not None and file.tell() < total:
                raise http.client.IncompleteRead(b"", total - file.tell())


def _tag_file(part: Path) -> Path:
    """The file that names the version which `part` is of."""
    return part.with_name(f"{part.name}.json")


def _tag_of(part: Path) -> str | None:
    """The version that `part` is of, as its server named it; None where it named none."""
    with suppress(OSError, ValueError, KeyError):
        if part.stat().st_size:
            return json.loads(_tag_file(part).read_text())["tag"] or None
    return None


def verified(path: Path) -> str:
    """The SHA-256 of a file, after a check that the file is the same as at its first use.

    At the first use, size and checksum are written to `NAME.json` beside it, if the folder is writable. Later uses
    compare with them.

    Raises:
        InputError: The file has changed.
    """
    with open(path, "rb") as file:
        now = {"size": os.fstat(file.fileno()).st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
    record = path.with_name(f"{path.name}.json")
    try:
        known = json.loads(record.read_text(encoding="utf-8"))
        differs = [f"{name} {now[name]}, not {known[name]}" for name in now if now[name] != known[name]]
    except FileNotFoundError:
        with suppress(OSError):
            write_bytes(record, f"{json.dumps(now)}\n".encode())
        return now["sha256"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{record}: cannot be read ({one_line(error)}); remove it, and it is made again") from None
    if differs:
        raise InputError(
            f"{path}: not the file that was first used, says {record.name}: {' and '.join(differs)}. Download it "
            f"again, or remove {record.name} if the change is intended"
        )
    return now["sha256"]
