"""How long a row may be: tried with the longest once, since no attribute of a model tells.

Shapes: T tokens, V vocabulary.
"""

from bisect import bisect_left
from collections.abc import Callable
from itertools import pairwise
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel

from bora_sweep.errors import InputError, one_line
from bora_sweep.model.probe import SMALLEST, close, logits_of, made_up_tokens, smallest_difference, widened

SHORT, FIRST, PARTS = 2, 8, 8
"""Tokens of a row that exceeds nothing; positions by which lengths are compared, besides those of the shortest row;
parts of a row after which it is cut."""

_tried: WeakKeyDictionary[PreTrainedModel, dict[tuple, tuple[int, ...]]] = WeakKeyDictionary()


def length_limits(base: PreTrainedModel, shortest: int, longest: int) -> tuple[int, ...]:
    """The length above which a row, padded or not, is another to `base`: rows of both kinds share no batch.

    Most models have none. Longrope turns by other angles in rows that exceed `original_max_position_embeddings`, at
    their first tokens too, so that padding beyond it would change what a short row says.

    Args:
        base: With its weights, on its device.
        shortest: Tokens of the shortest row; T >= 2.
        longest: Of the longest.

    Raises:
        InputError: The model cannot take a row so long; or its first logits depend on each further token, whatever it
            is, as with dynamic RoPE.
    """
    kind = (shortest, longest, base.device, base.dtype)
    tried = _tried.setdefault(base, {})
    if kind not in tried:
        with torch.no_grad(), _Bounds(), widened(base):
            tried[kind] = _Lengths(base, longest).limits(shortest)
    return tried[kind]


def beyond_positions(base: PreTrainedModel, longest: int) -> str | None:
    """What a row of so many tokens meets where `base` names its positions; its weights need not be there."""
    positions = getattr(base.config, "max_position_embeddings", None)
    if not isinstance(positions, int) or not 0 < positions < longest or getattr(base.config, "alibi", False):
        return None  # XLNet's are -1, and ALiBi has none
    if any(rope.get("rope_type") == "dynamic" for rope in _ropes(base)):
        return f"beyond {positions} the model's dynamic RoPE makes all logits depend on how far a row is padded"
    return f"the model has {positions} positions"


def _ropes(base: PreTrainedModel) -> list[dict[str, Any]]:
    """The configuration's rotary embeddings: one, or one for each type of layer."""
    rope = getattr(base.config, "rope_parameters", None) or {}
    return [rope] if "rope_type" in rope else [own for own in rope.values() if isinstance(own, dict)]


def too_long(base: PreTrainedModel, longest: int) -> str | None:
    """What a row of so many tokens meets in `base`, by its positions or by trying it; None where that is nothing."""
    with torch.no_grad(), _Bounds():
        return beyond_positions(base, longest) or _Lengths(base, longest).problem()


class _Lengths:
    """One row of made-up tokens, cut to any length."""

    def __init__(self, base: PreTrainedModel, longest: int) -> None:
        self.base, self.longest = base, longest
        self.tokens_1T = made_up_tokens(base, 1, longest)

    def problem(self) -> str | None:
        """What the longest row meets."""
        try:
            self.whole_TV = self._logits(self.longest)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # each architecture has its own
            most = self._last(self._runs, 1)
            return f"the model takes at most {most} ({one_line(error, limit=200)})"
        return None

    def limits(self, shortest: int) -> tuple[int, ...]:
        """As `length_limits`."""
        if problem := self.problem():
            raise InputError(f"model.max_tokens: sequences of {self.longest} tokens, but {problem}; lower it")
        limits = self._apart(shortest)
        for low, high in pairwise((0, *limits, self.longest)):
            self._refuse_later_tokens(low, high)
        return limits

    def _apart(self, shortest: int) -> tuple[int, ...]:
        """The length above which a row's first logits are others."""
        whole_TV = self.whole_TV
        for first in sorted({shortest, min(FIRST, self.longest)}):
            short_TV = self._logits(first)
            if not self._alike(whole_TV[:first], short_TV):
                return (self._limit(whole_TV[:first], short_TV),)
        named = {rope.get("original_max_position_embeddings") for rope in _ropes(self.base) if "long_factor" in rope}
        return tuple(sorted(limit for limit in named if isinstance(limit, int)))  # too small to be told from rounding

    def _limit(self, whole_TV: Tensor, short_TV: Tensor) -> int:
        """The largest length whose first logits are those of a short row; those of any longer must be the longest's."""
        first, part = len(short_TV), 0.01 if self.base.dtype in SMALLEST else 0.5
        near = part * (whole_TV - short_TV).abs().max()
        limit = self._last(lambda length: close(self._logits(length)[:first], short_TV, near), first)
        if close(self._logits(limit + 1)[:first], whole_TV, near):
            return limit
        raise InputError(
            f"model.max_tokens: in sequences of more than {limit} tokens the model's logits depend on padding, as with "
            f"dynamic RoPE, and so would every score on its batch; set model.max_tokens={limit}, or name another base"
        )

    def _refuse_later_tokens(self, low: int, high: int) -> None:
        """Refuse a model whose logits depend on later tokens in rows of more than `low` tokens, and up to `high`."""

        def holds(length: int) -> bool:
            whole_TV = self._logits(length)
            shorter = {length - 1, *(length * part // PARTS for part in range(1, PARTS))}
            return all(self._alike(whole_TV[:n], self._logits(n)) for n in shorter if max(low, SHORT - 1) < n < length)

        if not holds(high):
            most = self._last(holds, max(low + 1, SHORT), high)
            most = min(most, getattr(self.base.config, "index_topk", most))  # beyond it some rows alone are others
            raise InputError(
                f"model.max_tokens: in sequences of more than {most} tokens the model's logits at a token depend on "
                f"how many follow, and so would every score on its batch; set model.max_tokens={most}, or name another "
                "base"
            )

    def _last(self, holds: Callable[[int], bool], first: int, beyond: int | None = None) -> int:
        """The largest length for which `holds`, from `first` on and below `beyond`; it does for `first` at least."""
        lengths = range(first, self.longest if beyond is None else beyond)
        return first - 1 + max(1, bisect_left(lengths, True, key=lambda length: not holds(length)))

    def _runs(self, length: int) -> bool:
        try:
            self._logits(length)
        except Exception:
            return False
        return True

    def _logits(self, length: int) -> Tensor:
        """logits_TV of a row of that length; a model that keeps what a longer one has taught it forgets it first."""
        logits_of(self.base, self.tokens_1T[:, :SHORT])
        return logits_of(self.base, self.tokens_1T[:, :length])[0]

    def _alike(self, first_TV: Tensor, second_TV: Tensor) -> bool:
        return close(first_TV, second_TV, smallest_difference(self.base) * (second_TV[0] - second_TV[-1]).abs().max())


class _Bounds(TorchFunctionMode):
    """Within, a lookup beyond a table's end is an error before a GPU tries it and is then lost to the process."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """As torch has it."""
        if func is F.embedding and args[0].is_cuda and args[0].max() >= args[1].shape[0]:
            raise IndexError(f"position or token {args[0].max()} of a table of {args[1].shape[0]}")
        return func(*args, **(kwargs or {}))
