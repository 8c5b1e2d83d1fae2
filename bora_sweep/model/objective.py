"""The likelihood, Eq. 4.

Shapes: B rows, T tokens, V vocabulary.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bora_sweep.model.adapters import AdaptedModel
from bora_sweep.model.prior import Hierarchy

IGNORED = -100


def nll_nats(logits_BTV: Tensor, tokens_BT: Tensor, length_B: Tensor) -> Tensor:
    """-sum_i log p(w_{i+1} | w_{1:i}) of each row over its own tokens, Eq. 4, in nats; shape B.

    A row's first `length_B` tokens are its document: all but the start symbol are scored, padding never is.
    """
    position_T = torch.arange(1, tokens_BT.shape[1] + 1, device=tokens_BT.device)
    next_BT = tokens_BT.roll(-1, dims=1).masked_fill(position_T >= length_B[:, None], IGNORED)
    logits_BTV = logits_BTV.to(torch.promote_types(logits_BTV.dtype, torch.float32))
    nll = F.cross_entropy(logits_BTV.flatten(0, 1), next_BT.flatten(), ignore_index=IGNORED, reduction="none")
    return nll.view_as(next_BT).sum(dim=1)


class Likelihood(nn.Module):
    """-log p(row | theta of the row's task), Eq. 4, of a base model under a hierarchy of adapters."""

    def __init__(self, adapted: AdaptedModel, hierarchy: Hierarchy) -> None:
        super().__init__()
        self.adapted, self.hierarchy = adapted, hierarchy

    def forward(self, tokens_BT: Tensor, length_B: Tensor, task_B: Tensor) -> Tensor:
        """nll_B in nats."""
        logits_BTV = self.adapted(tokens_BT, self.hierarchy.rows(task_B))
        return nll_nats(logits_BTV, tokens_BT, length_B)
