"""Checks that a base model can be fine-tuned with an adapter for each batch row.

Each set of adapters on a base is checked once, by running a few tokens with random adapters that differ by row:

- a row's logits are the same alone and in a batch, with its own adapter;
- they do not depend on later tokens, and so not on padding to the right;
- they do not depend on chance;
- each adapter changes the logits.

Shapes: B rows, T tokens, V vocabulary, P parameters of one adapter.
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import PreTrainedModel

from bora_sweep.errors import InputError, one_line
from bora_sweep.model.layout import Layout
from bora_sweep.model.linear_modules import last_name, name_pattern
from bora_sweep.model.trial_logits import (
    agree,
    is_precise,
    logits_of,
    made_up_tokens,
    tolerance,
    vocabulary_size,
    widened,
)

ROWS, TOKENS, FEWER, FEWEST = 3, 7, 5, 4
BATCHES = (((0, 1), TOKENS), ((2, 1, 0), FEWER), ((2, 0, 1, 1, 0, 2), TOKENS))
"""Rows and length of each batch that is run."""
STRENGTH, LOW_PRECISION_STRENGTH = 0.1, 1.0
"""What random adapters add, relative to their modules' inputs: more than rounding."""

AdapterParts = dict[str, dict[str, Tensor]]
"""Parts of a batch's adapters by site and kind, as `Layout.split` returns them."""
UseAdapters = Callable[[AdapterParts], AbstractContextManager[None]]
"""A context in which the base has these adapters."""

_checked: WeakKeyDictionary[PreTrainedModel, set[tuple]] = WeakKeyDictionary()


def check_base(base: PreTrainedModel, layout: Layout, use_adapters: UseAdapters) -> None:
    """Check that every row of a batch can have its own adapter on this base; a check that passed is not repeated.

    Args:
        base: The base model, in evaluation mode.
        layout: Where its adapters are.
        use_adapters: A context in which the base has given adapters.

    Raises:
        InputError: One of the module's four conditions does not hold.
    """
    case = (tuple(site.name for site in layout.sites), type(layout.variant), base.device, base.dtype)
    if base.device.type == "meta" or case in _checked.setdefault(base, set()):
        return
    before = _text_attributes(base)
    with torch.random.fork_rng([base.device] if base.device.type == "cuda" else []):
        problem = _find_problem(base, layout, use_adapters) or _find_change(before, _text_attributes(base))
    if problem is not None:
        raise InputError(f"model.name={base.config.name_or_path or type(base).__name__}: {problem}")
    _checked[base].add(case)


def _text_attributes(base: PreTrainedModel) -> dict[tuple[str, str], str]:
    """The modules' string attributes, which say how they compute, such as the kind of attention."""
    return {
        (name, key): value
        for name, module in base.named_modules()
        for key, value in vars(module).items()
        if isinstance(value, str)
    }


def _find_change(before: dict[tuple[str, str], str], after: dict[tuple[str, str], str]) -> str | None:
    """A message if running the model has changed one of its settings; else None."""
    for (name, key), value in after.items():
        if before.get((name, key), value) != value:
            return (
                f"{name or 'the model'} changes its {key} from {before[name, key]} to {value} as it runs, so that "
                f"scores would depend on what was run before; set {key}={value} in config.json"
            )
    return None


def _find_problem(base: PreTrainedModel, layout: Layout, use_adapters: UseAdapters) -> str | None:
    """A message if a condition does not hold; else None.

    Tried in float32 if that runs, where rounding hides no error; then whether the base runs in its own precision.
    """
    with widened(base) as is_wider:
        problem, ran = _Check(base, layout, use_adapters).problem()
    if not is_wider or (ran and problem):
        return problem
    return _Check(base, layout, use_adapters).problem(compare_rows=not ran)[0]


