"""Full models: the base with one adapter worked into its weights, for programs that know no adapters.

Shapes: T tokens, V vocabulary, I in, O out, P parameters of the adapter.
"""

from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from bora_sweep.errors import InputError
from bora_sweep.model.adapted import AdaptedModel
from bora_sweep.model.layout import Layout
from bora_sweep.model.lora import Site, weight_OI

TRIED_TOKENS = 16  # fewer where the model has fewer positions
INSTEAD = "export adapters, without --merge"


def write_full(folder: Path, base: PreTrainedModel, layout: Layout, theta_P: Tensor) -> float:
    """Write what `AutoModelForCausalLM.from_pretrained(folder)` loads, and load it; `base` stays as it is.

    Returns:
        How far rounding to the base's precision moved the logits, as a share of what the adapter does.

    Raises:
        InputError: As in `merged_weights`, or what is loaded is not the base with the adapter.
    """
    weights = {**base.state_dict(), **merged_weights(base, layout, theta_P)}
    base.save_pretrained(folder, state_dict=dict(weights))  # which it empties
    loaded = type(base).from_pretrained(folder, dtype=base.dtype, use_safetensors=True).eval()
    found = loaded.state_dict()
    for name in weights.keys() | found.keys():
        if name not in weights or name not in found or not torch.equal(weights[name].cpu(), found[name]):
            raise InputError(f"--merge: {name} would not load as it was merged; {INSTEAD}")
    return _rounded_away(base, layout, theta_P, loaded)


@torch.no_grad()
def _rounded_away(base: PreTrainedModel, layout: Layout, theta_P: Tensor, merged: PreTrainedModel) -> float:
    """As above. Refuse a model that gives most of a few tokens other logits than the base with the adapter.

    Not all: where rounding has a router choose another expert, a token's logits jump.
    """
    vocabulary = int(base.get_input_embeddings().num_embeddings)  # type: ignore[arg-type]
    positions = getattr(base.config, "max_position_embeddings", None) or -1  # -1: without end
    length = min(TRIED_TOKENS, positions) if positions > 0 else TRIED_TOKENS
    tokens_1T = torch.randint(vocabulary, (1, length), generator=torch.Generator().manual_seed(0))
    adapted = AdaptedModel(base, layout)
    expected_TV = adapted(tokens_1T, theta_P[None])[0]
    adapted.remove_hooks()
    bare_TV, merged_TV = (model(input_ids=tokens_1T, use_cache=False).logits[0] for model in (base, merged))
    apart_T = (merged_TV - expected_TV).float().norm(dim=-1)
    apart = (apart_T / expected_TV.float().norm(dim=-1)).median().item()
    if not apart <= torch.finfo(base.dtype).eps ** 0.5:
        raise InputError(f"--merge: the merged model's logits are off by {apart:.1%} from the adapter's; {INSTEAD}")
    effect_T = (bare_TV - expected_TV).float().norm(dim=-1)
    return (apart_T / effect_T.clamp(min=torch.finfo(torch.float32).tiny)).median().item()


@torch.no_grad()
def merged_weights(base: PreTrainedModel, layout: Layout, theta_P: Tensor) -> dict[str, Tensor]:
    """Each adapted module's weight with the adapter in it, by the parameter's name, in the base's precision.

    Whatever the variant, an adapted module is linear but for its bias: its weight is what it makes of unit vectors.

    Raises:
        InputError: The base has weights that are not plain numbers, or an adapter besides; or an adapted weight is
            another module's too, which would change with it.
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
    if getattr(base.config, "quantization_config", None) is not None:
        raise InputError(f"--merge: the base is quantised, and such weights hold no adapter; {INSTEAD}")
    if getattr(base, "_hf_peft_config_loaded", False):
        raise InputError(f"--merge: the base has an adapter already, which lies in its own folder; {INSTEAD}")


def _refuse_shared(base: PreTrainedModel, site: Site) -> None:
    own, weight = f"{site.name}.weight", base.get_submodule(site.name).weight
    for name, parameter in base.named_parameters(remove_duplicate=False):
        if parameter is weight and name != own:
            raise InputError(
                f"--merge: {site.name} shares its weight with {name}, which the adapter leaves as it is; {INSTEAD}"
            )
