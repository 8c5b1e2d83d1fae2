"""Some tasks of a corpus, as a corpus of their own.

Shapes: N documents, C sequences.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from bora_sweep.data.tokens import Chunks, TokenizedCorpus


def some_tasks(corpus: TokenizedCorpus, tasks: Sequence[int], splits: Sequence[str] | None = None) -> TokenizedCorpus:
    """The corpus of these tasks alone, in the corpus's order: no token of any other is in it.

    Args:
        corpus: Of all tasks.
        tasks: Their places in `corpus.tasks`.
        splits: Which of their documents are kept; None: all.

    Returns:
        Their documents, without the answers that metrics compare with.
    """
    kept = sorted(set(tasks))
    documents = corpus.documents
    is_kept_N = documents["task"].isin(kept).to_numpy()
    if splits is not None:
        is_kept_N = is_kept_N & documents["split"].isin(splits).to_numpy()
    document_C = corpus.document_of(np.arange(len(corpus.offsets) - 1))
    is_kept_C = is_kept_N[document_C]
    length_C = np.diff(corpus.offsets)
    is_kept_token = np.repeat(is_kept_C, length_C)
    place_of_task, place_of_document = np.full(corpus.num_tasks, -1), np.cumsum(is_kept_N) - 1
    place_of_task[kept] = np.arange(len(kept))
    chunks, group_K = corpus.chunks, corpus.group_K
    return replace(
        corpus,
        tasks=tuple(corpus.tasks[task] for task in kept),
        documents=documents[is_kept_N].assign(task=lambda kept: place_of_task[kept["task"]]).reset_index(drop=True),
        tokens=corpus.tokens[is_kept_token],
        scored=corpus.scored[is_kept_token],
        offsets=np.concatenate([[0], np.cumsum(length_C[is_kept_C])]),
        references=None,
        group_K=None if group_K is None else group_K[kept],
        chunks=None if chunks is None else Chunks(place_of_document[document_C[is_kept_C]], chunks.shift_C[is_kept_C]),
    )
