"""Which documents are trained on, which choose the epoch and tau (validation), and which are reported (test)."""

import hashlib
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from bora_sweep.errors import InputError, and_more, plural

SPLITS = ("train", "validation", "test")


def split_sizes(num_documents: int, fractions: Sequence[float]) -> list[int]:
    """`num_documents` times `fractions`, rounded by largest remainder so that the sizes sum to `num_documents`.

    An empty split takes one document from the largest, if that leaves the largest at least one. With fewer documents
    than splits the first splits have one each. A fraction of 0 is no split.
    """
    splits = [split for split, fraction in enumerate(fractions) if fraction > 0]
    if num_documents < len(splits):
        return [int(split in splits[:num_documents]) for split in range(len(fractions))]
    exact = [num_documents * fraction / sum(fractions) for fraction in fractions]
    sizes = [int(size) for size in exact]
    by_remainder = sorted(range(len(sizes)), key=lambda split: sizes[split] - exact[split])
    for split in by_remainder[: num_documents - sum(sizes)]:
        sizes[split] += 1
    while empty := [split for split in splits if sizes[split] == 0]:
        sizes[sizes.index(max(sizes))] -= 1
        sizes[empty[0]] += 1
    return sizes


@dataclass
class _Counts:
    """Documents of each task by split: how many are wanted, and how many are placed so far."""

    wanted: dict[str, list[int]]
    placed: dict[str, list[int]]

    def place(self, tasks: Iterable[str], split: int) -> None:
        """Count one more document of each of these tasks in `split`."""
        for task in tasks:
            self.placed[task][split] += 1

    def best_split(self, tasks: Sequence[str]) -> int:
        """The split that most of these tasks lack; between equals, the one with the most room in them."""
        need = [
            (
                sum(self.placed[t][s] == 0 < self.wanted[t][s] for t in tasks),
                sum(self.wanted[t][s] - self.placed[t][s] for t in tasks),
            )
            for s in range(len(SPLITS))
        ]
        return need.index(max(need))


def split_documents(
    tasks: Iterable[str],
    texts: Iterable[str],
    fractions: Sequence[float],
    seed: int,
    known: Sequence[str | None] | None = None,
    *,
    whole: bool = False,
    hold_out_from: int = 1,
) -> list[str]:
    """The split of each document, drawn by a hash of its text, or of its prompt.

    Equal texts share a split, in whatever tasks they are, and so do texts that are equal once they are `normalized`.
    Texts that occur most often are placed first; texts that occur equally often, in the order of a hash of seed and
    text. Each goes to the split that most of its tasks lack, else to the one with the most room. So the result does not
    depend on the order of the documents, and a task without repeated texts gets exactly its `split_sizes`. A task with
    one text trains on it; with two, the second one is in another split.

    Known documents stay in their splits. A new document whose text equals a known one goes there too: to train before
    validation, and to validation before test. The others then bring each task as near to its sizes as possible.

    Args:
        tasks: The task of each document.
        texts: What the documents that share a split have in common, the text or the prompt of each.
        fractions: Shares of train, validation and test, summing to 1. From a share of 0 nothing is drawn.
        seed: Another seed gives another assignment.
        known: The split of each document, or None where it is to be drawn; left out: all are drawn.
        whole: Whether each task needs all three splits.
        hold_out_from: Documents below which a task trains on all that are drawn.

    Raises:
        InputError: A task would have no document to train on, or with `whole` none in some split.
    """
    documents = list(zip(tasks, _one_of_equals(list(texts)), strict=True))
    known_N = [None if split is None else SPLITS.index(split) for split in known or [None] * len(documents)]
    wanted = {
        task: split_sizes(count, fractions) if count >= hold_out_from else [count, 0, 0]
        for task, count in Counter(task for task, _ in documents).items()
    }
    counts = _Counts(wanted, {task: [0] * len(SPLITS) for task in wanted})
    split_of_text: dict[str, int] = {}
    for (task, text), split in zip(documents, known_N, strict=True):
        if split is not None:
            counts.place([task], split)
            split_of_text[text] = min(split, split_of_text.get(text, split))
    distinct = Counter(task for task, _ in set(documents))
    tasks_of_text: dict[str, list[str]] = {}
    for (task, text), split in zip(documents, known_N, strict=True):
        if split is None and text in split_of_text:
            counts.place([task], split_of_text[text])
        elif split is None:
            tasks_of_text.setdefault(text, []).append(task)
    for text in sorted(tasks_of_text, key=lambda text: (-len(tasks_of_text[text]), _digest(seed, text))):
        split_of_text[text] = counts.best_split(tasks_of_text[text])
        counts.place(tasks_of_text[text], split_of_text[text])
    empty = [task for task, placed in counts.placed.items() if placed[0] == 0 or (whole and min(placed) == 0)]
    _refuse(empty, wanted, distinct, ", and known documents stay in theirs" if known and any(known) else "")
    splits = (
        split_of_text[text] if split is None else split for (_, text), split in zip(documents, known_N, strict=True)
    )
    return [SPLITS[split] for split in splits]


