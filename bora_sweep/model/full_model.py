"""Full models: the base with one adapter merged into its weights, for programs that cannot load adapters.

Shapes: T tokens, V vocabulary, I in, O out, P parameters of one adapter.
"""

import copy
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.func import functional_call
from transformers import PreTrainedModel

from bora_sweep.errors import InputError
from bora_sweep.model.adapted import AdaptedModel
from bora_sweep.model.layout import Layout
from bora_sweep.model.lora import Site, weight_OI
from bora_sweep.model.quantization import is_quantised
from bora_sweep.model.trial_logits import vocabulary_size

CHECKED_TOKENS = 16  # fewer if the model has fewer positions
INSTEAD = "export adapters, without --merge"


@dataclass(frozen=True)
class Merge:
    """How an adapter was merged."""

    dtype: str
    """Of the full model's weights, such as `bfloat16`."""
    rounding_error: float
    """The change of the logits by rounding the merged weights to it, relative to the change by the adapter. The median
    over a few tokens, since a token's logits jump if rounding makes a router choose another expert."""


def write_full(
    folder: Path, base: PreTrainedModel, layout: Layout, theta_P: Tensor, dtype: torch.dtype | None = None
) -> Merge:
    """Write a full model for `AutoModelForCausalLM.from_pretrained(folder)`, and check it by loading it.

    Weight and adapter are added in the adapter's precision, float32 at least, and rounded once.

    Args:
        folder: A new folder.
        base: The base model, which stays unchanged.
        layout: The adapter's layout.
        theta_P: The adapter.
        dtype: The type of the full model's weights; None: the base's.

    Raises:
        InputError: As in `merged_weights`, or the loaded model differs from the base with the adapter.
    """
    dtype = dtype or base.dtype
    merged = merged_weights(base, layout, theta_P, dtype)
    holder = _in_dtype(base, dtype)
    weights = {**holder.state_dict(), **merged}
    holder.save_pretrained(folder, state_dict=dict(weights))  # a copy, because it empties the dictionary
    loaded = type(base).from_pretrained(folder, dtype=dtype, use_safetensors=True).eval()
    loaded_weights = loaded.state_dict()
    for name in weights.keys() | loaded_weights.keys():
        is_in_both = name in weights and name in loaded_weights
        if not is_in_both or not torch.equal(weights[name].cpu(), loaded_weights[name]):
            raise InputError(f"--merge: {name} would not load as it was merged; {INSTEAD}")
    rounded = merged if holder is base else loaded_weights
    return Merge(str(dtype).removeprefix("torch."), _rounding_error(base, layout, theta_P, loaded, rounded))


def _in_dtype(base: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """The base with weights of that type: itself, or a copy."""
    return base if base.dtype == dtype else copy.deepcopy(base).to(dtype)  # type: ignore[arg-type]


@torch.no_grad()
def _rounding_error(
    base: PreTrainedModel, layout: Layout, theta_P: Tensor, loaded: PreTrainedModel, rounded: dict[str, Tensor]
) -> float:
    """The change of the logits by `rounded` weights, relative to the adapter's, with passes in the adapter's precision.

    Raises:
        InputError: Most tokens have other logits in the loaded model than in the base with the adapter.
    """
    positions = getattr(base.config, "max_position_embeddings", None) or -1  # -1: no limit
    length = min(CHECKED_TOKENS, positions) if positions > 0 else CHECKED_TOKENS
    tokens_1T = torch.randint(vocabulary_size(base), (1, length), generator=torch.Generator().manual_seed(0))
    exact, asked = _in_dtype(base, theta_P.dtype), {"input_ids": tokens_1T, "use_cache": False}
    adapted = AdaptedModel(exact, layout)
    expected_TV = adapted(tokens_1T, theta_P[None])[0]
    adapted.remove_hooks()
    error_T = (loaded(**asked).logits[0] - expected_TV).float().norm(dim=-1)
    relative_error = (error_T / expected_TV.float().norm(dim=-1)).median().item()
    if not relative_error <= torch.finfo(loaded.dtype).eps ** 0.5:
        raise InputError(
            f"--merge: the merged model's logits are off by {relative_error:.1%} from the adapter's; {INSTEAD}"
        )
    own = {name for name, _ in exact.named_parameters()}  # of tied weights one name alone
    widened = {name: weight.to(exact.dtype) for name, weight in rounded.items() if name in own}
    rounded_TV = functional_call(exact, widened, kwargs=asked).logits[0]
    lost_T = (rounded_TV - expected_TV).norm(dim=-1)
    effect_T = (exact(**asked).logits[0] - expected_TV).norm(dim=-1)
    return (lost_T / effect_T.clamp(min=torch.finfo(torch.float32).tiny)).median().item()


@torch.no_grad()
def merged_weights(
    base: PreTrainedModel, layout: Layout, theta_P: Tensor, dtype: torch.dtype | None = None
) -> dict[str, Tensor]:
    """The weight of each adapted module with the adapter merged into it.

    With any variant an adapted module is linear, except for its bias: its outputs for unit vectors are its weight.

    Args:
        base: The base model, with its weights.
        layout: The adapter's layout.
        theta_P: The adapter, in whose precision they are added.
        dtype: What the weights are rounded to; None: the base's.

    Returns:
        The weights by the parameters' names.

    Raises:
        InputError: The base is quantised or already has an adapter; or an adapted module shares its weight with another
            module, which would change too; or a weight is beyond what `dtype` holds.
    """
    _refuse_unplain(base)
    merged = {}
    for site in layout.sites:
        module = base.get_submodule(site.name)
        _refuse_shared(base, site)
        bare = nn.Linear(site.in_features, site.out_features, bias=False, device="meta")
        bare.weight = nn.Parameter(weight_OI(module).to(theta_P.dtype))
        parts = {kind: part[None] for kind, part in layout.split(theta_P)[site.name].items()}
        unit_1II = torch.eye(site.in_features, dtype=theta_P.dtype)[None]
        weight_IO = layout.variant.apply(bare.weight.T[None], unit_1II, parts, bare)[0]
        weight = (weight_IO if site.transposed else weight_IO.T).to(dtype or base.dtype).contiguous()
        if not weight.isfinite().all():
            raise InputError(f"--merge: {site.name} has weights beyond {weight.dtype}; give --dtype float32")
        merged[f"{site.name}.weight"] = weight
    return merged


def _refuse_unplain(base: PreTrainedModel) -> None:
    if is_quantised(base):
        raise InputError(f"--merge: the base is quantised, and such weights hold no adapter; {INSTEAD}")
    if getattr(base, "_hf_peft_config_loaded", False):
        raise InputError(f"--merge: the base has an adapter already, which lies in its own folder; {INSTEAD}")


def _refuse_shared(base: PreTrainedModel, site: Site) -> None:
    weight_name, weight = f"{site.name}.weight", base.get_submodule(site.name).weight
    for name, parameter in base.named_parameters(remove_duplicate=False):
        if parameter is weight and name != weight_name:
            raise InputError(
                f"--merge: {site.name} shares its weight with {name}, which the adapter leaves as it is; {INSTEAD}"
            )
