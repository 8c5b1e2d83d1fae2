"""The sums over a task's documents that the estimate of tau needs, batch by batch: memory does not grow with them.

The trace of F^2 takes products of each two documents' draws. The draws of a block of documents are kept, and meet those
of all later documents, which are made again for each block. So b blocks take (b + 1) / 2 times the passes of one.

Shapes: M batches, B documents of one, A of another, S samples, P parameters of one adapter.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor


class Gradients(Protocol):
    """Of the documents of a batch; `DocumentPass` makes them."""

    def nll_and_score(self) -> tuple[Tensor, Tensor]:
        """nll_B in nats, and score_BP of the log likelihood."""
        ...

    def draws(self) -> Tensor:
        """score_SBP of S draws, the same ones whenever the batch passes."""
        ...


class TaskSums:
    """The sums over the documents so far.

    Args:
        theta_P: The task's adapter.
    """

    def __init__(self, theta_P: Tensor) -> None:
        self.nll, self.norm, self.share, self.square = theta_P.new_zeros(4, dtype=torch.float64).unbind()
        self.score_P, self.shared_P = theta_P.new_zeros(2, len(theta_P), dtype=torch.float64).unbind()
        self.fisher_P = torch.zeros_like(theta_P)
        self.num_documents = 0

    def add_documents(self, nll_B: Tensor, score_BP: Tensor, share_B: Tensor) -> None:
        """Add the nats and gradients of documents, each of which has a share of the task's tokens."""
        self.num_documents += len(nll_B)
        self.nll += nll_B.sum()
        self.norm += torch.linalg.vector_norm(score_BP, dtype=torch.float64).square()
        self.share += share_B.double().square().sum()
        self.score_P += score_BP.sum(0)
        self.shared_P += share_B.to(score_BP) @ score_BP

    def add_draws(self, draw_SBP: Tensor) -> None:
        """Add documents' draws to the diagonal of F."""
        for draw_BP in draw_SBP:
            self.fisher_P += torch.linalg.vector_norm(draw_BP, dim=0).square() / len(draw_SBP)

    def add_pairs(self, kept: Sequence[Tensor], draw_SBP: Tensor, *, is_kept: bool) -> None:
        """Add the squared products of documents' draws with those of others, and with their own if they are kept too.

        An unbiased estimate of tr(F^2), F = sum_n F_n: for independent draws x and y of the scores of documents n and
        m, which have the covariances F_n and F_m, E (x'y)^2 = tr(F_n F_m). So only pairs of two different samples
        count.
        """
        num_samples = len(draw_SBP)
        factor = 1 / (num_samples * (num_samples - 1))
        for other_SAP in kept:
            self.square += 2 * factor * pair_squares(other_SAP, draw_SBP)
        if is_kept:
            self.square += factor * pair_squares(draw_SBP, draw_SBP)

    def noise(self) -> Tensor:
        """An estimate of the trace of the covariance of s = sum_n s_n, sum_n ||s_n - p_n s||^2 / (1 - sum_n p_n^2).

        Here p_n is a document's share of the tokens. The estimate is unbiased if mean and covariance of s_n are
        proportional to the document's number of tokens. A single document has no scatter: the model's noise, tr F.
        """
        if self.num_documents == 1:
            return self.fisher_P.sum(dtype=torch.float64)
        scatter = self.norm - 2 * self.shared_P @ self.score_P + self.share * self.score_P.square().sum()
        return scatter / (1 - self.share)


def task_sums(passes: Callable[[int], Gradients], share_MB: Sequence[Tensor], theta_P: Tensor, most: int) -> TaskSums:
    """The sums over all documents of a task.

    Args:
        passes: Makes the gradients of a batch.
        share_MB: Each document's share of the task's tokens, batch by batch.
        theta_P: The task's adapter.
        most: Documents whose draws are kept, but for a single batch of more.
    """
    sums = TaskSums(theta_P)
    for block in blocks_of([len(share_B) for share_B in share_MB], most):
        kept: list[Tensor] = []
        for number in range(block.start, len(share_MB)):
            made = passes(number)
            draw_SBP = made.draws()
            if block.start == 0:  # the block that meets every batch
                sums.add_documents(*made.nll_and_score(), share_MB[number])
                sums.add_draws(draw_SBP)
            sums.add_pairs(kept, draw_SBP, is_kept=number in block)
            if number in block:
                kept.append(draw_SBP)
            del made, draw_SBP  # before the next pass
    return sums


def blocks_of(num_rows: Sequence[int], most: int) -> list[range]:
    """Neighbouring batches as blocks of at most `most` documents, or of one batch.

    Args:
        num_rows: Documents of each batch.
        most: Documents.
    """
    blocks, start = [], 0
    for number in range(1, len(num_rows)):
        if sum(num_rows[start : number + 1]) > most:
            blocks.append(range(start, number))
            start = number
    return [*blocks, range(start, len(num_rows))]


def pair_squares(x_SAP: Tensor, y_SBP: Tensor) -> Tensor:
    """The sum of (x'y)^2 over all pairs of documents, and all pairs of two different samples; float64."""
    num_samples = len(x_SAP)
    product = (x_SAP.flatten(0, 1) @ y_SBP.flatten(0, 1).T).double().square()
    square_SS = product.view(num_samples, x_SAP.shape[1], num_samples, y_SBP.shape[1]).sum((1, 3))
    return square_SS.sum() - square_SS.trace()
