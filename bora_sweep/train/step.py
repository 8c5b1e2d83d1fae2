"""One optimiser step of each fit of a pack, all on the same documents.

A fit descends the MAP objective (`bora_sweep.model.map_objective`), in nats per scored token:

    J(Theta, theta_1..D) = (1/N) [ sum_d nll_d(theta_d) - log p(theta_1..D | Theta, tau) ].

Autograd gives the gradient of the first term, over forward passes that the fits share. The second term acts in the
optimiser's step, `bora_sweep.train.optim.map_step`.

Shapes: S fits of a pack, B rows, K adapters (one per task).
"""

import time
from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from bora_sweep.train.distributed.process_group import sum_
from bora_sweep.train.evaluate import retry_on_oom, score
from bora_sweep.train.out_of_memory import explain_oom
from bora_sweep.train.pack import Pack
from bora_sweep.train.trainer import Trainer


def step(
    pack: Pack,
    fits: Sequence[Trainer],
    sequence_B: np.ndarray,
    num_batches: int,
    following_B: np.ndarray | None = None,
) -> tuple[list[float], int]:
    """One step of each fit.

    Args:
        pack: What the fits share.
        fits: The fits that step.
        sequence_B: The sequences of the step, on all processes.
        num_batches: Batches of the epoch, which partition the training split.
        following_B: The sequences of the next step, if it is known.

    Returns:
        Nats of the documents under each fit before its step, and their scored tokens.
    """
    started = time.perf_counter()
    for fit in fits:
        explain_oom(pack, fit.config, "before a step", partial(fit.begin_step, sequence_B, following_B))
    local = retry_on_oom(pack, fits, lambda: add_likelihood_gradients(pack, fits, sequence_B, num_batches))
    *nats_S, num_tokens, num_read, num_positions = sum_(local).tolist()
    for fit, nats in zip(fits, nats_S, strict=True):
        fit.descend(nats)
    seconds = (time.perf_counter() - started) / len(fits)
    for fit, nats in zip(fits, nats_S, strict=True):
        fit.state.end_batch(nats, int(num_tokens), seconds)
        fit.state.count(int(num_read), int(num_positions))
    return nats_S, int(num_tokens)


def add_likelihood_gradients(pack: Pack, fits: Sequence[Trainer], sequence_B: np.ndarray, num_batches: int) -> Tensor:
    """Add to each fit's banks the gradient of (M/N) sum_b w_b nll_b over the rows b of the step on this process.

    It estimates the gradient of (1/N) sum_d w_d nll_d; the weights w_d are 1, but with `train.task_weights=tasks` or at
    tau = 0. `Protocol.batch_weights` has the factors.

    Args:
        pack: What the fits share.
        fits: The fits that step.
        sequence_B: The sequences of the step, on all processes.
        num_batches: M.

    Returns:
        Nats of each fit; then scored tokens, tokens, and tokens with padding; float64, shape S + 3.
    """
    nats: list[Tensor] = []
    counts = np.zeros(3)
    weights = [pack.protocol.batch_weights(fit.weight_K, sequence_B, num_batches) for fit in fits]
    for batch in pack.forward_batches(sequence_B):
        nll_SB, task_B = score(pack, fits, batch)
        losses = [
            scale * (weight_K[task_B] * nll_B).sum() for nll_B, (scale, weight_K) in zip(nll_SB, weights, strict=True)
        ]
        pack.accelerator.backward(torch.stack(losses).sum())
        nats.append(nll_SB.detach().sum(dim=1))
        counts += batch.num_tokens, batch.length_B.sum(), batch.tokens_BT.size
    # The one time in a step that the host waits for the device.
    nats_S = torch.stack(nats).cpu().double().sum(dim=0) if nats else torch.zeros(len(fits), dtype=torch.float64)
    return torch.cat([nats_S, torch.from_numpy(counts)])
