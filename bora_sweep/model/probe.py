"""What is believed of a base model, tried: a fit is right only where all of it holds.

A base is tried once with each set of adapters, by a handful of tokens, with random adapters that differ by rows:

- a row's logits are those of the row alone with its own adapter, whatever stands beside it;
- they do not depend on later tokens, and so not on what fills the row on its right;
- they do not depend on chance;
- what each adapter adds reaches the logits.

Shapes: B rows, T tokens, V vocabulary, P parameters of one adapter.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import PreTrainedModel

from bora_sweep.errors import InputError, one_line
from bora_sweep.model.sites import own_name, pattern

if TYPE_CHECKING:
    from bora_sweep.model.adapted import AdaptedModel

ROWS, TOKENS, FEWER, FEWEST = 3, 7, 5, 4
BATCHES = (((0, 1), TOKENS), ((2, 1, 0), FEWER), ((2, 0, 1, 1, 0, 2), TOKENS))
"""Rows of each batch that is tried, and their length."""
STRENGTH, STRENGTH_ROUNDED = 0.1, 1.0
"""Of what random adapters add, over their modules' inputs: enough to be told from rounding."""
SMALLEST = {torch.float64: 1e-6, torch.float32: 2e-4}
"""Of a difference that is not rounding's, over that of two different rows' logits: where all is right it is 1e-6, in a
model that is not causal 2e-3 at the least, as long as its weights are random and small."""
SMALLEST_ROUNDED = 0.1
"""The same in a precision in which rounding may send a token to another expert."""
WIDENED_BYTES = 2 << 30
"""A base of fewer bytes is tried in float32, where rounding hides nothing."""

PartsOf = dict[str, dict[str, Tensor]]
"""Adapters' parts by site and kind, a row of each batch for each, as `Layout.split` gives them."""

_tried: WeakKeyDictionary[PreTrainedModel, set[tuple]] = WeakKeyDictionary()


def refuse_unsound(adapted: "AdaptedModel") -> None:
    """Try `adapted` as above; what was tried of a base is not tried again.

    Raises:
        InputError: Something does not hold.
    """
    base, layout = adapted.base, adapted.layout
    kind = (tuple(site.name for site in layout.sites), type(layout.variant), base.device, base.dtype)
    if base.device.type == "meta" or kind in _tried.setdefault(base, set()):
        return
    before = _words_of(base)
    with torch.random.fork_rng([base.device] if base.device.type == "cuda" else []):
        problem = _problem(adapted) or _changed(before, _words_of(base))
    if problem is not None:
        raise InputError(f"model.name={base.config.name_or_path or type(base).__name__}: {problem}")
    _tried[base].add(kind)


def _words_of(base: PreTrainedModel) -> dict[tuple[str, str], str]:
    """What modules keep as words: how they work, such as the kind of their attention."""
    return {
        (name, key): value
        for name, module in base.named_modules()
        for key, value in vars(module).items()
        if isinstance(value, str)
    }


def _changed(before: dict[tuple[str, str], str], after: dict[tuple[str, str], str]) -> str | None:
    """That a model has become another one by being run."""
    for (name, key), value in after.items():
        if before.get((name, key), value) != value:
            return (
                f"{name or 'the model'} changes its {key} from {before[name, key]} to {value} as it runs, so that "
                f"scores would depend on what was run before; set {key}={value} in config.json"
            )
    return None


def _problem(adapted: "AdaptedModel") -> str | None:
    """What does not hold, tried where rounding hides nothing, if it runs there; and that it runs as it is."""
    with widened(adapted.base) as is_wider:
        problem, ran = _Probe(adapted).problem()
    return _Probe(adapted).problem(with_rows=not ran)[0] if is_wider and not (ran and problem) else problem


