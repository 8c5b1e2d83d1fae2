"""What weighs in a step: learning rates, their schedule, and what a nat of each task counts.

Shapes: K adapters (one per task), P parameters of one adapter.
"""

import math

import numpy as np
import torch
from torch import Tensor
from transformers import get_scheduler

from bora_sweep.config import Config
from bora_sweep.data.tokens import TokenizedCorpus
from bora_sweep.model.adapters import Layout

SCHEDULES = {"constant": "constant_with_warmup", "linear": "linear", "cosine": "cosine"}


def learning_rates(config: Config, layout: Layout) -> Tensor:
    """What the learning rate is multiplied by, for each parameter or all; LoRA+ (Hayou et al. 2024): B moves faster."""
    if config.lora.variant != "lora_plus":
        return torch.ones(())
    names, index_P = layout.group_of("matrix")
    return torch.tensor([config.lora.learning_rate_ratio if name == "B" else 1.0 for name in names])[index_P]


def task_weights(config: Config, corpus: TokenizedCorpus) -> np.ndarray:
    """What a nat of each task counts in the objective, shape K.

    At tau = 0 each task is a fit of its own, per token of its own: nothing of the others is in its gradient.
    """
    documents = corpus.documents.iloc[corpus.split("train")]
    tokens_K = np.bincount(documents["task"], documents["num_tokens"], minlength=corpus.num_tasks)
    if config.is_separate:
        return tokens_K.sum() / tokens_K
    if config.train.task_weights == "tasks":
        return tokens_K.mean() / tokens_K
    return np.ones(len(tokens_K))


def make_scheduler(config: Config, corpus: TokenizedCorpus, optimizer: torch.optim.Optimizer):
    """`train.schedule` over the steps that `train.max_epochs` allows."""
    batches = math.ceil(len(corpus.split("train")) / config.train.batch_size)
    return get_scheduler(
        SCHEDULES[config.train.schedule],
        optimizer,
        num_warmup_steps=config.train.warmup_steps,
        num_training_steps=config.train.max_epochs * batches,
    )
