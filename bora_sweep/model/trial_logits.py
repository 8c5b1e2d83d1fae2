"""Logits of made-up tokens, by which a base model is checked, and whether two of them agree up to rounding.

Shapes: B rows, T tokens, V vocabulary.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from bora_sweep.model.quantization import is_quantised, rounds_inputs

TOLERANCE = {torch.float64: 1e-6, torch.float32: 2e-4}
"""The smallest real difference of logits, relative to the difference between two rows. Rounding stays near 1e-6 in
float32; a model that is not causal differs by at least 2e-3, even with small random weights."""
LOW_PRECISION_TOLERANCE = 0.1
"""The same in lower precisions, where rounding may send a token to another expert."""
WIDENED_BYTES = 2 << 30
"""Smaller bases are checked in float32, where rounding hides no error."""


def tolerance(base: PreTrainedModel) -> float:
    """The smallest real difference of logits in the precision of `base`, see `TOLERANCE`."""
    return TOLERANCE[base.dtype] if is_precise(base) else LOW_PRECISION_TOLERANCE


def is_precise(base: PreTrainedModel) -> bool:
    """Whether rounding errors are small beside what an adapter or another token changes."""
    return base.dtype in TOLERANCE and not rounds_inputs(base)


def agree(longer_TV: Tensor, shorter_TV: Tensor, atol: Tensor) -> bool:
    """Whether the logits differ by at most `atol` at the positions of the shorter row; NaN is not compared.

    Args:
        longer_TV: Logits of a row.
        shorter_TV: Logits of its first tokens, run as a row of their own.
        atol: In logits.
    """
    longer_TV = longer_TV[..., : shorter_TV.shape[-2], :]
    return bool(torch.nan_to_num(longer_TV - shorter_TV).abs().max() <= torch.nan_to_num(atol))


def logits_of(base: PreTrainedModel, tokens_BT: Tensor) -> Tensor:
    """The model's logits_BTV, in float32 at least.

    Raises:
        ValueError: They have another shape, or are NaN.
    """
    logits_BTV = base(input_ids=tokens_BT, use_cache=False).logits
    if logits_BTV.shape[:2] != tokens_BT.shape:
        raise ValueError(f"logits of shape {tuple(logits_BTV.shape)} for tokens of {tuple(tokens_BT.shape)}")
    if logits_BTV.isnan().any():
        raise ValueError("its logits are no numbers: NaN")
    return logits_BTV.to(torch.promote_types(logits_BTV.dtype, torch.float32))


def vocabulary_size(base: PreTrainedModel) -> int:
    """The number of tokens that have an embedding."""
    return int(base.get_input_embeddings().num_embeddings)  # type: ignore[arg-type]


def made_up_tokens(base: PreTrainedModel, rows: int, length: int) -> Tensor:
    """tokens_BT spread over the vocabulary, without the special tokens that the configuration names.

    Args:
        base: The model that is to take them.
        rows: B.
        length: T.
    """
    settings = base.config.to_dict().items()
    special = {value for key, value in settings if key.endswith("token_id") and isinstance(value, int)}
    plain = torch.tensor([token for token in range(vocabulary_size(base)) if token not in special] or [0])
    step = max(1, len(plain) // (rows * length))
    return plain[torch.arange(rows * length) * step % len(plain)].view(rows, length).to(base.device)


@contextmanager
def widened(base: PreTrainedModel) -> Iterator[bool]:
    """Within, the weights of a small base are in float32 at least. Yields whether that changes their precision.

    A base that is sharded over processes keeps its precision: FSDP holds its weights elsewhere.
    """
    weights = [*base.parameters(), *base.buffers()]
    narrow = [weight for weight in weights if weight.dtype in (torch.bfloat16, torch.float16)]
    is_whole = not any(isinstance(weight, DTensor) for weight in base.parameters())
    is_plain = is_whole and not is_quantised(base) and all(weight.is_floating_point() for weight in base.parameters())
    if not narrow or not is_plain or sum(weight.nbytes for weight in narrow) > WIDENED_BYTES:
        yield False
        return
    originals = [weight.data for weight in narrow]
    try:
        for weight in narrow:
            weight.data = weight.data.float()
        yield True
    finally:
        for weight, data in zip(narrow, originals, strict=True):
            weight.data = data
