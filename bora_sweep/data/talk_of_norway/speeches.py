"""Convert `ton.csv` to Parquet once, in blocks, with the columns that are needed; the result is cached."""

import gzip
import io
import json
import re
import tarfile
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import IO

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pa_parquet

from bora_sweep.data.csv_rows import csv_rows
from bora_sweep.data.talk_of_norway.download import verified
from bora_sweep.errors import InputError, one_line
from bora_sweep.runs.storage import atomic_write, cache_folder

VERSION = 2
"""Version of the cached file. Raise it with any change of the rows or columns below."""
NAME = "ton.csv"
COLUMNS = (
    "id", "rep_id", "rep_first_name", "rep_last_name", "rep_name", "date", "time", "order", "title", "text",
)  # fmt: skip
ROWS = 5_000
"""Rows in memory at a time."""

KEPT = pa.schema(
    [
        ("id", pa.string()),
        ("person", pa.string()),  # rep_id, which distinguishes people with the same name
        ("name", pa.string()),
        ("day", pa.string()),  # 1998-10-07
        ("place", pa.int64()),  # among the day's speeches
        ("text", pa.string()),
    ]
)
LEFT_OUT = b"left_out"
"""Key of the file's metadata: the number of rows left out, by reason, as JSON."""

_PRESIDENT = re.compile(r"president(?:en)?\b", re.IGNORECASE)
_DAY = re.compile(r"\d{4}-\d\d-\d\d")


def speeches(source: Path) -> Path:
    """The cached Parquet file of a `ton.csv`, or of an archive that contains it.

    The columns are those of `KEPT`, and the rows are in the source's order. The file is written atomically, and named
    by the source's checksum.

    Raises:
        InputError: The source has changed since its first use, is not `ton.csv`, or is damaged.
    """
    cached = cache_folder() / f"talk_of_norway-{VERSION}-{verified(source)[:32]}.parquet"
    if not cached.exists():
        try:
            atomic_write(cached, lambda file: _convert(source, file))
        except OSError as error:
            raise InputError(
                f"{cached.parent}: the speeches cannot be cached here ({one_line(error)}); set BORA_SWEEP_CACHE to a "
                "writable folder with enough space"
            ) from None
    return cached


def _convert(source: Path, file: Path) -> None:
    left_out: Counter[str] = Counter()
    try:
        with _opened(source) as stream, pa_parquet.ParquetWriter(file, KEPT, compression="zstd") as writer:
            for block in _blocks(stream, source):
                writer.write_table(_kept(block, source, left_out))
            writer.add_key_value_metadata({LEFT_OUT: json.dumps(left_out).encode()})
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"{source}: damaged ({one_line(error, limit=200)}); download it again") from None
    except UnicodeDecodeError as error:
        raise InputError(
            f"{source}: cannot be read as the {NAME} of Talk of Norway: {one_line(error, limit=200)}; download it again"
        ) from None


@contextmanager
def _opened(source: Path) -> Iterator[IO[bytes]]:
    """The bytes of `ton.csv`, from the file or from within a .tar.gz, without unpacking it to disk."""
    if source.name.lower().endswith(".csv"):
        with open(source, "rb") as stream:
            yield stream
        return
    with tarfile.open(source, "r:gz") as archive:
        while (member := archive.next()) is not None:
            if member.isfile() and Path(member.name).name == NAME:
                yield archive.extractfile(member)  # type: ignore[misc]
                return
            # The archive has a file for each speech, and tarfile would remember each of them.
            archive.members.clear()  # type: ignore[attr-defined]
    raise InputError(f"{source}: no {NAME} in this archive; give the archive of Talk of Norway v1.0.1, or its {NAME}")


def _blocks(stream: IO[bytes], source: Path) -> Iterator[pd.DataFrame]:
    """Blocks of rows as strings. Empty fields and NA, as R writes it, are missing values."""
    rows = csv_rows(source, io.TextIOWrapper(stream, encoding="utf-8-sig", newline=""))
    _, header, _ = next(rows, (1, [], []))
    missing = [name for name in COLUMNS if name not in header]
    if missing:
        raise InputError(
            f"{source}: no column {', '.join(map(repr, missing))}; data.source=talk_of_norway needs the {NAME} of Talk "
            "of Norway v1.0.1, and for other text give data.source=file"
        )
    places, start = [header.index(name) for name in COLUMNS], 0
    while block := [[row[place] for place in places] for _, row, _ in islice(rows, ROWS)]:
        values = [[None if value in ("", "NA") else value for value in row] for row in block]
        yield pd.DataFrame(values, range(start, start + len(block)), COLUMNS, dtype=object)
        start += len(block)


def _kept(frame: pd.DataFrame, source: Path, left_out: Counter[str]) -> pa.Table:
    """The rows of representatives in the columns of `KEPT`; `left_out` counts the others."""
    parts = frame["rep_first_name"].fillna("") + " " + frame["rep_last_name"].fillna("")
    names = pd.Series(frame["rep_name"].fillna(parts)).str.split().str.join(" ")
    is_president = _is_president(frame, "title") | _is_president(frame, "rep_name")
    has_name, has_text = names != "", frame["text"].notna()
    left_out["president"] += int(is_president.sum())
    left_out["nameless"] += int((~is_president & ~has_name).sum())
    left_out["textless"] += int((~is_president & has_name & ~has_text).sum())
    days = frame["date"].fillna(frame["time"]).str.slice(stop=10)
    is_wrong = days.notna() & ~days.str.fullmatch(_DAY).fillna(False).astype(bool)
    if is_wrong.any():
        row = int(is_wrong.to_numpy().argmax())
        raise InputError(
            f"{source}: row {frame.index[row]} (counted from 0): {days.iloc[row]!r} in column 'date' is not a day such "
            "as 1998-10-07"
        )
    kept = pd.DataFrame(
        {
            "id": frame["id"].fillna(frame.index.to_series().astype(str)),
            "person": frame["rep_id"].fillna(names + ", no rep_id"),
            "name": names,
            "day": days,
            "place": pd.to_numeric(frame["order"], errors="coerce"),
            "text": frame["text"],
        }
    )
    return pa.Table.from_pandas(kept.loc[~is_president & has_name & has_text], KEPT, preserve_index=False)


def _is_president(frame: pd.DataFrame, column: str) -> pd.Series:
    return frame[column].fillna("").str.contains(_PRESIDENT).astype(bool)
