"""Scores of documents under the current adapters of one fit or of several.

Shapes: S fits, B rows, T tokens, N documents, C sequences.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from bora_sweep.data.batches import TaskBatch, scoring_batches
from bora_sweep.model.likelihood import Likelihood
from bora_sweep.train.distributed.process_group import sum_, sync_errors
from bora_sweep.train.out_of_memory import as_torch_oom
from bora_sweep.train.pack import Pack
from bora_sweep.train.protocol import MakeBatches
from bora_sweep.train.trainer import Trainer

T = TypeVar("T")


def score(pack: Pack, fits: Sequence[Trainer], batch: TaskBatch) -> tuple[Tensor, Tensor]:
    """Nats of each row under each fit in one forward pass, nll_SB, Eq. 4; and task_B, rows of the fits' banks.

    Args:
        pack: What the fits share.
        fits: S fits.
        batch: Of documents on all processes.
    """
    batch, likelihood = pack.shard.localize(batch), Likelihood(pack.adapted, [fit.hierarchy for fit in fits])
    for fit in fits:
        fit.hierarchy.hold(batch.task_B)
    # Found on the host, as a device would have to be waited for.
    arrays = (batch.tokens_BT, np.flatnonzero(batch.scored_BT), batch.task_B, batch.mask_BT)
    device = pack.accelerator.device
    tokens_BT, place_M, task_B, mask_BT = (
        None if array is None else torch.from_numpy(array).to(device, non_blocking=True) for array in arrays
    )
    assert tokens_BT is not None and place_M is not None and task_B is not None  # noqa: PT018, the mask alone may be
    with pack.autocast():
        return likelihood(tokens_BT, place_M, task_B, mask_BT), task_B


def retry_on_oom(pack: Pack, fits: Sequence[Trainer], work: Callable[[], T]) -> T:
    """Run `work`; after each out-of-memory error, run it again with half as many documents in a forward pass.

    The memory may be a device's, or the host's where torch reports that. The kernel may kill the process instead. With
    a sharded base the first such error ends the fit (`EqualPasses.run`).

    Args:
        pack: Its `memory_rows` is lowered.
        fits: Their gradients are cleared before each further try, and each gets a note.
        work: Forward passes of `pack.rows` documents at most.
    """
    if pack.equal_passes is not None:
        return pack.equal_passes.run(lambda: as_torch_oom(work), pack.rows)
    while True:
        try:
            return sync_errors(lambda: as_torch_oom(work))
        except torch.OutOfMemoryError:
            if pack.rows == 1:
                raise
        before, pack.memory_rows = pack.rows, pack.rows // 2
        for fit in fits:
            fit.note_fewer_rows("out of memory", before, pack.rows)
            fit.hierarchy.zero_grad(set_to_none=False)
        if pack.accelerator.device.type == "cuda":
            torch.cuda.empty_cache()


def score_documents(
    pack: Pack,
    fits: Sequence[Trainer],
    split: str,
    check_stop: Callable[[], None] = lambda: None,
    make_batches: MakeBatches | None = None,
) -> np.ndarray:
    """Nats of each document of a split under each fit.

    Args:
        pack: What the fits share.
        fits: The fits.
        split: "train", "validation" or "test".
        check_stop: Called after each batch.
        make_batches: Makes the batches; None: without padding beyond `train.length_bucket`.

    Returns:
        nll_SN in float64, in the corpus's order.
    """
    corpus = pack.corpus
    nll_SC = score_sequences(pack, fits, corpus.sequences(split), check_stop, make_batches)
    return corpus.sum_by_document(nll_SC)[:, corpus.split(split)]


def score_sequences(
    pack: Pack,
    fits: Sequence[Trainer],
    sequence_C: np.ndarray,
    check_stop: Callable[[], None] = lambda: None,
    make_batches: MakeBatches | None = None,
) -> np.ndarray:
    """Nats of these sequences under each fit, nll_SC over the whole corpus: 0 for all others.

    Args:
        pack: What the fits share.
        fits: The fits.
        sequence_C: Indices of sequences.
        check_stop: As for `score_documents`.
        make_batches: As for `score_documents`.
    """
    local_C = pack.shard.sequences(sequence_C)
    make_batches = make_batches or partial(scoring_batches, bucket=pack.config.train.length_bucket)

    def batches() -> Iterator[TaskBatch]:
        return make_batches(pack.corpus, local_C, pack.scoring_rows, pack.length_limits)

    nll_SC = retry_on_oom(pack, fits, lambda: _score_batches(pack, fits, batches(), check_stop))
    return sum_(torch.from_numpy(nll_SC)).numpy()


@torch.no_grad()
def _score_batches(
    pack: Pack, fits: Sequence[Trainer], batches: Iterator[TaskBatch], check_stop: Callable[[], None]
) -> np.ndarray:
    """nll_SC over the whole corpus, 0 for sequences of no batch."""
    nll_SC = np.zeros((len(fits), len(pack.corpus.task_C)))
    for batch in batches:
        nll_SC[:, batch.sequence_B] = score(pack, fits, batch)[0].double().cpu().numpy()
        check_stop()
    return nll_SC
