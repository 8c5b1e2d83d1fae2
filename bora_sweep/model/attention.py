"""Causal attention without a mask, for base models whose attention is just that.

Transformers makes a mask where it cannot be sure that none is needed: it looks at each batch, for which a GPU has to be
waited for, and while a model is compiled it always makes one, with which no flash kernel runs. A fit pads its rows on
the right, where no scored token sees padding. So nothing but the causal order matters, unless the model has sliding
windows, biases, caps or sinks. Whether it has is found by running it.

Shapes: B rows, N heads (or fewer of keys and values), T tokens, E the width of a head.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PretrainedConfig, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.modeling_utils import AttentionInterface

from bora_sweep.model.trial_logits import agree, made_up_tokens, tolerance

CAUSAL, WATCHED = "bora_sweep_causal", "bora_sweep_watched"
"""Names in transformers' table of attentions."""
HALF = (torch.bfloat16, torch.float16)
HARMLESS = {"position_ids", "cache_position", "position_embeddings", "use_cache", "past_key_values", "layer_idx"}
"""Arguments of an attention that change nothing where there is no cache."""

_fits: WeakKeyDictionary[PreTrainedModel, dict[tuple, bool]] = WeakKeyDictionary()


def causal_attention(
    module: nn.Module,  # noqa: ARG001, transformers' arguments
    query_BNTE: Tensor,
    key_BNTE: Tensor,
    value_BNTE: Tensor,
    attention_mask: None,  # noqa: ARG001
    scaling: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """softmax(s Q K') V over the tokens up to each one, as transformers' `AttentionInterface` asks for it.

    Returns:
        The output, of shape (B, T, N, E), and no weights.
    """
    groups, has_flash = query_BNTE.shape[1] // key_BNTE.shape[1], query_BNTE.is_cuda and query_BNTE.dtype in HALF
    if groups > 1 and not has_flash:  # only flash attention takes fewer heads of keys as they are
        key_BNTE, value_BNTE = (x.repeat_interleave(groups, dim=1) for x in (key_BNTE, value_BNTE))
    output_BNTE = F.scaled_dot_product_attention(
        query_BNTE, key_BNTE, value_BNTE, is_causal=True, scale=scaling, enable_gqa=groups > 1 and has_flash
    )
    return output_BNTE.transpose(1, 2).contiguous(), None


class _Watch:
    """Transformers' own attention, which takes down whether each call is a plain causal one."""

    def __init__(self) -> None:
        self.is_plain: list[bool] = []

    def __call__(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **more: Any):
        length = query.shape[2]
        plain_mask = mask is None or self._is_causal(mask, length)
        is_causal = mask is not None or (getattr(module, "is_causal", True) and more.get("is_causal") is not False)
        others = {name for name, value in more.items() if value is not None} - HARMLESS
        others -= {"scaling", "is_causal"} | ({"dropout"} if not more.get("dropout") else set())
        window = more.get("sliding_window")
        others -= {"sliding_window"} if window is not None and window >= length else set()
        self.is_plain.append(plain_mask and is_causal and key.shape[2] == length and not others)
        return sdpa_attention_forward(module, query, key, value, mask, **more)

    @staticmethod
    def _is_causal(mask: Tensor, length: int) -> bool:
        causal_TT = torch.ones(length, length, dtype=torch.bool, device=mask.device).tril()
        return mask.dtype == torch.bool and mask.shape[-2:] == causal_TT.shape and bool((mask == causal_TT).all())


def has_causal_attention(base: PreTrainedModel, longest: int) -> bool:
    """Whether `causal_attention` gives the model's own results for rows without padding of at most `longest` tokens.

    Found by running it once each way. A model that does not choose its attention by transformers' table is left alone.

    Args:
        base: The base model, in evaluation mode.
        longest: Tokens of the longest row.
    """
    case = (longest, base.device, base.dtype)
    found = _fits.setdefault(base, {})
    if case not in found:
        found[case] = base.device.type != "meta" and _agrees(base, longest)
    return found[case]


@torch.no_grad()
def _agrees(base: PreTrainedModel, longest: int) -> bool:
    if any(config._attn_implementation != "sdpa" for config in _configs(base)):
        return False
    watch, tokens_2T = _Watch(), made_up_tokens(base, 2, longest)
    AttentionInterface.register(WATCHED, watch)
    try:
        with attention(base, WATCHED):
            own_2TH = _last_hidden_state(base, tokens_2T)
        if not watch.is_plain or not all(watch.is_plain):
            return False
        with attention(base, CAUSAL):
            causal_2TH = _last_hidden_state(base, tokens_2T)
    except torch.OutOfMemoryError:
        raise
    except Exception:  # any model's code, which may take no other attention
        return False
    return agree(causal_2TH, own_2TH, tolerance(base) * (own_2TH[0] - own_2TH[1]).abs().max())


def _last_hidden_state(base: PreTrainedModel, tokens_BT: Tensor) -> Tensor:
    output = base.base_model(input_ids=tokens_BT, use_cache=False).last_hidden_state
    return output.to(torch.promote_types(output.dtype, torch.float32))


@contextmanager
def attention(base: PreTrainedModel, name: str) -> Iterator[None]:
    """Within, the model has the attention of this name in transformers' table."""
    before = [(config, config._attn_implementation_internal) for config in _configs(base)]
    try:
        for config, _ in before:
            config._attn_implementation_internal = name
        yield
    finally:
        for config, own in before:
            config._attn_implementation_internal = own


def _configs(base: PreTrainedModel) -> list[PretrainedConfig]:
    """The configurations that the model's modules read their attention from, each once."""
    held = {id(module.config): module.config for module in base.modules() if hasattr(module, "config")}
    return [config for config in held.values() if isinstance(config, PretrainedConfig)]


AttentionInterface.register(CAUSAL, causal_attention)  # without a mask's function, transformers makes no mask
AttentionMaskInterface.register(WATCHED, sdpa_mask)
