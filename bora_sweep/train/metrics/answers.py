"""The likeliest of each document's candidate answers, for accuracy.

Each prompt passes through the model once, and its answers go on over the cached keys and values. Where the model cannot
do that, each prompt with each answer is a row of its own.

Shapes: N documents, B prompts, C rows of one answer each, T tokens, V vocabulary.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from bora_sweep.model.adapted import AdaptedModel
from bora_sweep.model.likelihood import Likelihood
from bora_sweep.model.linear_cross_entropy import linear_nll
from bora_sweep.model.row_cache import RowCache, next_logits, pad_left, pad_right

Tokens = Sequence[int]


@torch.no_grad()
def cached_nats(
    adapted: AdaptedModel,
    prompt_B: Sequence[Tokens],
    answers_B: Sequence[Sequence[Tokens]],
    theta_of: Callable[[Tensor], Tensor],
    rows: int,
    padding: int,
) -> list[np.ndarray]:
    """-log p(answer | prompt) in nats of each candidate answer, the prompts run once.

    Args:
        adapted: The model.
        prompt_B: Tokens of each prompt.
        answers_B: Tokens of each prompt's candidate answers, at least one each.
        theta_of: The adapters of these rows, as places in `prompt_B`.
        rows: Answers of a forward pass, at most.
        padding: Any token.

    Returns:
        For each prompt the nats of its answers, float64.
    """
    device = adapted.base.device
    tokens_BT, mask_BT = (part.to(device) for part in pad_left(prompt_B, padding))
    prompts = RowCache(adapted)
    state = prompts.extend(tokens_BT, mask_BT, theta_of(torch.arange(len(prompt_B), device=device)))
    first_BV = next_logits(adapted, state[:, -1]).log_softmax(-1)
    answers = [(b, answer) for b, answers in enumerate(answers_B) for answer in answers]
    order = sorted(range(len(answers)), key=lambda place: len(answers[place][1]))
    nll = np.zeros(len(answers))
    for start in range(0, len(order), rows):
        places = order[start : start + rows]
        prompt_C = torch.tensor([answers[place][0] for place in places], device=device)
        chosen = [answers[place][1] for place in places]
        nll_C = -first_BV[prompt_C, torch.tensor([answer[0] for answer in chosen], device=device)].double()
        if len(chosen[-1]) > 1:  # the longest
            nll_C += _nll_after_first(prompts.select(prompt_C), chosen, theta_of(prompt_C), padding)
        nll[places] = nll_C.cpu().numpy()
    return np.split(nll, np.cumsum([len(answers) for answers in answers_B])[:-1])


def _nll_after_first(cache: RowCache, answer_C: Sequence[Tokens], theta_CP: Tensor, padding: int) -> Tensor:
    """The nats of each answer's tokens but the first, in float64."""
    device = cache.adapted.base.device
    tokens_CT, mask_CT = (part.to(device) for part in pad_right([answer[:-1] for answer in answer_C], padding))
    target_CT = pad_right([answer[1:] for answer in answer_C], padding)[0].to(device)
    state, place_M = cache.extend(tokens_CT, mask_CT, theta_CP).flatten(0, 1), mask_CT.flatten().nonzero()[:, 0]
    target_M, head = target_CT.flatten()[place_M], cache.adapted.head
    if head is not None:
        nll_M = linear_nll(state[place_M], head, target_M)
    else:
        nll_M = F.cross_entropy(next_logits(cache.adapted, state[place_M]), target_M, reduction="none")
    nll_CT = nll_M.new_zeros(mask_CT.numel(), dtype=torch.float64).index_copy(0, place_M, nll_M.double())
    return nll_CT.view_as(mask_CT).sum(dim=1)


@torch.no_grad()
def whole_nats(
    likelihood: Likelihood,
    prompt_C: Sequence[Tokens],
    answer_C: Sequence[Tokens],
    task_C: Tensor,
    padding: int,
) -> np.ndarray:
    """-log p(answer | prompt) in nats, each prompt with its answer a row, float64.

    Args:
        likelihood: Of one hierarchy.
        prompt_C: Tokens of each row's prompt.
        answer_C: Tokens of each row's answer.
        task_C: Each row's task, as its place in the hierarchy's bank.
        padding: Any token.
    """
    device = task_C.device
    rows = [[*prompt, *answer] for prompt, answer in zip(prompt_C, answer_C, strict=True)]
    tokens_CT, mask_CT = pad_right(rows, padding)
    given_C1 = torch.tensor([len(prompt) for prompt in prompt_C])[:, None]
    scored_CT = (mask_CT > 0) & (torch.arange(tokens_CT.shape[1]) >= given_C1)
    place_M = scored_CT.flatten().nonzero()[:, 0]
    return likelihood(tokens_CT.to(device), place_M.to(device), task_C)[0].double().cpu().numpy()
