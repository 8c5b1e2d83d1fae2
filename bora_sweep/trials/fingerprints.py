"""What a run stands on, by content: its documents, their tokens, the model's files, the adapters that it began with.

`RUN/fingerprints.json` has it from when the run was begun. Whatever goes on with the run, or uses what it has fitted,
refuses what has changed since, be its path the same.
"""

import hashlib
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bora_sweep.config import Config, DataConfig, ModelConfig
from bora_sweep.data.corpus import Corpus
from bora_sweep.data.tokens import TokenizedCorpus
from bora_sweep.errors import InputError
from bora_sweep.model.base import model_folder
from bora_sweep.runs.storage import Folder, read_bytes, write_bytes

FILE = "fingerprints.json"
MODEL_FILES = (
    "config.json", "*.safetensors", "*.safetensors.index.json", "tokenizer.json", "tokenizer_config.json",
    "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "*.model", "*.py",
)  # fmt: skip
"""What decides the logits of a text; how texts are drawn (`generation_config.json`) is not asked."""
ADAPTER_FILES = ("**/*.safetensors", "**/*.json")
SHOWN = 5
"""Names in a message."""


@dataclass(frozen=True)
class Fingerprints:
    """Digests of contents, SHA-256."""

    tasks: dict[str, tuple[int, str]]
    """Of each task, in order: its number of documents, and the digest of their ids, splits and texts."""
    tokens: str
    """Of all sequences, and of which of their tokens are scored."""
    model: dict[str, str]
    """Of the base model's files and its tokenizer's, by name."""
    adapters: dict[str, str]
    """Of the files of `init_from`."""


def fingerprints_of(config: Config, corpus: Corpus, tokenized: TokenizedCorpus) -> Fingerprints:
    """All as it is now; about a second for each 2 GB of the model.

    Raises:
        InputError: The model's files cannot be had.
    """
    start = Path(config.init_from) if config.init_from is not None else None
    documents_of = dict(iter(corpus.documents.groupby("task", sort=False)))
    return Fingerprints(
        tasks={task: _documents(documents_of[task]) for task in corpus.tasks},
        tokens=_tokens(tokenized),
        model=model_fingerprint(config.model, config.data),
        adapters={} if start is None else _files(start, ADAPTER_FILES),
    )


def model_fingerprint(model: ModelConfig, data: DataConfig) -> dict[str, str]:
    """Of each file of the base model and its tokenizer, by name.

    Raises:
        InputError: They cannot be had.
    """
    return _files(model_folder(model, data), MODEL_FILES)


def write_fingerprints(run: Folder, found: Fingerprints) -> None:
    """Keep them in the run's folder."""
    write_bytes(run / FILE, json.dumps(asdict(found), ensure_ascii=False, indent=1).encode(errors="surrogatepass"))


def read_fingerprints(run: Folder) -> Fingerprints | None:
    """Those that the run was begun with; None where an older release began it.

    Raises:
        InputError: The file is damaged.
    """
    try:
        told = json.loads(read_bytes(run / FILE).decode(errors="surrogatepass"))
        tasks = {task: (int(count), str(digest)) for task, (count, digest) in told["tasks"].items()}
        return Fingerprints(tasks, str(told["tokens"]), dict(told["model"]), dict(told["adapters"]))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError, AttributeError):
        raise InputError(
            f"{run / FILE}: damaged, so it does not tell whether data and model are those that the run was begun with; "
            "restore it from a copy, or remove it to go on with those that are there"
        ) from None


