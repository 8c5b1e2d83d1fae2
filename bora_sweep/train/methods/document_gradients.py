"""Gradients of single documents: of their own text, and of text that the model draws for them.

Shapes: B rows, M scored tokens, H hidden, V vocabulary, X either of the two, C positions of a chunk; S samples, P
parameters of one adapter.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from bora_sweep.data.batches import TaskBatch
from bora_sweep.model.likelihood import Likelihood
from bora_sweep.model.linear_cross_entropy import CHUNK, CHUNK_ELSEWHERE


class DocumentPass:
    """One forward pass of a task's documents, to be differentiated several times.

    Each row has its own copy of the adapter, so that one backward pass gives the gradient of each document.

    Args:
        likelihood: Of the adapted model.
        batch: The documents, one a row.
        theta_P: The adapter.
        num_samples: S.
        seed: Of the draws: the same ones in every pass of these documents.
    """

    def __init__(
        self, likelihood: Likelihood, batch: TaskBatch, theta_P: Tensor, num_samples: int, seed: Sequence[int]
    ) -> None:
        self.likelihood, self.num_samples, self.seed = likelihood, num_samples, seed
        self.theta_BP = theta_P.repeat(len(batch.tokens_BT), 1).requires_grad_()
        arrays = batch.tokens_BT, np.flatnonzero(batch.scored_BT)
        self.tokens_BT, self.place_M = (torch.from_numpy(array).to(theta_P.device) for array in arrays)
        self.before_MX = likelihood.before(self.tokens_BT, self.theta_BP, None, self.place_M)

    def nll_and_score(self) -> tuple[Tensor, Tensor]:
        """nll_B of each document in nats, and score_BP, the gradient of its log likelihood."""
        nll_M, score_BP = self._differentiate(self.tokens_BT.flatten()[self.place_M])
        nll_BT = nll_M.new_zeros(self.tokens_BT.numel()).index_copy(0, self.place_M, nll_M)
        return nll_BT.view_as(self.tokens_BT).sum(1), score_BP

    def draws(self) -> Tensor:
        """score_SBP of S draws of the scored tokens, each from the model after the document's own earlier tokens."""
        state = np.random.SeedSequence(self.seed).generate_state(1, np.uint64)
        generator = torch.Generator(self.theta_BP.device).manual_seed(int(state[0]) >> 1)
        draw_SBP = self.theta_BP.new_empty(self.num_samples, *self.theta_BP.shape)
        for row_BP in draw_SBP:
            row_BP.copy_(self._differentiate(self._draw_tokens(generator))[1])
        return draw_SBP

    def _differentiate(self, target_M: Tensor) -> tuple[Tensor, Tensor]:
        nll_M = self.likelihood.nll(self.before_MX, target_M)
        return nll_M.detach(), torch.autograd.grad(-nll_M.sum(), self.theta_BP, retain_graph=True)[0]

    @torch.no_grad()
    def _draw_tokens(self, generator: torch.Generator) -> Tensor:
        """token_M from the model's distribution at each scored place, with the logits of a chunk in memory."""
        head, drawn = self.likelihood.adapted.head, []
        for before_CX in self.before_MX.split(CHUNK.get(self.before_MX.device.type, CHUNK_ELSEWHERE)):
            logits_CV = before_CX if head is None else head(before_CX)
            drawn.append(torch.multinomial(logits_CV.float().softmax(-1), 1, generator=generator).squeeze(1))
        return torch.cat(drawn)
