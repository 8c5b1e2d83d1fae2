"""How long a row may be for a base model: checked with the longest row, because no attribute of a model says so.

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
from bora_sweep.model.trial_logits import agree, is_precise, logits_of, made_up_tokens, tolerance, widened

SHORT = 2
"""Tokens of a row that is within every limit."""
FIRST = 8
"""Positions at which rows of different lengths are compared, besides those of the shortest row."""
CUTS = 8
"""A row is also run when cut after each 1/8 of its length."""

_limits_of: WeakKeyDictionary[PreTrainedModel, dict[tuple, tuple[int, ...]]] = WeakKeyDictionary()


def length_limits(base: PreTrainedModel, shortest: int, longest: int) -> tuple[int, ...]:
    """Lengths at which `base` changes: a row, padded or not, above a limit has other logits, even at its first tokens.

    Rows on both sides of a limit must not share a batch. Most models have no limit. Longrope rotates by other angles in
    rows longer than `original_max_position_embeddings`.

    Args:
        base: With its weights, on its device.
        shortest: Tokens of the shortest row; at least 2.
        longest: Tokens of the longest row.

    Raises:
        InputError: The model cannot run rows so long; or its first logits depend on each further token, whatever it
            is, as with dynamic RoPE.
    """
    case = (shortest, longest, base.device, base.dtype)
    limits_of_case = _limits_of.setdefault(base, {})
    if case not in limits_of_case:
        with torch.no_grad(), _BoundsCheck(), widened(base):
            limits_of_case[case] = _LongRow(base, longest).limits(shortest)
    return limits_of_case[case]


def beyond_positions(base: PreTrainedModel, longest: int) -> str | None:
    """A message if `longest` tokens exceed the positions in the model's configuration, else None; needs no weights."""
    positions = num_positions(base)
    if positions is None or longest <= positions:
        return None
    if any(rope.get("rope_type") == "dynamic" for rope in _rope_parameters(base)):
        return f"beyond {positions} the model's dynamic RoPE makes all logits depend on how far a row is padded"
    return f"the model has {positions} positions"


def num_positions(base: PreTrainedModel) -> int | None:
    """The positions in the model's configuration; None where it names none."""
    positions = getattr(base.config, "max_position_embeddings", None)
    if not isinstance(positions, int) or positions <= 0 or getattr(base.config, "alibi", False):
        return None  # XLNet has -1, and ALiBi has no limit
    return positions


def _rope_parameters(base: PreTrainedModel) -> list[dict[str, Any]]:
    """The model's RoPE parameters, of which some models have one set for each kind of layer."""
    rope = getattr(base.config, "rope_parameters", None) or {}
    return [rope] if "rope_type" in rope else [each for each in rope.values() if isinstance(each, dict)]


def too_long(base: PreTrainedModel, longest: int) -> str | None:
    """A message if `base` cannot run a row of `longest` tokens, by its configuration or by running it; else None."""
    with torch.no_grad(), _BoundsCheck():
        return beyond_positions(base, longest) or _LongRow(base, longest).run_longest()


