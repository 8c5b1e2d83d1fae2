"""The negative log likelihood of documents under their tasks' adapters.

Shapes: B rows, T tokens, V vocabulary, H hidden; M scored tokens of a batch; S hierarchies;
X either of V and H.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from bora_sweep.model.adapted import AdaptedModel
from bora_sweep.model.hierarchy import Hierarchy
from bora_sweep.model.linear_cross_entropy import linear_nll

IGNORED = -100


def nll_nats(logits_BTV: Tensor, tokens_BT: Tensor, scored_BT: Tensor) -> Tensor:
    """-sum_i log p(w_{i+1} | w_{1:i}) of each row's document, the negative log of Eq. 4 of Eide & Frigessi 2025.

    The sum is over the scored tokens w_{i+1} alone.

    Args:
        logits_BTV: The model's logits of the next token at each position.
        tokens_BT: Token IDs; each row is a document, padded on the right.
        scored_BT: Whether each token is scored; the first one of a row never is.

    Returns:
        nll_B in nats, summed in float32 at least.
    """
    next_BT = tokens_BT[:, 1:].masked_fill(~scored_BT[:, 1:], IGNORED)
    logits_BTV = logits_BTV[:, :-1].to(torch.promote_types(logits_BTV.dtype, torch.float32))
    nll = F.cross_entropy(logits_BTV.flatten(0, 1), next_BT.flatten(), ignore_index=IGNORED, reduction="none")
    return nll.view_as(next_BT).sum(dim=1)


class Likelihood:
    """`nll_nats` of a base model under each of several hierarchies of adapters, in one forward pass.

    Logits are computed where the next token is scored, and nowhere else, if a linear head alone makes them
    (`linear_nll`). A prompt costs the forward pass, and no part of the head. Other logits (Gemma 2 caps them) are
    computed at each position where any row is scored, if the model lets one choose positions.
    """

    def __init__(self, adapted: AdaptedModel, hierarchies: Sequence[Hierarchy]) -> None:
        self.adapted, self.hierarchies = adapted, hierarchies

    def __call__(self, tokens_BT: Tensor, place_M: Tensor, task_B: Tensor, mask_BT: Tensor | None = None) -> Tensor:
        """The negative log likelihood of each row under each hierarchy.

        Args:
            tokens_BT: Token IDs; each row is a document, padded on the right.
            place_M: The scored tokens, as ascending places in the flattened `tokens_BT`; none is the first of its row.
            task_B: Each row's task, as its place in the hierarchies' banks.
            mask_BT: 1 for tokens, 0 for padding; None where no scored token sees padding.

        Returns:
            nll_SB in nats.
        """
        count, dtype = len(self.hierarchies), self.adapted.adapter_dtype
        if count == 1:
            theta_BP = self.hierarchies[0].theta_BP(task_B, dtype)
        else:
            theta_BP = torch.cat([h.theta_BP(task_B, dtype).expand(len(task_B), -1) for h in self.hierarchies])
            first_S1 = tokens_BT.numel() * torch.arange(count, device=place_M.device)[:, None]
            place_M = (first_S1 + place_M).flatten()
        tokens, mask = tokens_BT.repeat(count, 1), None if mask_BT is None else mask_BT.repeat(count, 1)
        nll_M = self.nll(self.before(tokens, theta_BP, mask, place_M), tokens.flatten()[place_M])
        nll_BT = nll_M.new_zeros(tokens.numel()).index_copy(0, place_M, nll_M).view_as(tokens)
        return nll_BT.sum(dim=1).view(count, -1)

    def before(self, tokens_BT: Tensor, theta_BP: Tensor, mask_BT: Tensor | None, place_M: Tensor) -> Tensor:
        """What the model says before each scored token: hidden_MH, or logits_MV where no linear head alone makes them.

        Args:
            tokens_BT: As for a call.
            theta_BP: The adapter of each row.
            mask_BT: As for a call.
            place_M: As for a call.
        """
        if self.adapted.head is None:
            return self._logits(tokens_BT, theta_BP, mask_BT, place_M - 1)
        hidden_BTH = self.adapted.last_hidden_state(tokens_BT, theta_BP, mask_BT)
        before_M = (place_M - 1).to(hidden_BTH.device)  # a spread base ends on another device than it begins on
        return hidden_BTH.flatten(0, 1).index_select(0, before_M)

    def nll(self, before_MX: Tensor, target_M: Tensor) -> Tensor:
        """nll_M of tokens at the scored places, in nats.

        Args:
            before_MX: Of `before`.
            target_M: The tokens, those of the text or others.
        """
        if self.adapted.head is not None:
            return linear_nll(before_MX, self.adapted.head, target_M)
        logits_MV = before_MX.to(torch.promote_types(before_MX.dtype, torch.float32))
        return F.cross_entropy(logits_MV, target_M, reduction="none")

    def _logits(self, tokens_BT: Tensor, theta_BP: Tensor, mask_BT: Tensor | None, before_M: Tensor) -> Tensor:
        """logits_MV at some places, where no linear head alone makes them: of columns that have any, if possible."""
        if not self.adapted.keeps_logits:
            return self.adapted(tokens_BT, theta_BP, mask_BT).flatten(0, 1)[before_M]
        width = tokens_BT.shape[1]
        kept_C, column_M = torch.unique(before_M % width, return_inverse=True)
        logits_BCV = self.adapted(tokens_BT, theta_BP, mask_BT, kept_C)
        return logits_BCV[before_M // width, column_M]
