"""The documents of a run by fingerprint, each with its split, kept in a file so that another run leaves them there."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from bora_sweep.config import Config, DataConfig
from bora_sweep.data.split import SPLITS, loosely
from bora_sweep.errors import InputError, one_line
from bora_sweep.runs.storage import Folder, atomic_write, exists, folder_at, read_bytes

DOCUMENTS = "documents.parquet"
"""In a run's folder, and in an export's."""

_SCHEMA = pa.schema(
    [
        ("task", pa.string()),
        ("document_id", pa.string()),
        ("fingerprint", pa.string()),
        ("loose_fingerprint", pa.string()),
        ("split", pa.string()),
        ("carried", pa.bool_()),  # known to the run that this one goes on from, and not among its own documents
    ]
)
_TASKS = "tasks.json"  # of an export
_KEY = ["task", "document_id", "fingerprint"]


def with_fingerprints(documents: pd.DataFrame) -> pd.DataFrame:
    """`documents` with two columns more: of each text, and of what another way of writing the same file leaves of it.

    Half of a SHA-256 in hexadecimal.
    """
    loose = [loosely(text) for text in documents["text"]]
    return documents.assign(fingerprint=_fingerprints(documents["text"]), loose_fingerprint=_fingerprints(loose))


def _fingerprints(texts: Iterable[str]) -> list[str]:
    return [hashlib.sha256(text.encode()).hexdigest()[:32] for text in texts]


def write_documents(folder: Folder, record: pd.DataFrame) -> None:
    """Write the file of a run, whole or not at all."""
    table = pa.Table.from_pandas(record, _SCHEMA, preserve_index=False)
    atomic_write(folder / DOCUMENTS, lambda file: pq.write_table(table, file, compression="zstd"))


def read_documents(folder: Folder) -> pd.DataFrame:
    """Columns task, document_id, fingerprint, loose_fingerprint, split and carried.

    Raises:
        InputError: There is no such file in the folder, or it is damaged.
    """
    try:
        found = pq.ParquetFile(pa.BufferReader(read_bytes(folder / DOCUMENTS))).read()
        record = found.select(_SCHEMA.names).cast(_SCHEMA).to_pandas()
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(
            f"data.split_from={folder}: no {DOCUMENTS} is there; give the folder of a run, or of an export, of a "
            "bora_sweep that writes it"
        ) from None
    except (pa.ArrowException, OSError, KeyError) as error:
        raise InputError(
            f"{folder / DOCUMENTS}: damaged ({one_line(error, limit=200)}); restore it from a copy"
        ) from None
    if record.isna().any(axis=None) or not record["split"].isin(SPLITS).all():
        raise InputError(f"{folder / DOCUMENTS}: a document has no fingerprint, or a split of another name; restore it")
    return record


def records_of(config: Config) -> list[Folder]:
    """Where the documents are recorded that stay in their splits: those of `data.split_from`, and those that the
    adapters of `init_from` and a merged base were trained on."""
    exports = filter(None, (export_of(config.init_from), export_of(config.model.name)))
    return list(dict.fromkeys([*named_records(config.data), *exports]))


def named_records(data: DataConfig) -> list[Folder]:
    """The folder with the record that `data.split_from` names, if it names any."""
    if data.split_from is None:
        return []
    place = folder_at(data.split_from)
    return [place if exists(place / DOCUMENTS) else export_of(data.split_from) or place]


def export_of(path: str | None) -> Folder | None:
    """The folder with the record of an export: of one of its folders, or of itself; None where there is none."""
    if path is None or not Path(path).is_dir():
        return None
    folder = Path(path).resolve()
    if (folder / DOCUMENTS).is_file():
        return folder
    above = folder.parent
    return above if (above / DOCUMENTS).is_file() and (above / _TASKS).is_file() else None


def known_splits(documents: pd.DataFrame, known: pd.DataFrame) -> list[str | None]:
    """The split of each document that is known, None for the others.

    A document is known by task, id and text, else by its text, else by its text loosely: a file may come with other
    line breaks. A text in several splits counts as trained on before it counts as one that selects, and as that before
    one of test.

    Args:
        documents: Columns task, document_id and both fingerprints.
        known: As `read_documents` has it.
    """
    known = known.iloc[(-known["split"].map(SPLITS.index)).argsort(kind="stable")]  # of several records train counts
    of_document = dict(zip(known[_KEY].itertuples(index=False, name=None), known["split"], strict=True))
    exact, loose = (_split_of(known, column) for column in ("fingerprint", "loose_fingerprint"))
    keys = zip(documents[_KEY].itertuples(index=False, name=None), documents["loose_fingerprint"], strict=True)
    return [of_document.get(key, exact.get(key[2], loose.get(near))) for key, near in keys]


def _split_of(known: pd.DataFrame, column: str) -> dict[str, str]:
    """Of each fingerprint, its first in the order of `SPLITS`."""
    found: dict[str, str] = {}
    for split in reversed(SPLITS):
        found |= dict.fromkeys(known[column][known["split"] == split], split)
    return found


def record_of(documents: pd.DataFrame, known: pd.DataFrame | None) -> pd.DataFrame:
    """What `write_documents` writes: a run's own documents, and what it goes on from and has not itself."""
    own = documents[[*_KEY, "loose_fingerprint", "split"]].assign(carried=False)
    if known is None:
        return own
    pairs = set(own[["fingerprint", "split"]].itertuples(index=False, name=None))
    is_own = [pair in pairs for pair in known[["fingerprint", "split"]].itertuples(index=False, name=None)]
    return pd.concat([own, known[[not own for own in is_own]].assign(carried=True)], ignore_index=True)
