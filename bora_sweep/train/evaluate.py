"""Scores of documents under the current adapters of one fit or of several.

Shapes: S fits, B rows, N documents.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from bora_sweep.data.batches import TaskBatch, collate, longest_of, scoring_batches
from bora_sweep.errors import one_line
from bora_sweep.model.likelihood import Likelihood
from bora_sweep.train.distributed.process_group import sum_, sync_errors
from bora_sweep.train.trainer import Trainer

T = TypeVar("T")

HOST_FULL = "DefaultCPUAllocator"
"""Who speaks where torch gets no memory of the host's: a plain RuntimeError, of no class of its own."""


def to_device(batch: TaskBatch, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(tokens_BT, length_B, task_B, given_B)."""
    arrays = (batch.tokens_BT, batch.length_B, batch.task_B, batch.given_B)
    tokens_BT, length_B, task_B, given_B = (torch.from_numpy(array).to(device, non_blocking=True) for array in arrays)
    return tokens_BT, length_B, task_B, given_B


def score(trainers: Sequence[Trainer], batch: TaskBatch) -> tuple[Tensor, Tensor]:
    """Nats of each row under each fit in one forward pass, nll_SB; and task_B, places in the banks."""
    accelerator = trainers[0].accelerator
    tokens_BT, length_B, task_B, given_B = to_device(trainers[0].share.placed(batch), accelerator.device)
    likelihood = Likelihood(trainers[0].adapted, [trainer.hierarchy for trainer in trainers])
    with accelerator.autocast():
        return likelihood(tokens_BT, length_B, task_B, given_B, batch.scores_padding), task_B


def retry_on_oom(trainers: Sequence[Trainer], work: Callable[[], T]) -> T:
    """`work`, with half as many documents in a forward pass each time that a device's memory does not hold them.

    A GPU's, or the host's where that says so: a process may be killed for the host's memory instead.
    """
    while True:
        try:
            return sync_errors(lambda: as_torch_oom(work))
        except torch.OutOfMemoryError:
            if trainers[0].micro_batch_size == 1:
                raise
        for trainer in trainers:
            trainer.halve_micro_batch()
        if trainers[0].accelerator.device.type == "cuda":
            torch.cuda.empty_cache()


def as_torch_oom(work: Callable[[], T]) -> T:
    """`work`; a host without memory is the error that a GPU without memory is."""
    try:
        return work()
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, MemoryError) or HOST_FULL in str(error):
            raise torch.OutOfMemoryError(one_line(error)) from error
        raise


def score_documents(
    trainers: Sequence[Trainer],
    split: str,
    check_stop: Callable[[], None] = lambda: None,
    padded: Sequence[np.ndarray] | None = None,
) -> np.ndarray:
    """Nats of each document of `split` under each fit, nll_SN, in the corpus's order, float64.

    No padding is counted, but where `padded` gives the split in batches, to the longest of which rows are filled.
    `check_stop` is called after each batch.
    """
    document_N = trainers[0].corpus.split(split)
    own_N = trainers[0].share.documents(document_N)

    def batches() -> Iterator[TaskBatch]:
        size = trainers[0].scoring_batch_size
        limits = trainers[0].length_limits
        return (
            scoring_batches(trainers[0].corpus, own_N, size, limits) if padded is None else _filled(trainers[0], padded)
        )

    nll_SN = retry_on_oom(trainers, lambda: _score_documents(trainers, batches(), check_stop))
    return sum_(torch.from_numpy(nll_SN)).numpy()[:, document_N]


def _filled(trainer: Trainer, batches: Sequence[np.ndarray]) -> Iterator[TaskBatch]:
    """Each batch as forward passes whose rows are all as long as the longest of the batch."""
    for document_B in batches:
        width, size = longest_of(trainer.corpus, document_B), trainer.scoring_batch_size
        for i in range(0, len(document_B), size):
            yield collate(trainer.corpus, document_B[i : i + size], width)


@torch.no_grad()
def _score_documents(
    trainers: Sequence[Trainer], batches: Iterator[TaskBatch], check_stop: Callable[[], None]
) -> np.ndarray:
    """nll_SN over the whole corpus, 0 elsewhere."""
    nll_SN = np.zeros((len(trainers), len(trainers[0].corpus.documents)))
    for batch in batches:
        nll_SN[:, batch.document_B] = score(trainers, batch)[0].double().cpu().numpy()
        check_stop()
    return nll_SN