class _Probe:
    """One model's logits of a few rows, and what is to be said where they are not what they should be."""

    def __init__(self, adapted: "AdaptedModel") -> None:
        self.adapted, self.base, self.layout = adapted, adapted.base, adapted.layout
        self.tokens_BT = made_up_tokens(self.base, ROWS, TOKENS)
        self.smallest = smallest_difference(self.base)
        ends, vocabulary = self.base.config.eos_token_id, vocabulary_of(self.base)
        ends = ends if isinstance(ends, list) else [ends]  # what rows are filled with
        self.fills = [end for end in ends if isinstance(end, int) and 0 <= end < vocabulary]
        self.theta_BP = torch.stack([self._random_adapter(row) for row in range(ROWS)]).to(self.base.device)
        if not self.layout.variant.full_precision:
            self.theta_BP = self.theta_BP.to(self.base.dtype)

    def problem(self, with_rows: bool = True) -> tuple[str | None, bool]:
        """What does not hold, if anything, of the rows and of each adapter; and whether the model ran."""
        try:
            if with_rows and not self._agrees(self.layout.split(self.theta_BP)):
                return self._why() or "a row's logits depend on more than the row and its own adapter", True
            return self._silent(), True
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # any model's code
            what = one_line(error, limit=200)
            return self._why() or f"a batch of rows with adapters of their own does not run ({what})", False

    @torch.no_grad()
    def _agrees(self, parts_of: PartsOf) -> bool:
        """Whether rows are the same alone as beside others, and without later tokens as with them."""
        alone = [self._logits([row], TOKENS, parts_of)[0] for row in range(ROWS)]
        smallest = self.smallest * (alone[0] - alone[1]).abs().max()
        pairs = [(alone[1], self._logits([1], FEWEST, parts_of)[0])]
        pairs += [(self._logits([1], TOKENS, parts_of, fill)[0][:FEWEST], pairs[0][1]) for fill in self.fills]
        for rows, length in BATCHES:
            pairs += zip([alone[row] for row in rows], self._logits(rows, length, parts_of), strict=True)
        return all(close(whole_TV, found_TV, smallest) for whole_TV, found_TV in pairs)

    def _logits(self, rows: Sequence[int], length: int, parts_of: PartsOf, fill: int | None = None) -> Tensor:
        """Of these rows, each with its own of these adapters; with `fill`, the last tokens are that one."""
        tokens_BT = self.tokens_BT[list(rows), :length]
        if fill is not None:
            tokens_BT = tokens_BT.clone()
            tokens_BT[:, FEWEST:] = fill
        own = {name: {kind: part[list(rows)] for kind, part in parts.items()} for name, parts in parts_of.items()}
        with self.adapted.holding(own):
            return logits_of(self.base, tokens_BT)

    def _random_adapter(self, seed: int) -> Tensor:
        """theta_P, whose modules add about STRENGTH of their inputs."""
        strength = STRENGTH if self.base.dtype in SMALLEST else STRENGTH_ROUNDED
        scale = getattr(self.layout.variant, "scale", 1.0)
        generator, theta_P = torch.Generator().manual_seed(seed), self.layout.initial(self.base, seed)
        for parts in self.layout.split(theta_P).values():
            for kind, part in parts.items():
                noise = torch.randn(part.shape, generator=generator)
                if kind == "magnitude":
                    part.mul_(1 + 0.1 * noise)
                elif kind != "A":
                    part.add_(noise, alpha=strength / scale / part.shape[-1] ** 0.5)
        return theta_P

    def _silent(self) -> str | None:
        """Adapters that the logits do not depend on: what they add is nowhere used."""
        parts_of = {
            name: {kind: part.detach().requires_grad_() for kind, part in parts.items()}
            for name, parts in self.layout.split(self.theta_BP[:2]).items()
        }
        with torch.enable_grad(), self.adapted.holding(parts_of):
            total = logits_of(self.base, self.tokens_BT[:2]).sum()
            leaves = [part for parts in parts_of.values() for part in parts.values()]
            if total.requires_grad:
                torch.autograd.backward(total, inputs=leaves)
        silent = [name for name, parts in parts_of.items() if all(part.grad is None for part in parts.values())]
        if not silent:
            return None
        return f"adapters at {_some(map(pattern, silent))} change no logit; leave them out of lora.target_modules"

    @torch.no_grad()
    def _why(self) -> str | None:
        """What does not hold, tried by itself; None where it is nothing of these."""
        try:
            once, again = (self._logits([0, 1], TOKENS, {}) for _ in range(2))
            alone_TV, short_TV = self._logits([1], TOKENS, {})[0], self._logits([1], FEWEST, {})[0]
        except Exception as error:
            dtype = str(self.base.dtype).removeprefix("torch.")
            return (
                f"the model does not run with model.dtype={dtype} ({one_line(error, limit=200)}); set another "
                "model.dtype, or name another base"
            )
        smallest = self.smallest * (once[0] - once[1]).abs().max()
        if not close(once, again, smallest):
            return "the same tokens give other logits each time, though the model is in evaluation mode"
        filled = [self._logits([1], TOKENS, {}, fill)[0][:FEWEST] for fill in self.fills]
        if not all(close(found_TV, short_TV, smallest) for found_TV in (alone_TV, *filled)):
            return (
                "the model is not causal: its logits at a token depend on the tokens after it, so that they are no "
                "likelihoods; name a causal language model (or set is_decoder in config.json, where it was trained so)"
            )
        if not close(once[1], alone_TV, smallest):
            return "a row's logits depend on the other rows of its batch, so that a fit would depend on its batches"
        holds = {site.name: self._holds_at(site.name) for site in self.layout.sites}
        mixed, others = ([name for name in holds if holds[name] is right] for right in (False, True))
        if not mixed:
            return None
        name_others = f", name others, such as {_some(map(own_name, others))}" if others else ""
        return (
            f"adapters of several tasks cannot share a batch at {_some(map(pattern, mixed))}: what goes in is not the "
            f"batch's rows one after another; leave them out of lora.target_modules{name_others}"
        )

    def _holds_at(self, name: str) -> bool:
        """Whether adapters at this one module act on the rows that they belong to."""
        try:
            return self._agrees({name: self.layout.split(self.theta_BP)[name]})
        except Exception:
            return False


