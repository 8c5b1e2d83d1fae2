"""Fingerprints of a run's inputs: its documents, their tokens, the model's files, the adapters of `init_from`.

`RUN/fingerprints.json` holds them from the start of the run. A resume, and all that uses the run's adapters, refuses an
input whose content has changed since, even at the same path.
"""

import hashlib
import json
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bora_sweep.config import Config, DataConfig, ModelConfig
from bora_sweep.data.corpus import Corpus, load_corpus
from bora_sweep.data.known_documents import DOCUMENTS, changed_tasks, read_documents, record_folders
from bora_sweep.data.tokens import TokenizedCorpus
from bora_sweep.errors import InputError
from bora_sweep.model.base import model_folder
from bora_sweep.runs.folder import ADD, FINGERPRINTS
from bora_sweep.runs.places import MODEL, refuse_missing
from bora_sweep.runs.storage import Folder, exists, read_bytes, write_bytes

MODEL_FILES = (
    "config.json", "*.safetensors", "*.safetensors.index.json", "tokenizer.json", "tokenizer_config.json",
    "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "*.model", "*.py",
)  # fmt: skip
"""The files that decide the logits of a text. `generation_config.json` decides sampling alone."""
ADAPTER_FILES = ("**/*.safetensors", "**/*.json")
SHOWN = 5
"""Names that a message lists."""


@dataclass(frozen=True)
class Fingerprints:
    """SHA-256 digests of contents."""

    tasks: dict[str, tuple[int, str]]
    """For each task, in order: the number of its documents, and the digest of their ids, splits and texts."""
    tokens: str | None
    """Of all token sequences, and of which tokens are scored. None: unknown since a task has left the run."""
    model: dict[str, str]
    """Of the files of the base model and its tokenizer, by name."""
    adapters: dict[str, str] | None
    """Of the files of `init_from`. None: unknown since a task has left the run, which may have left them too."""
    groups: dict[str, str] = field(default_factory=dict)
    """The group of each task; empty where there are none."""

    def without(self, tasks: Collection[str]) -> "Fingerprints":
        """Those of the run without some tasks. What is of all tasks together becomes unknown: their text is needed."""
        return Fingerprints(
            tasks={task: of_task for task, of_task in self.tasks.items() if task not in tasks},
            tokens=None,
            model=self.model,
            adapters=None if self.adapters else self.adapters,
            groups={task: group for task, group in self.groups.items() if task not in tasks},
        )

    def filled_in(self, now: "Fingerprints") -> "Fingerprints":
        """With what is unknown taken from `now`."""
        return replace(
            self,
            tokens=now.tokens if self.tokens is None else self.tokens,
            adapters=now.adapters if self.adapters is None else self.adapters,
        )

    @property
    def unknown(self) -> list[str]:
        """What is unknown, in words."""
        names = {"the tokens that its texts had": self.tokens, "the files of init_from": self.adapters}
        return [name for name, value in names.items() if value is None]


def fingerprints_of(config: Config, corpus: Corpus, tokenized: TokenizedCorpus) -> Fingerprints:
    """The fingerprints of the inputs as they are now. Takes about a second for each 2 GB of the model.

    Args:
        config: Of the run.
        corpus: Its text.
        tokenized: Its tokens.

    Raises:
        InputError: The model's files are not there.
    """
    start = Path(config.init_from) if config.init_from is not None else None
    return Fingerprints(
        tasks=_tasks(corpus),
        tokens=_tokens(tokenized),
        model=model_fingerprint(config.model, config.data),
        adapters={} if start is None else _files(start, ADAPTER_FILES),
        groups=tokenized.group_of,
    )


def model_fingerprint(model: ModelConfig, data: DataConfig) -> dict[str, str]:
    """The digest of each file of the base model and its tokenizer, by name.

    Raises:
        InputError: The files are not there.
    """
    return _files(model_folder(model, data), MODEL_FILES)


def write_fingerprints(run: Folder, fingerprints: Fingerprints) -> None:
    """Write the fingerprints into the run's folder."""
    write_bytes(
        run / FINGERPRINTS,
        json.dumps(asdict(fingerprints), ensure_ascii=False, indent=1).encode(errors="surrogatepass"),
    )


