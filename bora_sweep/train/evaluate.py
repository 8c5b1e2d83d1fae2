"""Scores of documents under the current adapters of one fit or of several.

Shapes: S fits, B rows, N documents.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from bora_sweep.data.tokens import TaskBatch, scoring_batches
from bora_sweep.model.objective import Likelihood
from bora_sweep.train.trainer import Trainer


def to_device(batch: TaskBatch, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """(tokens_BT, length_B, task_B)."""
    arrays = (batch.tokens_BT, batch.length_B, batch.task_B)
    tokens_BT, length_B, task_B = (torch.from_numpy(array).to(device, non_blocking=True) for array in arrays)
    return tokens_BT, length_B, task_B


def score(trainers: Sequence[Trainer], batch: TaskBatch) -> tuple[Tensor, Tensor]:
    """Nats of each row under each fit in one forward pass, nll_SB; and task_B."""
    accelerator = trainers[0].accelerator
    tokens_BT, length_B, task_B = to_device(batch, accelerator.device)
    likelihood = Likelihood(trainers[0].adapted, [trainer.hierarchy for trainer in trainers])
    with accelerator.autocast():
        return likelihood(tokens_BT, length_B, task_B), task_B


@torch.no_grad()
def score_documents(trainers: Sequence[Trainer], split: str) -> np.ndarray:
    """Nats of each document of `split` under each fit, nll_SN, in the corpus's order, float64; no padding counted."""
    corpus, train = trainers[0].corpus, trainers[0].config.train
    nll_SN = np.zeros((len(trainers), len(corpus.documents)))
    size = 2 * (train.micro_batch_size or train.batch_size)  # no gradients to hold
    for batch in scoring_batches(corpus, split, size):
        nll_SN[:, batch.document_B] = score(trainers, batch)[0].double().cpu().numpy()
    return nll_SN[:, corpus.split(split)]
