"""Rows of a batch that go on from keys and values that the base model has cached, each under its own adapter.

Rows of unlike lengths are padded on the left: then no padding lies between a row's tokens, and the distances that
sliding windows count are right. Positions count a row's own tokens.

Shapes: B rows, T tokens of a pass, L tokens of all passes, C chosen rows, H hidden, V vocabulary, P parameters of one
adapter.
"""

import inspect
from collections.abc import Sequence
from copy import deepcopy
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import PreTrainedModel

from bora_sweep.errors import one_line
from bora_sweep.model.adapted import AdaptedModel
from bora_sweep.model.base_check import random_adapter
from bora_sweep.model.trial_logits import agree, logits_of, made_up_tokens, tolerance, widened

_problem_of: WeakKeyDictionary[PreTrainedModel, dict[tuple, str | None]] = WeakKeyDictionary()


class RowCache:
    """The keys and values of B rows so far, over which the rows go on.

    Args:
        adapted: The base model with its adapters.
    """

    def __init__(self, adapted: AdaptedModel) -> None:
        self.adapted, self.past, self.mask_BL = adapted, None, None
        self.module = adapted.base if adapted.head is None else adapted.base.base_model
        self.takes_positions = "position_ids" in inspect.signature(self.module.forward).parameters

    def extend(self, tokens_BT: Tensor, mask_BT: Tensor, theta_BP: Tensor) -> Tensor:
        """Run the next tokens of each row.

        Args:
            tokens_BT: Token IDs.
            mask_BT: 1 for tokens, 0 for padding: on the left in the first pass, on the right in the last one.
            theta_BP: An adapter for each row, or one for all.

        Returns:
            What `next_logits` takes: the last hidden state where a linear head alone makes the logits, else logits.
        """
        self.mask_BL = mask_BT if self.mask_BL is None else torch.cat([self.mask_BL, mask_BT], dim=1)
        positions = {}
        if self.takes_positions:
            positions["position_ids"] = (self.mask_BL.cumsum(1) - 1).clamp(min=0)[:, -tokens_BT.shape[1] :]
        with self.adapted.with_adapters(theta_BP):
            output = self.module(
                input_ids=tokens_BT, attention_mask=self.mask_BL, past_key_values=self.past, use_cache=True, **positions
            )
        self.past = output.past_key_values
        if self.past is None:
            raise ValueError("the model returns no keys and values")
        state = output.logits if self.adapted.head is None else output.last_hidden_state
        return state.to(tokens_BT.device)

    def select(self, row_C: Tensor) -> "RowCache":
        """These rows, of which one may be named several times, as a cache of their own."""
        chosen = RowCache(self.adapted)
        assert self.mask_BL is not None
        assert self.past is not None
        chosen.mask_BL, chosen.past = self.mask_BL[row_C], deepcopy(self.past)
        chosen.past.reorder_cache(row_C)
        return chosen


def next_logits(adapted: AdaptedModel, state: Tensor) -> Tensor:
    """The logits of the next token, in float32 at least.

    Args:
        adapted: The model.
        state: What `RowCache.extend` returns, at any places: of shape (…, H), or (…, V).
    """
    logits = state if adapted.head is None else adapted.head(state).to(state.device)
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def pad_left(rows: Sequence[Sequence[int]], padding: int) -> tuple[Tensor, Tensor]:
    """tokens_BT and mask_BT of rows of unlike lengths, padded on the left."""
    return _pad(rows, padding, on_left=True)


def pad_right(rows: Sequence[Sequence[int]], padding: int) -> tuple[Tensor, Tensor]:
    """tokens_BT and mask_BT of rows of unlike lengths, padded on the right."""
    return _pad(rows, padding, on_left=False)


def _pad(rows: Sequence[Sequence[int]], padding: int, *, on_left: bool) -> tuple[Tensor, Tensor]:
    tokens_BT = torch.full((len(rows), max(map(len, rows))), padding, dtype=torch.long)
    mask_BT = torch.zeros_like(tokens_BT)
    for place, row in enumerate(rows):
        if len(row):
            own = slice(-len(row), None) if on_left else slice(len(row))
            tokens_BT[place, own], mask_BT[place, own] = torch.as_tensor(row), 1
    return tokens_BT, mask_BT


def cache_problem(adapted: AdaptedModel, shortest: int, longest: int, new: int) -> str | None:
    """Why rows that go on over a cache have other logits than rows that are run whole; None where they have the same.

    Two rows of made-up tokens with random adapters are tried, in one pass and token by token.

    Args:
        adapted: The model.
        shortest: Tokens of the shortest row before it goes on.
        longest: The same of the longest.
        new: Tokens by which it goes on.
    """
    base, layout = adapted.base, adapted.layout
    sites = tuple(site.name for site in layout.sites)
    case = (sites, type(layout.variant), base.device, base.dtype, shortest, longest, new)
    problem_of_case = _problem_of.setdefault(base, {})
    if case not in problem_of_case:
        with torch.no_grad(), widened(base):
            problem_of_case[case] = _find_problem(adapted, shortest, longest, new)
    return problem_of_case[case]


def _find_problem(adapted: AdaptedModel, shortest: int, longest: int, new: int) -> str | None:
    base = adapted.base
    theta_2P = torch.stack([random_adapter(base, adapted.layout, row) for row in range(2)]).to(base.device)
    tokens_2L, lengths = made_up_tokens(base, 2, longest + new), (longest, shortest)
    whole, prompts = [], [tokens_2L[row, :length].tolist() for row, length in enumerate(lengths)]
    for row, length in enumerate(lengths):
        with adapted.with_adapters(theta_2P[row : row + 1]):
            whole.append(logits_of(base, tokens_2L[row : row + 1, : length + new])[0, length - 1 :])
    atol = tolerance(base) * (whole[0] - whole[1]).abs().max()
    prompts_2T, mask_2T = (part.to(base.device) for part in pad_left(prompts, 0))
    more_2N = torch.stack([tokens_2L[row, length : length + new] for row, length in enumerate(lengths)])
    chosen_C = torch.tensor([1, 0, 1], device=base.device)
    try:
        cache = RowCache(adapted)
        first_2V = next_logits(adapted, cache.extend(prompts_2T, mask_2T, theta_2P)[:, -1])
        for sizes in ([new], [max(0, new - 2), *[1] * min(2, new)]):
            branch, parts = cache.select(chosen_C), [first_2V[chosen_C, None]]
            for tokens_CT in more_2N[chosen_C].split([size for size in sizes if size], dim=1):
                state = branch.extend(tokens_CT, torch.ones_like(tokens_CT), theta_2P[chosen_C])
                parts.append(next_logits(adapted, state))
            for cached_TV, row in zip(torch.cat(parts, dim=1), chosen_C.tolist(), strict=True):
                if cached_TV.isnan().any() or not agree(cached_TV, whole[row], atol):
                    return "with cached keys and values this model gives other logits"
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # any model's code
        return f"this model does not go on from cached keys and values ({one_line(error, limit=200)})"
    return None
