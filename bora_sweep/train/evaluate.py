"""Scores of documents under the current adapters."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from bora_sweep.data.tokens import TaskBatch, TokenizedCorpus, scoring_batches


def to_device(batch: TaskBatch, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """(tokens_BT, length_B, task_B)."""
    arrays = (batch.tokens_BT, batch.length_B, batch.task_B)
    tokens_BT, length_B, task_B = (torch.from_numpy(array).to(device, non_blocking=True) for array in arrays)
    return tokens_BT, length_B, task_B


@torch.no_grad()
def score_documents(
    nll_of: Callable[[Tensor, Tensor, Tensor], Tensor],
    corpus: TokenizedCorpus,
    split: str,
    batch_size: int,
    device: torch.device,
) -> np.ndarray:
    """Nats of each document of `split`, in the corpus's order, float64; one pass, no padding counted."""
    nll_N = np.zeros(len(corpus.documents))
    for batch in scoring_batches(corpus, split, batch_size):
        nll_N[batch.document_B] = nll_of(*to_device(batch, device)).double().cpu().numpy()
    return nll_N[corpus.split(split)]
