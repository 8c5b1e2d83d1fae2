"""The record of a run's documents: fingerprints and splits, so that a later run keeps each document in its split.

A run that starts from another's adapters must not report a document that those adapters were trained on.
"""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from bora_sweep.config import Config, DataConfig
from bora_sweep.data.documents import prompt_of
from bora_sweep.data.split import SPLITS, normalized
from bora_sweep.errors import InputError, one_line
from bora_sweep.runs.storage import Folder, atomic_write, exists, folder_at, read_bytes

DOCUMENTS = "documents.parquet"
"""The record, in the folder of a run and of an export."""

_SCHEMA = pa.schema(
    [
        ("task", pa.string()),
        ("document_id", pa.string()),
        ("fingerprint", pa.string()),
        ("loose_fingerprint", pa.string()),
        ("split", pa.string()),
        ("carried", pa.bool_()),  # not among the run's own documents, but in the record of one that it starts from
    ]
)
_TASKS = "tasks.json"  # in an export
_IDENTITY = ["task", "document_id", "fingerprint"]


def with_fingerprints(documents: pd.DataFrame, data: DataConfig) -> pd.DataFrame:
    """`documents` with columns fingerprint (of all of it) and loose_fingerprint (of what documents of a split share).

    The second one is of the prompt, or of the text where there is none, once it is `normalized`. A fingerprint is the
    first half of a SHA-256, in hexadecimal.

    Args:
        documents: Columns text and content, as `bora_sweep.data.documents.documents_of` makes them.
        data: What is kept together.
    """
    pairs = list(zip(documents["text"], documents["content"], strict=True))
    whole = [text if content is None else json.dumps([content, text], ensure_ascii=False) for text, content in pairs]
    loose = [normalized(prompt_of(text, content, data)) for text, content in pairs]
    return documents.assign(fingerprint=_fingerprints(whole), loose_fingerprint=_fingerprints(loose))


def _fingerprints(texts: Iterable[str]) -> list[str]:
    return [hashlib.sha256(text.encode()).hexdigest()[:32] for text in texts]


def write_documents(folder: Folder, record: pd.DataFrame) -> None:
    """Write the record into the folder of a run, atomically."""
    table = pa.Table.from_pandas(record, _SCHEMA, preserve_index=False)
    atomic_write(folder / DOCUMENTS, lambda file: pq.write_table(table, file, compression="zstd"))


def read_documents(folder: Folder) -> pd.DataFrame:
    """The record in a folder: columns task, document_id, fingerprint, loose_fingerprint, split and carried.

    Raises:
        InputError: The folder has no record, or it is damaged.
    """
    try:
        table = pq.ParquetFile(pa.BufferReader(read_bytes(folder / DOCUMENTS))).read()
        record = table.select(_SCHEMA.names).cast(_SCHEMA).to_pandas()
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(
            f"data.split_from={folder}: no {DOCUMENTS} there; give the folder of a run or an export of a bora_sweep "
            "that writes it"
        ) from None
    except (pa.ArrowException, OSError, KeyError) as error:
        raise InputError(
            f"{folder / DOCUMENTS}: damaged ({one_line(error, limit=200)}); restore it from a copy"
        ) from None
    if record.isna().any(axis=None) or not record["split"].isin(SPLITS).all():
        raise InputError(
            f"{folder / DOCUMENTS}: a document has no fingerprint, or an unknown split; restore it from a copy"
        )
    return record


def record_folders(config: Config) -> list[Folder]:
    """The folders whose records keep documents in their splits.

    They are that of `data.split_from`, and the exports that `init_from` and a merged `model.name` are part of.
    """
    exports = filter(None, (_export_folder(config.init_from), _export_folder(config.model.name)))
    return list(dict.fromkeys([*split_from(config.data), *exports]))


def split_from(data: DataConfig) -> list[Folder]:
    """The folder with the record that `data.split_from` names; empty where it is left out."""
    if data.split_from is None:
        return []
    folder = folder_at(data.split_from)
    return [folder if exists(folder / DOCUMENTS) else _export_folder(data.split_from) or folder]


def _export_folder(path: str | None) -> Folder | None:
    """The export that `path` is, or is a folder of; None where it is neither."""
    if path is None or not Path(path).is_dir():
        return None
    folder = Path(path).resolve()
    if (folder / DOCUMENTS).is_file():
        return folder
    parent = folder.parent
    return parent if (parent / DOCUMENTS).is_file() and (parent / _TASKS).is_file() else None


def known_splits(documents: pd.DataFrame, known: pd.DataFrame) -> list[str | None]:
    """The split of each known document, and None for the others.

    A document is known by task, id and text; else by its text; else by its normalized text, since a file may be saved
    with other line breaks, or by its prompt, so that no question is both trained on and tested. A text in several
    splits counts as train before validation, and as validation before test.

    Args:
        documents: Columns task, document_id, fingerprint and loose_fingerprint.
        known: One or several records, as `read_documents` reads them.
    """
    known = known.iloc[(-known["split"].map(SPLITS.index)).argsort(kind="stable")]  # train last, so that it wins
    by_identity = dict(zip(known[_IDENTITY].itertuples(index=False, name=None), known["split"], strict=True))
    by_text, by_normalized = (_split_by(known, column) for column in ("fingerprint", "loose_fingerprint"))
    identities = documents[_IDENTITY].itertuples(index=False, name=None)
    return [
        by_identity.get(identity, by_text.get(identity[2], by_normalized.get(loose)))
        for identity, loose in zip(identities, documents["loose_fingerprint"], strict=True)
    ]


def changed_tasks(before: pd.DataFrame, now: pd.DataFrame) -> list[str]:
    """The tasks whose own documents are not the same in two records, by id and by all that is read of them."""
    one, other = ({*record.loc[~record["carried"], _IDENTITY].itertuples(index=False, name=None)}
                  for record in (before, now))  # fmt: skip
    return sorted({task for task, *_ in one ^ other})


def _split_by(known: pd.DataFrame, column: str) -> dict[str, str]:
    """From fingerprint to split; of several splits the first in `SPLITS`."""
    split_of: dict[str, str] = {}
    for split in reversed(SPLITS):
        split_of |= dict.fromkeys(known[column][known["split"] == split], split)
    return split_of


def make_record(documents: pd.DataFrame, known: pd.DataFrame | None) -> pd.DataFrame:
    """The record of a run: its own documents, then known documents that are not among them, marked `carried`."""
    own = documents[[*_IDENTITY, "loose_fingerprint", "split"]].assign(carried=False)
    if known is None:
        return own
    pairs = set(own[["fingerprint", "split"]].itertuples(index=False, name=None))
    is_other = [pair not in pairs for pair in known[["fingerprint", "split"]].itertuples(index=False, name=None)]
    return pd.concat([own, known[is_other].assign(carried=True)], ignore_index=True)
