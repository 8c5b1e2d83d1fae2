"""Greedy generation: each row goes on by its likeliest token under its own adapter, until it ends.

Shapes: B rows, T tokens.
"""

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from bora_sweep.model.adapted import AdaptedModel
from bora_sweep.model.row_cache import RowCache, next_logits, pad_left

NO_TOKEN = -1
"""In place of a token where the model's logits are no numbers; it ends a row."""


@torch.no_grad()
def generate(
    adapted: AdaptedModel,
    prompt_B: Sequence[Sequence[int]],
    theta_BP: Tensor,
    *,
    max_new_tokens: int,
    end_tokens: Collection[int],
    padding: int,
    use_cache: bool,
) -> list[list[int]]:
    """The tokens that follow each prompt. A row that has ended leaves the batch.

    Args:
        adapted: The model.
        prompt_B: Tokens of each prompt; of one length without a cache.
        theta_BP: An adapter for each row, or one for all.
        max_new_tokens: Most tokens of a row.
        end_tokens: Tokens that end a row.
        padding: Any token.
        use_cache: Whether rows go on over cached keys and values; else they are run whole for each token.

    Returns:
        The new tokens of each row, with the end token where it ended.
    """
    device, ends = adapted.base.device, {*end_tokens, NO_TOKEN}
    tokens_BT, mask_BT = (part.to(device) for part in pad_left(prompt_B, padding))
    assert use_cache or mask_BT.all()
    new_B: list[list[int]] = [[] for _ in prompt_B]
    running, cache = list(range(len(prompt_B))), RowCache(adapted)
    for number in range(1, max_new_tokens + 1):
        last_B = cache.extend(tokens_BT, mask_BT, theta_BP) if use_cache else _run_whole(adapted, tokens_BT, theta_BP)
        logits_BV = next_logits(adapted, last_B[:, -1])
        token_B = logits_BV.argmax(dim=-1).masked_fill(logits_BV.isnan().any(dim=-1), NO_TOKEN)
        for row, token in zip(running, token_B.tolist(), strict=True):
            new_B[row].append(token)
        go_on = [place for place, row in enumerate(running) if new_B[row][-1] not in ends]
        if not go_on or number == max_new_tokens:
            break
        if len(go_on) < len(running):
            running, row_B = [running[place] for place in go_on], torch.tensor(go_on, device=device)
            tokens_BT, token_B = tokens_BT[row_B], token_B[row_B]
            theta_BP = theta_BP if len(theta_BP) == 1 else theta_BP[row_B]
            cache = cache.select(row_B) if use_cache else cache
        tokens_BT = token_B[:, None] if use_cache else torch.cat([tokens_BT, token_B[:, None]], dim=1)
        mask_BT = torch.ones_like(tokens_BT)
    return new_B


def _run_whole(adapted: AdaptedModel, tokens_BT: Tensor, theta_BP: Tensor) -> Tensor:
    """What `next_logits` takes, of rows without padding."""
    run = adapted if adapted.head is None else adapted.last_hidden_state
    return run(tokens_BT, theta_BP)