class _LongRow:
    """One row of made-up tokens, which is run when cut to various lengths."""

    def __init__(self, base: PreTrainedModel, longest: int) -> None:
        self.base, self.longest = base, longest
        self.tokens_1T = made_up_tokens(base, 1, longest)

    def run_longest(self) -> str | None:
        """Run the whole row; a message if that fails, else None."""
        try:
            self.longest_TV = self._logits(self.longest)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # any model's code
            most = self._largest(self._runs, 1)
            return f"the model takes at most {most} ({one_line(error, limit=200)})"
        return None

    def limits(self, shortest: int) -> tuple[int, ...]:
        """See `length_limits`."""
        if problem := self.run_longest():
            raise InputError(f"model.max_tokens: sequences of {self.longest} tokens, but {problem}; lower it")
        limits = self._changes(shortest)
        for low, high in pairwise((0, *limits, self.longest)):
            self._refuse_later_tokens(low, high)
        return limits

    def _changes(self, shortest: int) -> tuple[int, ...]:
        """The lengths above which a row's first logits change."""
        for first in sorted({shortest, min(FIRST, self.longest)}):
            short_TV = self._logits(first)
            if not self._agree(self.longest_TV[:first], short_TV):
                return (self._find_change(self.longest_TV[:first], short_TV),)
        # A change too small to be told from rounding is known from the configuration alone.
        ropes = [rope for rope in _rope_parameters(self.base) if "long_factor" in rope]
        named = {rope.get("original_max_position_embeddings") for rope in ropes}
        return tuple(sorted(limit for limit in named if isinstance(limit, int)))

    def _find_change(self, longest_TV: Tensor, short_TV: Tensor) -> int:
        """The largest length whose first logits are a short row's, if the first logits of all longer rows agree.

        Raises:
            InputError: The first logits of longer rows depend on the length.
        """
        first, fraction = len(short_TV), 0.01 if is_precise(self.base) else 0.5
        atol = fraction * (longest_TV - short_TV).abs().max()
        limit = self._largest(lambda length: agree(self._logits(length)[:first], short_TV, atol), first)
        if agree(self._logits(limit + 1)[:first], longest_TV, atol):
            return limit
        raise InputError(
            f"model.max_tokens: in sequences of more than {limit} tokens the model's logits depend on padding, as with "
            f"dynamic RoPE, and so would every score on its batch; set model.max_tokens={limit}, or name another base"
        )

    def _refuse_later_tokens(self, low: int, high: int) -> None:
        """Refuse a model whose logits depend on later tokens in rows of more than `low` and at most `high` tokens."""

        def is_causal(length: int) -> bool:
            whole_TV = self._logits(length)
            cuts = {length - 1, *(length * part // CUTS for part in range(1, CUTS))}
            cuts = [cut for cut in cuts if max(low, SHORT - 1) < cut < length]
            return all(self._agree(whole_TV[:cut], self._logits(cut)) for cut in cuts)

        if not is_causal(high):
            most = self._largest(is_causal, max(low + 1, SHORT), high)
            most = min(most, getattr(self.base.config, "index_topk", most))  # some rows above it differ even alone
            raise InputError(
                f"model.max_tokens: in sequences of more than {most} tokens the model's logits at a token depend on "
                f"how many follow, and so would every score on its batch; set model.max_tokens={most}, or name another "
                "base"
            )

    def _largest(self, holds: Callable[[int], bool], first: int, end: int | None = None) -> int:
        """The largest length for which `holds`, by bisection from `first`, where it holds, to below `end`."""
        lengths = range(first, self.longest if end is None else end)
        return first - 1 + max(1, bisect_left(lengths, True, key=lambda length: not holds(length)))

    def _runs(self, length: int) -> bool:
        try:
            self._logits(length)
        except Exception:
            return False
        return True

    def _logits(self, length: int) -> Tensor:
        """logits_TV of the row cut to `length`. A short row is run first, because some models remember the longest."""
        logits_of(self.base, self.tokens_1T[:, :SHORT])
        return logits_of(self.base, self.tokens_1T[:, :length])[0]

    def _agree(self, first_TV: Tensor, second_TV: Tensor) -> bool:
        return agree(first_TV, second_TV, tolerance(self.base) * (second_TV[0] - second_TV[-1]).abs().max())


class _BoundsCheck(TorchFunctionMode):
    """Within, an embedding lookup beyond the table is an error; unchecked, a GPU loses the whole process by it."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """See `torch.overrides.TorchFunctionMode`."""
        if func is F.embedding and args[0].is_cuda and args[0].max() >= args[1].shape[0]:
            raise IndexError(f"position or token {args[0].max()} of a table of {args[1].shape[0]}")
        return func(*args, **(kwargs or {}))
