"""Which document is trained on, which selects, which is reported."""

import hashlib
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence

import pandas as pd

from bora_sweep.errors import InputError, plural

SPLITS = ("train", "validation", "test")


def split_sizes(num_documents: int, fractions: Sequence[float]) -> list[int]:
    """`num_documents` times `fractions`, rounded by largest remainder so that the sizes sum to `num_documents`.

    An empty split takes one document from the largest, as long as that leaves it one.
    """
    exact = [num_documents * fraction / sum(fractions) for fraction in fractions]
    sizes = [int(size) for size in exact]
    by_remainder = sorted(range(len(sizes)), key=lambda split: sizes[split] - exact[split])
    for split in by_remainder[: num_documents - sum(sizes)]:
        sizes[split] += 1
    while min(sizes) == 0 and max(sizes) > 1:
        sizes[sizes.index(max(sizes))] -= 1
        sizes[sizes.index(0)] += 1
    return sizes


def split_documents(
    tasks: Iterable[str],
    texts: Iterable[str],
    fractions: Sequence[float],
    seed: int,
    known: Sequence[str | None] | None = None,
) -> list[str]:
    """The split of each document.

    Equal texts share a split, whichever tasks they are in, and so do texts that are equal `loosely`. Repeated texts are
    placed first, the most frequent first, then the others in the order of a hash of seed and text: each goes to the
    split that most of its tasks lack, else to the one with most room in them. So the order of the documents decides
    nothing, and a task without repeated texts gets exactly its `split_sizes`.

    Known documents stay where they are, and a text that is equal to one of them goes there too, to train before
    validation before test. The others then bring each task as near to its `split_sizes` as they can.

    Args:
        tasks: The task of each document.
        texts: The text of each document.
        fractions: Of train, validation and test, summing to 1.
        seed: Another seed, another assignment.
        known: The split of each document, None where it is to be drawn; left out: all are.

    Raises:
        InputError: A task would be without a document in some split.
    """
    documents = list(zip(tasks, _one_of_each(list(texts)), strict=True))
    kept = [None if split is None else SPLITS.index(split) for split in known or [None] * len(documents)]
    sizes = {task: split_sizes(count, fractions) for task, count in Counter(task for task, _ in documents).items()}
    filled = {task: [0] * len(SPLITS) for task in sizes}
    distinct = Counter(task for task, _ in set(documents))
    split_of_text: dict[str, int] = {}
    for (task, text), split in zip(documents, kept, strict=True):
        if split is not None:
            filled[task][split] += 1
            split_of_text[text] = min(split, split_of_text.get(text, split))
    small = [task for task, count in distinct.items() if count < len(SPLITS) and not any(filled[task])]
    _refuse(small, sizes, distinct)

    tasks_of_text: dict[str, list[str]] = {}
    for (task, text), split in zip(documents, kept, strict=True):
        if split is None and text in split_of_text:
            filled[task][split_of_text[text]] += 1
        elif split is None:
            tasks_of_text.setdefault(text, []).append(task)
    for text in sorted(tasks_of_text, key=lambda text: (-len(tasks_of_text[text]), _digest(seed, text))):
        members = tasks_of_text[text]
        room = [
            (sum(filled[t][s] == 0 for t in members), sum(sizes[t][s] - filled[t][s] for t in members))
            for s in range(len(SPLITS))
        ]
        split_of_text[text] = split = room.index(max(room))
        for task in members:
            filled[task][split] += 1
    empty = [task for task, counts in filled.items() if min(counts) == 0]
    _refuse(empty, sizes, distinct, ", and known ones stay in theirs" if known and any(known) else "")
    return [
        SPLITS[split_of_text[text] if split is None else split]
        for (_, text), split in zip(documents, kept, strict=True)
    ]


def loosely(text: str) -> str:
    """What another way of writing a file leaves of a text: white space and how accents are coded do not count."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def _one_of_each(texts: list[str]) -> list[str]:
    """One text for all that are equal loosely."""
    loose_N = [loosely(text) for text in texts]
    one_of: dict[str, str] = {}
    for loose, text in zip(loose_N, texts, strict=True):
        one_of[loose] = min(text, one_of.get(loose, text))
    return [one_of[loose] for loose in loose_N]


def sample_documents(tasks: Iterable[str], fractions: Sequence[float], seed: int) -> list[str]:
    """The split of each document by `pandas.sample`, as the published code draws it.

    Of each task's documents, in the order that they have, a sample is trained on; of the others one validates, and what
    is left is for test. Texts are not looked at: equal ones may be in several splits.

    Args:
        tasks: The task of each document.
        fractions: As for `split_documents`.
        seed: `random_state` of both samples.

    Raises:
        InputError: As in `split_documents`.
    """
    train, validation, test = fractions
    places_of: dict[str, list[int]] = {}
    for place, task in enumerate(tasks):
        places_of.setdefault(task, []).append(place)
    splits = ["test"] * sum(map(len, places_of.values()))
    for task, places in places_of.items():
        own = pd.Series(places)
        trained = own.sample(frac=train, random_state=seed)
        others = own.drop(trained.index)
        validated = others.sample(frac=validation / (validation + test), random_state=seed)
        if not 0 < len(validated) < len(others) or trained.empty:
            raise InputError(
                f"task {task!r}: {plural(len(own), 'document')} are too few for a split into {', '.join(SPLITS)}. "
                f"Leave such tasks out with data.min_documents={len(own) + 1}"
            )
        for name, drawn in (("train", trained), ("validation", validated)):
            for place in drawn:
                splits[place] = name
    return splits


def _digest(seed: int, text: str) -> bytes:
    return hashlib.sha256(f"{seed}\n{text}".encode()).digest()


def _refuse(tasks: list[str], sizes: dict[str, list[int]], distinct: Counter[str], also: str = "") -> None:
    if not tasks:
        return
    task = min(tasks)
    others = f" (and {plural(len(tasks) - 1, 'task')} more)" if len(tasks) > 1 else ""
    enough = max(sum(sizes[name]) for name in tasks) + 1
    raise InputError(
        f"task {task!r}{others}: {plural(sum(sizes[task]), 'document')} with "
        f"{plural(distinct[task], 'distinct text')} are too few for a split into {', '.join(SPLITS)}: equal texts "
        f"share a split, across tasks too{also}. Leave such tasks out with "
        f"data.min_documents={enough}, or remove their repeated texts"
    )