class _Check:
    """Runs a few rows through one model, and explains what is wrong with their logits."""

    def __init__(self, base: PreTrainedModel, layout: Layout, use_adapters: UseAdapters) -> None:
        self.base, self.layout, self.use_adapters = base, layout, use_adapters
        self.tokens_BT = made_up_tokens(base, ROWS, TOKENS)
        end_tokens = base.config.eos_token_id
        end_tokens = end_tokens if isinstance(end_tokens, list) else [end_tokens]
        size = vocabulary_size(base)
        self.padding_tokens = [token for token in end_tokens if isinstance(token, int) and 0 <= token < size]
        self.theta_BP = torch.stack([random_adapter(base, layout, row) for row in range(ROWS)]).to(base.device)
        if not layout.variant.full_precision:
            self.theta_BP = self.theta_BP.to(base.dtype)

    def problem(self, compare_rows: bool = True) -> tuple[str | None, bool]:
        """A message if a condition does not hold for the rows or an adapter, else None; and whether the model ran."""
        try:
            if compare_rows and not self._rows_agree(self.layout.split(self.theta_BP)):
                return self._explain() or "a row's logits depend on more than the row and its own adapter", True
            return self._unused_adapters(), True
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # any model's code
            what = one_line(error, limit=200)
            return self._explain() or f"a batch of rows with adapters of their own does not run ({what})", False

    @torch.no_grad()
    def _rows_agree(self, adapters: AdapterParts) -> bool:
        """Whether a row's logits are the same alone and in a batch, and with and without later tokens."""
        alone = [self._logits([row], TOKENS, adapters)[0] for row in range(ROWS)]
        atol = tolerance(self.base) * (alone[0] - alone[1]).abs().max()
        short_TV = self._logits([1], FEWEST, adapters)[0]
        pairs = [(alone[1], short_TV)]
        pairs += [
            (self._logits([1], TOKENS, adapters, padding)[0][:FEWEST], short_TV) for padding in self.padding_tokens
        ]
        for rows, length in BATCHES:
            pairs += zip([alone[row] for row in rows], self._logits(rows, length, adapters), strict=True)
        return all(agree(longer_TV, shorter_TV, atol) for longer_TV, shorter_TV in pairs)

    def _logits(self, rows: Sequence[int], length: int, adapters: AdapterParts, padding: int | None = None) -> Tensor:
        """logits_BTV of these rows, each with its own adapter; `padding` replaces all but the first FEWEST tokens."""
        tokens_BT = self.tokens_BT[list(rows), :length]
        if padding is not None:
            tokens_BT = tokens_BT.clone()
            tokens_BT[:, FEWEST:] = padding
        chosen = {name: {kind: part[list(rows)] for kind, part in parts.items()} for name, parts in adapters.items()}
        with self.use_adapters(chosen):
            return logits_of(self.base, tokens_BT)

    def _unused_adapters(self) -> str | None:
        """A message if the logits do not depend on some adapters; else None."""
        adapters = {
            name: {kind: part.detach().requires_grad_() for kind, part in parts.items()}
            for name, parts in self.layout.split(self.theta_BP[:2]).items()
        }
        with torch.enable_grad(), self.use_adapters(adapters):
            total = logits_of(self.base, self.tokens_BT[:2]).sum()
            leaves = [part for parts in adapters.values() for part in parts.values()]
            if total.requires_grad:
                torch.autograd.backward(total, inputs=leaves)
        unused = [name for name, parts in adapters.items() if all(part.grad is None for part in parts.values())]
        if not unused:
            return None
        return f"adapters at {_some(map(name_pattern, unused))} change no logit; leave them out of lora.target_modules"

    @torch.no_grad()
    def _explain(self) -> str | None:
        """Which condition does not hold, each tried by itself; None if it is none of them."""
        try:
            once, again = (self._logits([0, 1], TOKENS, {}) for _ in range(2))
            alone_TV, short_TV = self._logits([1], TOKENS, {})[0], self._logits([1], FEWEST, {})[0]
        except Exception as error:
            dtype = str(self.base.dtype).removeprefix("torch.")
            return (
                f"the model does not run with model.dtype={dtype} ({one_line(error, limit=200)}); set another "
                "model.dtype, or name another base"
            )
        atol = tolerance(self.base) * (once[0] - once[1]).abs().max()
        if not agree(once, again, atol):
            return "the same tokens give other logits each time, though the model is in evaluation mode"
        padded = [self._logits([1], TOKENS, {}, padding)[0][:FEWEST] for padding in self.padding_tokens]
        if not all(agree(longer_TV, short_TV, atol) for longer_TV in (alone_TV, *padded)):
            return (
                "the model is not causal: its logits at a token depend on the tokens after it, so that they are no "
                "likelihoods; name a causal language model (or set is_decoder in config.json, if it was trained so)"
            )
        if not agree(once[1], alone_TV, atol):
            return "a row's logits depend on the other rows of its batch, so that a fit would depend on its batches"
        rows_agree = {site.name: self._rows_agree_at(site.name) for site in self.layout.sites}
        mixed, separate = ([name for name in rows_agree if rows_agree[name] is right] for right in (False, True))
        if not mixed:
            return None
        others = f", name others, such as {_some(map(last_name, separate))}" if separate else ""
        return (
            f"adapters of several tasks cannot share a batch at {_some(map(name_pattern, mixed))}: their input is not "
            f"the batch's rows one after another; leave them out of lora.target_modules{others}"
        )

    def _rows_agree_at(self, name: str) -> bool:
        """`_rows_agree` with adapters at this site alone."""
        try:
            return self._rows_agree({name: self.layout.split(self.theta_BP)[name]})
        except Exception:
            return False


def random_adapter(base: PreTrainedModel, layout: Layout, seed: int) -> Tensor:
    """theta_P whose parts add about `STRENGTH` times their modules' inputs."""
    strength = STRENGTH if is_precise(base) else LOW_PRECISION_STRENGTH
    scale = getattr(layout.variant, "scale", 1.0)
    generator, theta_P = torch.Generator().manual_seed(seed), layout.initial(base, seed)
    for parts in layout.split(theta_P).values():
        for kind, part in parts.items():
            noise = torch.randn(part.shape, generator=generator)
            if kind == "magnitude":
                part.mul_(1 + 0.1 * noise)
            elif kind != "A":
                part.add_(noise, alpha=strength / scale / part.shape[-1] ** 0.5)
    return theta_P


def _some(names: Iterable[str], limit: int = 5) -> str:
    names = list(dict.fromkeys(names))
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")