def normalized(text: str) -> str:
    """`text` without what differs between two ways to save it: white space, and how accents are encoded."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def _one_of_equals(texts: list[str]) -> list[str]:
    """For each text one that stands for all whose normalized texts are equal."""
    normalized_N = [normalized(text) for text in texts]
    representative: dict[str, str] = {}
    for key, text in zip(normalized_N, texts, strict=True):
        representative[key] = min(text, representative.get(key, text))
    return [representative[key] for key in normalized_N]


def sample_documents(tasks: Iterable[str], fractions: Sequence[float], seed: int) -> list[str]:
    """The split of each document by `pandas.sample`, as in the published code.

    Within each task, in the order of its documents, one sample is for training. A sample of the others is for
    validation, and the rest is for test. Equal texts may be in several splits.

    Args:
        tasks: The task of each document.
        fractions: Shares of train, validation and test, summing to 1.
        seed: `random_state` of both samples.

    Raises:
        InputError: A task would have no document in some split.
    """
    rows_of: dict[str, list[int]] = {}
    for row, task in enumerate(tasks):
        rows_of.setdefault(task, []).append(row)
    splits = [""] * sum(map(len, rows_of.values()))
    for task, rows in rows_of.items():
        places_of = _samples(len(rows), fractions, seed)
        if not all(map(len, places_of.values())):
            raise InputError(
                f"task {task!r}: {plural(len(rows), 'document')} are too few for a split into {', '.join(SPLITS)}. "
                f"Leave such tasks out with data.min_documents={len(rows) + 1}"
            )
        for split, places in places_of.items():
            for place in places:
                splits[rows[place]] = split
    return splits


def sampled_order(
    task_N: np.ndarray, split_N: np.ndarray, split: str, fractions: Sequence[float], seed: int
) -> np.ndarray:
    """The documents of a split in the published code's order: one task after the other, each as its sample was drawn.

    A task whose documents are not split as `sample_documents` splits them, since some were in a split before, stays in
    the order of its documents.

    Args:
        task_N: The index of the task of each document.
        split_N: The split of each document.
        split: "train", "validation" or "test".
        fractions: As of `sample_documents`.
        seed: As of `sample_documents`.

    Returns:
        Indices of documents.
    """
    parts = []
    for task in np.unique(task_N):
        document_n = np.flatnonzero(task_N == task)
        is_in_n = split_N[document_n] == split
        drawn = _samples(len(document_n), fractions, seed)[split]
        is_as_drawn = np.array_equal(np.sort(drawn), np.flatnonzero(is_in_n))
        parts.append(document_n[drawn] if is_as_drawn else document_n[is_in_n])
    return np.concatenate(parts)


def _samples(count: int, fractions: Sequence[float], seed: int) -> dict[str, np.ndarray]:
    """The places of a task's documents in each split, in the order in which they are drawn; test has the others."""
    train, validation, test = fractions
    place_n = pd.Series(range(count))
    trained = place_n.sample(frac=train, random_state=seed)
    others = place_n.drop(trained.index)
    validated = others.sample(frac=validation / (validation + test), random_state=seed)
    parts = trained, validated, others.drop(validated.index)
    return {split: part.to_numpy() for split, part in zip(SPLITS, parts, strict=True)}


def _digest(seed: int, text: str) -> bytes:
    return hashlib.sha256(f"{seed}\n{text}".encode()).digest()


def _refuse(tasks: list[str], wanted: dict[str, list[int]], distinct: Counter[str], also: str = "") -> None:
    if not tasks:
        return
    task = min(tasks)
    enough = max(sum(wanted[name]) for name in tasks) + 1
    raise InputError(
        f"task {task!r}{and_more(tasks)}: {plural(sum(wanted[task]), 'document')} with "
        f"{plural(distinct[task], 'distinct text')} are too few for a split into {', '.join(SPLITS)}: equal texts, or "
        f"prompts, share a split, across tasks too{also}. Leave such tasks out with data.min_documents={enough}, "
        "remove what is repeated, or where prompts say nothing of their own set data.keep_together=document"
    )