def read_fingerprints(run: Folder) -> Fingerprints | None:
    """The fingerprints of the run's start; None where an older release began it.

    Raises:
        InputError: The file is damaged.
    """
    try:
        stored = json.loads(read_bytes(run / FINGERPRINTS).decode(errors="surrogatepass"))
        tasks = {task: (int(count), str(digest)) for task, (count, digest) in stored["tasks"].items()}
        tokens, adapters = stored["tokens"], stored["adapters"]
        return Fingerprints(
            tasks,
            None if tokens is None else str(tokens),
            dict(stored["model"]),
            None if adapters is None else dict(adapters),
            dict(stored.get("groups", {})),
        )
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError, AttributeError):
        raise InputError(
            f"{run / FINGERPRINTS}: damaged, so data and model cannot be compared with those of the run's start; "
            "restore it from a copy, or remove it to go on with the data and model that are there"
        ) from None


def check_unchanged(run: Folder, config: Config, before: Fingerprints, now: Fingerprints) -> None:
    """Refuse to resume a run whose inputs have changed. What is unknown (`Fingerprints.unknown`) is not compared.

    Args:
        run: The run's folder, for the message.
        config: Of the run.
        before: The fingerprints of its start.
        now: The fingerprints now.

    Raises:
        InputError: An input has changed; the message says which.
    """
    changes = [f"data: {change}" for change in _changed_tasks(before.tasks, now.tasks)]
    changes += _changed_groups(before.groups, now.groups)
    changes += _changed_model(before.model, now.model, config.model)
    if now.adapters and before.adapters is not None:  # without them, a fit that has a checkpoint can still resume
        changes += [f"init_from={config.init_from}: {c}" for c in _changed_files(before.adapters, now.adapters)]
    if before.tokens not in (None, now.tokens) and not changes:
        changes = [
            "data: the same texts now have other tokens; another version of bora_sweep or transformers made them"
        ]
    if changes:
        raise InputError(
            f"{run}: cannot resume, as its inputs have changed. {'; '.join(changes)}. Restore them, or begin a new "
            "run with another output"
        )


def check_base_model(run: Folder, model: ModelConfig, data: DataConfig, now: dict[str, str] | None = None) -> None:
    """Refuse a base model or tokenizer that is not the one that the run's adapters were fitted on.

    Args:
        run: The run's folder.
        model: The base model now.
        data: The corpus, of which the embedded base is made.
        now: Of `model_fingerprint`, if it is at hand.

    Raises:
        InputError: The files differ.
    """
    before = read_fingerprints(run)
    if before is None:
        return
    changes = _changed_model(before.model, now or model_fingerprint(model, data), model)
    if changes:
        raise InputError(
            f"{run}: was fitted on another base model than the one that is there. {'; '.join(changes)}. Restore it, or "
            f"say where it is by {MODEL}=…"
        )


def check_moved(run: Folder, config: Config, keys: Collection[str]) -> None:
    """Refuse documents at another place that are not the run's own; and any other place of a run without fingerprints.

    The base model is compared by `check_base_model`.

    Args:
        run: The run's folder.
        config: Of the run, with the places as they are now.
        keys: Of the places that have changed.

    Raises:
        InputError: The documents differ, cannot be read, or cannot be compared.
    """
    if not keys:
        return
    before = read_fingerprints(run)
    if before is None:
        raise InputError(
            f"{next(iter(keys))}: {run} has no {FINGERPRINTS}, so nothing says whether what is elsewhere is the same; "
            "put it back where it was"
        )
    moved = [key for key in keys if key != MODEL]
    if not moved:
        return
    refuse_missing(run, config, moved)
    is_recorded = exists(run / DOCUMENTS)
    known = [run] if is_recorded else record_folders(config)
    is_alone = config.method == ADD or len(before.tasks) == 1  # one may be left of a run that tasks have left
    corpus = load_corpus(config.data, known, resumed=is_recorded, separate=is_alone)
    changes = _changed_tasks(before.tasks, _tasks(corpus))
    if is_recorded and not changes:  # the digests are of texts; the record knows what comes before them
        others = changed_tasks(read_documents(run), corpus.record)
        changes = _first([f"task {task!r} has other documents or prompts" for task in others])
    if changes:
        raise InputError(f"{run}: was fitted on other documents than those of {moved[0]}. {'; '.join(changes)}")