def refuse_other(run: Folder, config: Config, before: Fingerprints, now: Fingerprints) -> None:
    """Refuse to go on with a run on other grounds than those that it was begun on.

    Raises:
        InputError: Something has changed; it says what.
    """
    changes = [f"data: {change}" for change in _changed_tasks(before.tasks, now.tasks)]
    changes += _changed_model(before.model, now.model, config.model)
    if now.adapters:  # where they are gone, a fit that has a checkpoint goes on without them
        changes += [f"init_from={config.init_from}: {c}" for c in _changed_files(before.adapters, now.adapters)]
    if before.tokens != now.tokens and not changes:
        changes = ["data: the same texts now have other tokens, by another version of bora_sweep or transformers"]
    if changes:
        raise InputError(
            f"{run}: cannot go on, for what it was begun with has changed. {'; '.join(changes)}. Put back what was "
            "there, or begin a run of its own with another output"
        )


def refuse_other_model(run: Folder, model: ModelConfig, data: DataConfig) -> None:
    """Refuse a base model, or a tokenizer, that is not the one that the run's adapters were fitted on.

    Raises:
        InputError: It has changed, or is another on this machine.
    """
    before = read_fingerprints(run)
    changes = [] if before is None else _changed_model(before.model, model_fingerprint(model, data), model)
    if changes:
        raise InputError(
            f"{run}: was fitted on another base model than is there now. {'; '.join(changes)}. Put back what was there"
        )


def _documents(own: pd.DataFrame) -> tuple[int, str]:
    """Of one task."""
    digest = hashlib.sha256()
    for row in zip(own["document_id"], own["split"], own["text"], strict=True):
        for value in row:
            content = str(value).encode(errors="surrogatepass")
            digest.update(len(content).to_bytes(8, "big") + content)
    return len(own), digest.hexdigest()


def _tokens(corpus: TokenizedCorpus) -> str:
    digest = hashlib.sha256()
    for array in (corpus.tokens, corpus.offsets, corpus.documents["num_tokens"].to_numpy()):
        digest.update(np.ascontiguousarray(array, dtype=np.int64).data)
    return digest.hexdigest()


def _files(folder: Path, patterns: Sequence[str]) -> dict[str, str]:
    files = sorted({file for pattern in patterns for file in folder.glob(pattern) if file.is_file()})
    with ThreadPoolExecutor() as pool:  # hashing lets go of the interpreter
        return {
            file.relative_to(folder).as_posix(): digest
            for file, digest in zip(files, pool.map(_content, files), strict=True)
        }


def _content(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _changed_tasks(before: dict[str, tuple[int, str]], now: dict[str, tuple[int, str]]) -> list[str]:
    gone, new = ([task for task in one if task not in other] for one, other in ((before, now), (now, before)))
    renamed = {}
    for task in gone:
        alike = [other for other in new if now[other] == before[task] and other not in renamed.values()]
        if alike:
            renamed[task] = alike[0]
    changes = [f"task {task!r} is now {other!r}" for task, other in renamed.items()]
    changes += [f"task {task!r} is gone" for task in gone if task not in renamed]
    changes += [f"task {task!r} is new" for task in new if task not in renamed.values()]
    for task in before:
        (count, digest), (count_now, digest_now) = before[task], now.get(task, before[task])
        if count != count_now:
            changes.append(f"task {task!r} has {count_now:,} documents where it had {count:,}")
        elif digest != digest_now:
            changes.append(f"of task {task!r} texts, ids, splits or their order are others")
    if not changes and list(before) != list(now):
        changes = ["the tasks stand in another order"]
    return _first(changes)


def _changed_model(before: dict[str, str], now: dict[str, str], model: ModelConfig) -> list[str]:
    name = "the embedded base" if model.name is None else f"model.name={model.name}"
    return [f"{name}: {change}" for change in _changed_files(before, now)]


def _changed_files(before: dict[str, str], now: dict[str, str]) -> list[str]:
    how = {
        file: "is gone" if file not in now else "is new" if file not in before else "has another content"
        for file in sorted(before.keys() | now.keys())
        if before.get(file) != now.get(file)
    }
    return _first([f"{file} {change}" for file, change in how.items()])


def _first(changes: list[Any]) -> list[str]:
    beyond = len(changes) - SHOWN
    return changes if beyond <= 0 else [*changes[:SHOWN], f"and {beyond} more such"]