def _some(names: Iterable[str], most: int = 5) -> str:
    names = list(dict.fromkeys(names))
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def smallest_difference(base: PreTrainedModel) -> float:
    """Of two logits that is no rounding, over a difference that means something."""
    return SMALLEST.get(base.dtype, SMALLEST_ROUNDED)


def close(whole_TV: Tensor, found_TV: Tensor, smallest: Tensor) -> bool:
    """Whether the logits agree where both are there; those that are no numbers say nothing."""
    whole_TV = whole_TV[..., : found_TV.shape[-2], :]
    return bool(torch.nan_to_num(whole_TV - found_TV).abs().max() <= torch.nan_to_num(smallest))


def logits_of(base: PreTrainedModel, tokens_BT: Tensor) -> Tensor:
    """logits_BTV in float32 at least."""
    logits_BTV = base(input_ids=tokens_BT, use_cache=False).logits
    if logits_BTV.shape[:2] != tokens_BT.shape:
        raise ValueError(f"logits of shape {tuple(logits_BTV.shape)} for tokens of {tuple(tokens_BT.shape)}")
    if logits_BTV.isnan().any():
        raise ValueError("its logits are no numbers: NaN")
    return logits_BTV.to(torch.promote_types(logits_BTV.dtype, torch.float32))


def vocabulary_of(base: PreTrainedModel) -> int:
    """Tokens that have an embedding."""
    return int(base.get_input_embeddings().num_embeddings)  # type: ignore[arg-type]


def made_up_tokens(base: PreTrainedModel, rows: int, length: int) -> Tensor:
    """tokens_BT from all over the vocabulary, none of which the configuration gives a meaning of its own."""
    described = base.config.to_dict().items()
    special = {value for key, value in described if key.endswith("token_id") and isinstance(value, int)}
    vocabulary = vocabulary_of(base)
    plain = torch.tensor([token for token in range(vocabulary) if token not in special] or [0])
    step = max(1, len(plain) // (rows * length))
    return plain[torch.arange(rows * length) * step % len(plain)].view(rows, length).to(base.device)


@contextmanager
def widened(base: PreTrainedModel) -> Iterator[bool]:
    """Within, the weights of a small base are in float32 at least; whether that makes a difference."""
    weights = [*base.parameters(), *base.buffers()]
    narrow = [weight for weight in weights if weight.dtype in (torch.bfloat16, torch.float16)]
    is_plain = all(weight.is_floating_point() for weight in base.parameters())
    if not narrow or not is_plain or sum(weight.nbytes for weight in narrow) > WIDENED_BYTES:
        yield False
        return
    kept = [weight.data for weight in narrow]
    try:
        for weight in narrow:
            weight.data = weight.data.float()
        yield True
    finally:
        for weight, data in zip(narrow, kept, strict=True):
            weight.data = data
