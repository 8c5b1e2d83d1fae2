"""The speeches in `ton.csv` as Parquet in the cache: read once, in blocks, and only in the columns needed."""

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
"""Of what is kept and how; raise it with any change of the rows or columns below."""
NAME = "ton.csv"
COLUMNS = (
    "id", "rep_id", "rep_first_name", "rep_last_name", "rep_name", "date", "time", "order", "title", "text",
)  # fmt: skip
ROWS = 5_000  # in memory at a time

KEPT = pa.schema(
    [
        ("id", pa.string()),
        ("person", pa.string()),  # rep_id, which tells people of one name apart
        ("name", pa.string()),
        ("day", pa.string()),  # 1998-10-07
        ("place", pa.int64()),  # among the day's speeches
        ("text", pa.string()),
    ]
)
LEFT_OUT = b"left_out"
"""Key of the file's metadata: JSON of the number of rows left out, by reason."""

_PRESIDENT = re.compile(r"president(?:en)?\b", re.IGNORECASE)
_DAY = re.compile(r"\d{4}-\d\d-\d\d")


def speeches(source: Path) -> Path:
    """`ton.csv`, or the one in an archive, as a Parquet file in the columns of `KEPT` and in the order of its rows.

    It lies in the cache under the source's checksum, written whole or not at all.

    Raises:
        InputError: The source is another than it was at first, is not `ton.csv`, or is damaged.
    """
    place = cache_folder() / f"talk_of_norway-{VERSION}-{verified(source)[:32]}.parquet"
    if not place.exists():
        try:
            atomic_write(place, lambda file: _convert(source, file))
        except OSError as error:
            raise InputError(
                f"{place.parent}: the speeches cannot be kept here ({one_line(error)}); set BORA_SWEEP_CACHE to a "
                "folder that you may write to and that has room"
            ) from None
    return place


def _convert(source: Path, file: Path) -> None:
    left_out: Counter[str] = Counter()
    try:
        with _opened(source) as stream, pa_parquet.ParquetWriter(file, KEPT, compression="zstd") as writer:
            for block in _blocks(stream, source):
                writer.write_table(_kept(block, source, left_out))
            writer.add_key_value_metadata({LEFT_OUT: json.dumps(left_out).encode()})
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"{source}: damaged ({one_line(error, limit=200)}); fetch it anew") from None
    except UnicodeDecodeError as error:
        raise InputError(
            f"{source}: cannot be read as the {NAME} of Talk of Norway: {one_line(error, limit=200)}; fetch it anew"
        ) from None


@contextmanager
def _opened(source: Path) -> Iterator[IO[bytes]]:
    """The bytes of `ton.csv`, straight from the file or out of a .tar.gz, of which nothing is unpacked to disk."""
    if source.name.lower().endswith(".csv"):
        with open(source, "rb") as stream:
            yield stream
        return
    with tarfile.open(source, "r:gz") as archive:
        while (member := archive.next()) is not None:
            if member.isfile() and Path(member.name).name == NAME:
                yield archive.extractfile(member)  # type: ignore[misc]
                return
            # There is a file for each speech, and tarfile remembers all that it passed.
            archive.members.clear()  # type: ignore[attr-defined]
    raise InputError(f"{source}: no {NAME} in this archive; give the archive of Talk of Norway v1.0.1, or its {NAME}")


def _blocks(stream: IO[bytes], source: Path) -> Iterator[pd.DataFrame]:
    """Rows as strings; nothing and NA, as R writes it, are no value."""
    rows = csv_rows(source, io.TextIOWrapper(stream, encoding="utf-8-sig", newline=""))
    _, header, _ = next(rows, (1, [], []))
    missing = [name for name in COLUMNS if name not in header]
    if missing:
        raise InputError(
            f"{source}: no column {', '.join(map(repr, missing))}; data.source=talk_of_norway needs the {NAME} of Talk "
            "of Norway v1.0.1, and for other text give data.source=file"
        )
    places, begun = [header.index(name) for name in COLUMNS], 0
    while block := [[row[place] for place in places] for _, row, _ in islice(rows, ROWS)]:
        values = [[None if value in ("", "NA") else value for value in row] for row in block]
        yield pd.DataFrame(values, range(begun, begun + len(block)), COLUMNS, dtype=object)
        begun += len(block)


def _kept(frame: pd.DataFrame, source: Path, left_out: Counter[str]) -> pa.Table:
    """The rows of representatives, in the columns of `KEPT`."""
    parts = frame["rep_first_name"].fillna("") + " " + frame["rep_last_name"].fillna("")
    names = pd.Series(frame["rep_name"].fillna(parts)).str.split().str.join(" ")
    is_president = _is_president(frame, "title") | _is_president(frame, "rep_name")
    has_name, has_text = names != "", frame["text"].notna()
    left_out["president"] += int(is_president.sum())
    left_out["nameless"] += int((~is_president & ~has_name).sum())
    left_out["textless"] += int((~is_president & has_name & ~has_text).sum())
    days = frame["date"].fillna(frame["time"]).str.slice(stop=10)
    wrong = days.notna() & ~days.str.fullmatch(_DAY).fillna(False).astype(bool)
    if wrong.any():
        row = int(wrong.to_numpy().argmax())
        raise InputError(
            f"{source}: row {frame.index[row]} (counted from 0): {days.iloc[row]!r} in column 'date' is no day such as "
            "1998-10-07"
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
