"""Full models: the base with one adapter merged into its weights, for programs that cannot load adapters.

Shapes: T tokens, V vocabulary, I in, O out, P parameters of one adapter.
"""

from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from bora_sweep.errors import InputError
from bora_sweep.model.adapted import AdaptedModel
from bora_sweep.model.layout import Layout
from bora_sweep.model.lora import Site, weight_OI
from bora_sweep.model.quantization import is_quantised
from bora_sweep.model.trial_logits import vocabulary_size

CHECKED_TOKENS = 16  # fewer if the model has fewer positions
INSTEAD = "export adapters, without --merge"


def write_full(folder: Path, base: PreTrainedModel, layout: Layout, theta_P: Tensor) -> float:
    """Write a full model for `AutoModelForCausalLM.from_pretrained(folder)`, and check it by loading it.

    Args:
        folder: A new folder.
        base: The base model, which stays unchanged.
        layout: The adapter's layout.
        theta_P: The adapter.

    Returns:
        The change of the logits by rounding the merged weights to the base's precision, relative to the change by the
        adapter.

    Raises:
        InputError: As in `merged_weights`, or the loaded model differs from the base with the adapter.
    """
    weights = {**base.state_dict(), **merged_weights(base, layout, theta_P)}
    base.save_pretrained(folder, state_dict=dict(weights))  # a copy, because it empties the dictionary
    loaded = type(base).from_pretrained(folder, dtype=base.dtype, use_safetensors=True).eval()
    loaded_weights = loaded.state_dict()
    for name in weights.keys() | loaded_weights.keys():
        is_in_both = name in weights and name in loaded_weights
        if not is_in_both or not torch.equal(weights[name].cpu(), loaded_weights[name]):
            raise InputError(f"--merge: {name} would not load as it was merged; {INSTEAD}")
    return _rounding_error(base, layout, theta_P, loaded)


@torch.no_grad()
def _rounding_error(base: PreTrainedModel, layout: Layout, theta_P: Tensor, merged: PreTrainedModel) -> float:
    """The median over a few tokens of the merged model's error in the logits, relative to the adapter's effect.

    A median, because a token's logits jump if rounding makes a router choose another expert.

    Raises:
        InputError: Most tokens have other logits than the base with the adapter.
    """
    positions = getattr(base.config, "max_position_embeddings", None) or -1  # -1: no limit
    length = min(CHECKED_TOKENS, positions) if positions > 0 else CHECKED_TOKENS
    tokens_1T = torch.randint(vocabulary_size(base), (1, length), generator=torch.Generator().manual_seed(0))
    adapted = AdaptedModel(base, layout)
    expected_TV = adapted(tokens_1T, theta_P[None])[0]
    adapted.remove_hooks()
    bare_TV, merged_TV = (model(input_ids=tokens_1T, use_cache=False).logits[0] for model in (base, merged))
    error_T = (merged_TV - expected_TV).float().norm(dim=-1)
    relative_error = (error_T / expected_TV.float().norm(dim=-1)).median().item()
    if not relative_error <= torch.finfo(base.dtype).eps ** 0.5:
        raise InputError(
            f"--merge: the merged model's logits are off by {relative_error:.1%} from the adapter's; {INSTEAD}"
        )
    effect_T = (bare_TV - expected_TV).float().norm(dim=-1)
    return (error_T / effect_T.clamp(min=torch.finfo(torch.float32).tiny)).median().item()


@torch.no_grad()
def merged_weights(base: PreTrainedModel, layout: Layout, theta_P: Tensor) -> dict[str, Tensor]:
    """The weight of each adapted module with the adapter merged into it.

    With any variant an adapted module is linear, except for its bias: its outputs for unit vectors are its weight.

    Args:
        base: The base model, with its weights.
        layout: The adapter's layout.
        theta_P: The adapter.

    Returns:
        The weights by the parameters' names, in the base's precision.

    Raises:
        InputError: The base is quantised or already has an adapter; or an adapted module shares its weight with another
            module, which would change too.
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
        merged[f"{site.name}.weight"] = (weight_IO if site.transposed else weight_IO.T).to(base.dtype).contiguous()
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
