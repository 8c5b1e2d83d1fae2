"""Full models: the base with one adapter worked into its weights, for programs that know no adapters.

Shapes: I in, O out, P parameters of the adapter.
"""

from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from bora_sweep.errors import InputError
from bora_sweep.model.adapters import Layout
from bora_sweep.model.variants import weight_OI


def write_full(folder: Path, base: PreTrainedModel, layout: Layout, theta_P: Tensor) -> None:
    """Write what `AutoModelForCausalLM.from_pretrained(folder)` loads; `base` stays as it is.

    Raises:
        InputError: As in `merged_weights`.
    """
    base.save_pretrained(folder, state_dict={**base.state_dict(), **merged_weights(base, layout, theta_P)})


@torch.no_grad()
def merged_weights(base: PreTrainedModel, layout: Layout, theta_P: Tensor) -> dict[str, Tensor]:
    """Each adapted module's weight with the adapter in it, by the parameter's name, in the base's precision.

    Whatever the variant, an adapted module is linear but for its bias: its weight is what it makes of unit vectors.

    Raises:
        InputError: An adapted weight that is also the embeddings' would change those too.
    """
    merged = {}
    for site in layout.sites:
        module = base.get_submodule(site.name)
        if module.weight is base.get_input_embeddings().weight:
            raise InputError(
                f"--merge: {site.name} shares its weight with the embeddings, which the adapter leaves as they are; "
                "export adapters, without --merge"
            )
        bare = nn.Linear(site.in_features, site.out_features, bias=False, device="meta")
        bare.weight = nn.Parameter(weight_OI(module).to(theta_P.dtype))
        parts = {kind: part[None] for kind, part in layout.split(theta_P)[site.name].items()}
        unit_1II = torch.eye(site.in_features, dtype=theta_P.dtype)[None]
        weight_IO = layout.variant.apply(bare.weight.T[None], unit_1II, parts, bare)[0]
        merged[f"{site.name}.weight"] = (weight_IO if site.transposed else weight_IO.T).to(base.dtype).contiguous()
    return merged
