"""LoRA adapters for many tasks in one forward pass, Eq. 3: each row of a batch brings its own.

Shapes: B rows (or 1, an adapter that all rows share), T tokens, R rank, I in, O out, V vocabulary, P parameters of one
adapter: all its A and B, flattened and laid end to end, so that an adapter is one row of one matrix and the prior, the
optimiser and the files see a bank of them as a single tensor.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from bora_sweep.config import LoraConfig
from bora_sweep.errors import InputError


@dataclass(frozen=True)
class Site:
    """One adapted module: its path in the base model and its sizes."""

    name: str
    in_features: int
    out_features: int


@dataclass(frozen=True)
class Layout:
    """Where each A and B lies in an adapter's P parameters."""

    sites: tuple[Site, ...]
    rank: int

    @property
    def sizes(self) -> list[int]:
        """Parameters of A and B of each site, in turn."""
        return [self.rank * width for site in self.sites for width in (site.in_features, site.out_features)]

    @property
    def num_parameters(self) -> int:
        """P."""
        return sum(self.sizes)

    def split(self, theta_BP: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """The views A_BRI and B_BOR of each site, by its name."""
        parts = iter(theta_BP.split(self.sizes, dim=-1))
        return {
            site.name: (
                next(parts).unflatten(-1, (self.rank, site.in_features)),
                next(parts).unflatten(-1, (site.out_features, self.rank)),
            )
            for site in self.sites
        }

    def initial(self, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """theta_P at the start, as PEFT has it: A uniform within 1 / sqrt(I), B zero, so that the base is unchanged."""
        generator = torch.Generator().manual_seed(seed)
        theta_P = torch.zeros(self.num_parameters, dtype=dtype)
        for A_RI, _ in self.split(theta_P).values():
            A_RI.uniform_(-1, 1, generator=generator).mul_(A_RI.shape[-1] ** -0.5)
        return theta_P


def find_sites(base: nn.Module, config: LoraConfig) -> tuple[Site, ...]:
    """The modules of `base` that `config.target_modules` names.

    Raises:
        InputError: A name that no module has, a module that is neither Linear nor Conv1D, or no default known.
    """
    targets = config.target_modules if config.target_modules is not None else _peft_default(base)
    if targets == "all-linear":
        head = base.get_output_embeddings() if isinstance(base, PreTrainedModel) else None
        chosen = {name: m for name, m in base.named_modules() if isinstance(m, nn.Linear | Conv1D) and m is not head}
    else:
        chosen = {name: m for name, m in base.named_modules() if _matches(name, targets)}
        _refuse_unmatched(base, targets, chosen)
    return tuple(Site(name, *_widths(name, module)) for name, module in chosen.items())


def _peft_default(base: nn.Module) -> list[str] | str:
    from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as DEFAULTS

    kind = getattr(getattr(base, "config", None), "model_type", None)
    if kind not in DEFAULTS:
        raise InputError(
            f"lora.target_modules is not set and PEFT knows no default for a {kind} model; name the modules"
        )
    return DEFAULTS[kind]


def _matches(name: str, targets: Sequence[str] | str) -> bool:
    if isinstance(targets, str):
        return re.fullmatch(targets, name) is not None
    return any(name == target or name.endswith(f".{target}") for target in targets)


def _refuse_unmatched(base: nn.Module, targets: Sequence[str] | str, chosen: dict[str, nn.Module]) -> None:
    wanted = [targets] if isinstance(targets, str) else targets
    missing = [t for t in wanted if not (chosen if isinstance(targets, str) else any(_matches(n, [t]) for n in chosen))]
    if missing or not chosen:
        linear = {name.rpartition(".")[2] for name, m in base.named_modules() if isinstance(m, nn.Linear | Conv1D)}
        raise InputError(
            f"lora.target_modules={missing}: no such module in the model; it has {', '.join(sorted(linear))}"
        )


def _widths(name: str, module: nn.Module) -> tuple[int, int]:
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    if isinstance(module, Conv1D):  # GPT-2 keeps its weight transposed, (I, O)
        return module.weight.shape[0], module.weight.shape[1]
    raise InputError(f"lora.target_modules: {name} is a {type(module).__name__}; Linear and Conv1D can be adapted")


def add_low_rank(output: Tensor, x: Tensor, A_BRI: Tensor, B_BOR: Tensor, scale: float) -> Tensor:
    """W x + (alpha / r) B_b A_b x for each row b, Eq. 3, where `output` is W x.

    Rows are the outermost part of `x`, whether it comes as (B, T, I) or flattened to (B*T, I); a single adapter (B = 1)
    then takes all tokens as its own in one matrix product.
    """
    rows = A_BRI.shape[0]
    x_BTI = x.reshape(rows, -1, x.shape[-1])
    output_BTO = output.reshape(rows, -1, output.shape[-1])
    return torch.baddbmm(output_BTO, x_BTI @ A_BRI.mT, B_BOR.mT, alpha=scale).view_as(output)


class AdaptedModel(nn.Module):
    """A frozen causal language model that takes each row's adapter as an argument.

    The base itself is left as it is but for a forward hook on each site, which acts within this module's own `forward`
    alone; `detach` takes the hooks off again. The base stays in evaluation mode: its own dropout would make likelihoods
    depend on chance.
    """

    def __init__(self, base: PreTrainedModel, layout: Layout, scale: float) -> None:
        super().__init__()
        self.base = base.eval().requires_grad_(False)
        self.layout, self.scale = layout, scale
        self._adapters: dict[str, tuple[Tensor, Tensor]] = {}
        self._hooks = [base.get_submodule(site.name).register_forward_hook(self._hook(site)) for site in layout.sites]

    def _hook(self, site: Site):
        def add(_module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            if not self._adapters:  # the base is run by someone else
                return output
            return add_low_rank(output, inputs[0], *self._adapters[site.name], self.scale)

        return add

    def forward(self, tokens_BT: Tensor, theta_BP: Tensor) -> Tensor:
        """logits_BTV of the next token at each position, each row under its own adapter.

        Rows are padded on the right, if at all: a causal model's earlier positions never see what follows, so no
        attention mask is needed. theta_BP has as many rows as the tokens, or one.
        """
        self._adapters = self.layout.split(theta_BP.to(self.base.dtype))
        try:
            return self.base(input_ids=tokens_BT, use_cache=False).logits
        finally:
            self._adapters = {}

    def detach(self) -> None:
        """Take the hooks off the base, which is then the model that was given."""
        for hook in self._hooks:
            hook.remove()
