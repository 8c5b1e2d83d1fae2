"""The negative log likelihood of documents under their tasks' adapters.

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
    """-sum_i log p(w_{i+1} | w_{1:i}) of each row's document, the negative log of Eq. 4 of Eide & Frigessi 2025.

    Args:
        logits_BTV: The model's logits of the next token at each position.
        tokens_BT: Token IDs; each row is a document, padded on the right.
        length_B: Tokens of each document, without padding.
        given_B: Tokens at the start of each document that are given, not scored; None: the start symbol alone.

    Returns:
        nll_B in nats, summed in float32 at least.
    """
    next_BT = target_tokens(tokens_BT, length_B, given_B)
    logits_BTV = logits_BTV.to(torch.promote_types(logits_BTV.dtype, torch.float32))
    nll = F.cross_entropy(logits_BTV.flatten(0, 1), next_BT.flatten(), ignore_index=IGNORED, reduction="none")
    return nll.view_as(next_BT).sum(dim=1)


def target_tokens(tokens_BT: Tensor, length_B: Tensor, given_B: Tensor | None = None) -> Tensor:
    """The token that each position predicts, next_BT, or IGNORED if it is not scored; arguments as in `nll_nats`."""
    position_T = torch.arange(1, tokens_BT.shape[1] + 1, device=tokens_BT.device)
    next_BT = tokens_BT.roll(-1, dims=1).masked_fill(position_T >= length_B[:, None], IGNORED)
    return next_BT if given_B is None else next_BT.masked_fill(position_T < given_B[:, None], IGNORED)


class Likelihood:
    """`nll_nats` of a base model under each of several hierarchies of adapters, in one forward pass.

    Where a linear head alone makes the logits, `linear_nll` computes the same sum in chunks, in less memory.
    """

    def __init__(self, adapted: AdaptedModel, hierarchies: Sequence[Hierarchy]) -> None:
        self.adapted, self.hierarchies = adapted, hierarchies

    def __call__(
        self,
        tokens_BT: Tensor,
        length_B: Tensor,
        task_B: Tensor,
        given_B: Tensor | None = None,
        mask_BT: Tensor | None = None,
    ) -> Tensor:
        """The negative log likelihood of each row under each hierarchy.

        Args:
            tokens_BT: Token IDs; each row is a document, padded on the right.
            length_B: Tokens of each row up to the last one that is scored.
            task_B: Each row's task, as its place in the hierarchies' banks.
            given_B: As in `nll_nats`.
            mask_BT: 1 for tokens, 0 for padding; None where no scored token sees padding.

        Returns:
            nll_SB in nats.
        """
        count, head = len(self.hierarchies), self.adapted.head
        if count == 1:
            theta_BP = self.hierarchies[0].theta_BP(task_B)
        else:
            theta_BP = torch.cat([h.theta_BP(task_B).expand(len(task_B), -1) for h in self.hierarchies])
        tokens, length = tokens_BT.repeat(count, 1), length_B.repeat(count)
        given = None if given_B is None else given_B.repeat(count)
        mask_BT = None if mask_BT is None else mask_BT.repeat(count, 1)
        if head is None:
            return nll_nats(self.adapted(tokens, theta_BP, mask_BT), tokens, length, given).view(count, -1)
        next_BT = target_tokens(tokens, length, given)[:, :-1]  # the last position has nothing to predict
        hidden_BTH = self.adapted.last_hidden_state(tokens, theta_BP, mask_BT)[:, :-1]
        nll_M = linear_nll(hidden_BTH.flatten(0, 1), head, next_BT.flatten().clamp(min=0))
        nll_B = nll_M.view_as(next_BT).masked_fill(next_BT == IGNORED, 0.0).sum(dim=1)
        return nll_B.view(count, -1)