def check_documents(run: Folder, corpus: Corpus) -> None:
    """Refuse documents that are not the run's own; a run without fingerprints takes those that are there.

    Raises:
        InputError: The documents differ.
    """
    before = read_fingerprints(run)
    if before is not None and (changes := _changed_tasks(before.tasks, _tasks(corpus))):
        raise InputError(f"{run}: was fitted on other documents than those that are there. {'; '.join(changes)}")


def _tasks(corpus: Corpus) -> dict[str, tuple[int, str]]:
    documents_of = dict(iter(corpus.documents.groupby("task", sort=False)))
    return {task: _documents(documents_of[task]) for task in corpus.tasks}


def _documents(documents: pd.DataFrame) -> tuple[int, str]:
    """The number and the digest of one task's documents."""
    digest = hashlib.sha256()
    for row in zip(documents["document_id"], documents["split"], documents["text"], strict=True):
        for value in row:
            content = str(value).encode(errors="surrogatepass")
            digest.update(len(content).to_bytes(8, "big") + content)
    return len(documents), digest.hexdigest()


def _tokens(corpus: TokenizedCorpus) -> str:
    digest = hashlib.sha256()
    for array in (corpus.tokens, corpus.offsets, corpus.num_tokens_C):
        digest.update(np.ascontiguousarray(array, dtype=np.int64).data)
    return digest.hexdigest()


def _files(folder: Path, patterns: Sequence[str]) -> dict[str, str]:
    files = sorted({file for pattern in patterns for file in folder.glob(pattern) if file.is_file()})
    with ThreadPoolExecutor() as pool:  # hashing releases the GIL
        return {
            file.relative_to(folder).as_posix(): digest
            for file, digest in zip(files, pool.map(_content, files), strict=True)
        }


def _content(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _changed_tasks(before: dict[str, tuple[int, str]], now: dict[str, tuple[int, str]]) -> list[str]:
    gone, new = ([task for task in one if task not in other] for one, other in ((before, now), (now, before)))
    alike: dict[tuple[int, str], list[str]] = {}
    for task in reversed(new):
        alike.setdefault(now[task], []).append(task)
    renamed = {task: alike[before[task]].pop() for task in gone if alike.get(before[task])}
    are_renamed = set(renamed.values())
    changes = [f"task {task!r} is now {other!r}" for task, other in renamed.items()]
    changes += [f"task {task!r} is gone" for task in gone if task not in renamed]
    changes += [f"task {task!r} is new" for task in new if task not in are_renamed]
    for task in before:
        (count, digest), (count_now, digest_now) = before[task], now.get(task, before[task])
        if count != count_now:
            changes.append(f"task {task!r} has {count_now:,} documents where it had {count:,}")
        elif digest != digest_now:
            changes.append(f"task {task!r} has other texts, ids, splits or another order")
    if not changes and list(before) != list(now):
        changes = ["the tasks are in another order"]
    return _first(changes)


def _changed_groups(before: dict[str, str], now: dict[str, str]) -> list[str]:
    return _first([
        f"data: task {task!r} was in group {group!r} and is in {now.get(task)!r}"
        for task, group in before.items()
        if task in now and now[task] != group
    ])  # fmt: skip


def _changed_model(before: dict[str, str], now: dict[str, str], model: ModelConfig) -> list[str]:
    name = "the embedded base" if model.name is None else f"model.name={model.name}"
    return [f"{name}: {change}" for change in _changed_files(before, now)]


def _changed_files(before: dict[str, str], now: dict[str, str]) -> list[str]:
    how = {
        file: "is gone" if file not in now else "is new" if file not in before else "has changed"
        for file in sorted(before.keys() | now.keys())
        if before.get(file) != now.get(file)
    }
    return _first([f"{file} {change}" for file, change in how.items()])


def _first(changes: list[Any]) -> list[str]:
    beyond = len(changes) - SHOWN
    return changes if beyond <= 0 else [*changes[:SHOWN], f"and {beyond} more such"]
