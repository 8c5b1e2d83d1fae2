"""The likelihood, Eq. 4.

Shapes: B rows, T tokens, V vocabulary, H hidden; M positions of a batch, C of a chunk; S hierarchies.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from bora_sweep.model.adapted import AdaptedModel
from bora_sweep.model.hierarchy import Hierarchy
from bora_sweep.model.linear_cross_entropy import linear_nll

IGNORED = -100


def nll_nats(logits_BTV: Tensor, tokens_BT: Tensor, length_B: Tensor, given_B: Tensor | None = None) -> Tensor:
    """-sum_i log p(w_{i+1} | w_{1:i}) of each row over its own tokens, Eq. 4, in nats; shape B.

    A row's first `length_B` tokens are its document: all but the start symbol, or the first `given_B`, are scored.
    """
    next_BT = next_tokens(tokens_BT, length_B, given_B)
    logits_BTV = logits_BTV.to(torch.promote_types(logits_BTV.dtype, torch.float32))
    nll = F.cross_entropy(logits_BTV.flatten(0, 1), next_BT.flatten(), ignore_index=IGNORED, reduction="none")
    return nll.view_as(next_BT).sum(dim=1)


def next_tokens(tokens_BT: Tensor, length_B: Tensor, given_B: Tensor | None = None) -> Tensor:
    """next_BT, what each position predicts; IGNORED from a row's last token on, and before `given_B`."""
    position_T = torch.arange(1, tokens_BT.shape[1] + 1, device=tokens_BT.device)
    next_BT = tokens_BT.roll(-1, dims=1).masked_fill(position_T >= length_B[:, None], IGNORED)
    return next_BT if given_B is None else next_BT.masked_fill(position_T < given_B[:, None], IGNORED)


class Likelihood:
    """-log p(row | theta of the row's task), Eq. 4, of a base model under each of several hierarchies of adapters."""

    def __init__(self, adapted: AdaptedModel, hierarchies: Sequence[Hierarchy]) -> None:
        self.adapted, self.hierarchies = adapted, hierarchies

    def __call__(
        self,
        tokens_BT: Tensor,
        length_B: Tensor,
        task_B: Tensor,
        given_B: Tensor | None = None,
        scores_padding: bool = False,
    ) -> Tensor:
        """nll_SB in nats: all hierarchies in one forward pass, the rows repeated for each.

        What fills a row beyond `length_B` is scored only if that is asked for; no position then sees it, as a model is
        run that is told by a mask what of a row is its own.
        """
        count, head = len(self.hierarchies), self.adapted.head
        if count == 1:
            theta_BP = self.hierarchies[0].rows(task_B)
        else:
            theta_BP = torch.cat([h.rows(task_B).expand(len(task_B), -1) for h in self.hierarchies])
        tokens, length = tokens_BT.repeat(count, 1), length_B.repeat(count)
        given = None if given_B is None else given_B.repeat(count)
        own_BT = None
        if scores_padding:
            own_BT = (torch.arange(tokens.shape[1], device=tokens.device) < length[:, None]).long()
            length = torch.full_like(length, tokens.shape[1])
        if head is None:
            return nll_nats(self.adapted(tokens, theta_BP, own_BT), tokens, length, given).view(count, -1)
        next_BT = next_tokens(tokens, length, given)[:, :-1]  # after a row's last position there is nothing to predict
        hidden_BTH = self.adapted.hidden(tokens, theta_BP, own_BT)[:, :-1]
        nll_M = linear_nll(hidden_BTH.flatten(0, 1), head, next_BT.flatten().clamp(min=0))
        nll_B = nll_M.view_as(next_BT).masked_fill(next_BT == IGNORED, 0.0).sum(dim=1)
        return nll_B.view(count, -1)
