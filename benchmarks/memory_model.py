"""Peak memory of a training step in bytes, calculated from the sizes of model, adapters and batch.

Shapes: D tasks, P parameters of one adapter, B rows, T tokens, M = B T positions, L layers, H the width of the model, F
that of its feed-forward part, V vocabulary, C positions of a chunk of the loss.
"""

from bisect import bisect_right
from dataclasses import dataclass

from transformers import PreTrainedModel

from bora_sweep.errors import InputError
from bora_sweep.model.layout import Layout
from bora_sweep.model.linear_cross_entropy import CHUNK_ELSEWHERE
from bora_sweep.train.optim import BLOCK_ELSEWHERE

FLOAT_BYTES = 4
"""A number in the banks, in their gradients and in Adam's moments is float32."""
STEP_COPIES = 3
"""Temporary copies of a block of the bank within a step of `bora_sweep.train.optim.ProximalAdam`."""


@dataclass(frozen=True, kw_only=True)
class StepMemory:
    """Bytes on the device during a step for 0 < tau < inf; not the best epoch's copy, which is on the host."""

    base: int
    """The frozen weights."""
    banks: int
    """Theta and the D deviations, 4 bytes a parameter, and two Adam moments of each, 8 bytes."""
    forward: int
    """While the last chunk of the loss is computed: rows of adapters, saved activations, logits."""
    backward: int
    """While the gradient passes the last layer's feed-forward part: rows, saved activations, that part's gradients."""
    gather: int
    """While rows are gathered from the bank, or their gradients are added into the bank's gradient."""
    update: int
    """In the optimiser's step: the bank's gradient and temporary copies."""

    @property
    def peak(self) -> int:
        """The permanent parts plus the largest temporary one."""
        return self.base + self.banks + max(self.forward, self.backward, self.gather, self.update)


def step_memory(
    base: PreTrainedModel,
    layout: Layout,
    *,
    num_tasks: int,
    rows: int,
    tokens: int,
    passes: int = 1,
    chunk: int = CHUNK_ELSEWHERE,
    block: int = BLOCK_ELSEWHERE,
) -> StepMemory:
    """Peak memory of the forward and backward passes over B rows of T tokens each, and of the step after them.

    Args:
        base: The base model in the dtype that it is used in; its weights may be absent (`empty_base`).
        layout: The adapters, of a low-rank variant.
        num_tasks: D; for several packed fits, the sum over fits.
        rows: B of one forward pass.
        tokens: T.
        passes: Forward passes per step. With more than one, the bank's gradient accumulates while they run.
        chunk: C.
        block: Numbers of the bank that the optimiser updates at a time.

    Returns:
        Bytes.

    Raises:
        InputError: The model is neither an OPT nor Llama-like.
    """
    bank, adapters = num_tasks * layout.num_parameters, rows * layout.num_parameters
    theta, size, positions = layout.num_parameters, base.dtype.itemsize, rows * tokens
    adapters_in_use = adapters * (FLOAT_BYTES if size >= FLOAT_BYTES else FLOAT_BYTES + size)
    saved, feed_forward = _bytes_per_position(base, layout)
    width: int = base.get_input_embeddings().embedding_dim  # type: ignore[assignment]
    vocabulary: int = base.get_input_embeddings().num_embeddings  # type: ignore[assignment]
    gradient = FLOAT_BYTES * (bank + theta)
    accumulated = gradient if passes > 1 else 0
    bytes_per_logit = FLOAT_BYTES if size >= FLOAT_BYTES else FLOAT_BYTES + size  # the copies of `LinearCrossEntropy`
    logits = vocabulary * bytes_per_logit * min(chunk, positions)
    return StepMemory(
        base=sum(weight.numel() for weight in base.parameters()) * size,
        banks=3 * FLOAT_BYTES * (bank + theta),
        forward=accumulated + adapters_in_use + positions * (saved + 2 * size * width) + logits,
        backward=accumulated + adapters * size + positions * (saved + feed_forward),
        gather=accumulated + FLOAT_BYTES * adapters + max(size * adapters, gradient),
        update=gradient + FLOAT_BYTES * STEP_COPIES * max(theta, min(bank, block)),
    )


def tasks_that_fit(
    memory: int, base: PreTrainedModel, layout: Layout, *, rows: int, tokens: int, passes: int = 1
) -> int:
    """The largest D whose step needs at most `memory` bytes; other arguments and errors as in `step_memory`."""

    def peak(num_tasks: int) -> int:
        return step_memory(base, layout, num_tasks=num_tasks, rows=rows, tokens=tokens, passes=passes).peak

    return bisect_right(range(1, memory), memory, key=peak)


def _bytes_per_position(base: PreTrainedModel, layout: Layout) -> tuple[int, int]:
    """Bytes that autograd saves for each position, and bytes of the gradients within one feed-forward part.

    A frozen matrix saves nothing, because its gradient is not needed. Each layer saves the inputs of both norms;
    queries, keys, values and attention's output, with one logarithm per head; and the feed-forward part's activation,
    with a gate its factors too. The adapters save A x, and x if nothing else saves it.
    """
    config = base.config
    gated = hasattr(config, "rms_norm_eps")
    if not gated and config.model_type != "opt":
        raise InputError(f"{config.model_type}: the memory of a step is known for OPT and Llama-like models only")
    size, width, heads = base.dtype.itemsize, config.hidden_size, config.num_attention_heads
    head_width = getattr(config, "head_dim", None) or width // heads
    of_keys = (getattr(config, "num_key_value_heads", None) or heads) * head_width
    inner = config.intermediate_size if gated else config.ffn_dim
    norm = width * (FLOAT_BYTES if gated else size)  # Llama's works in float32
    attention = 2 * size * (heads * head_width + of_keys) + FLOAT_BYTES * heads
    layer = 2 * norm + attention + (3 if gated else 1) * size * inner
    products = sum(part.shape[0] for part in layout.parts if part.kind == "A")
    inputs = {(site.name.rpartition(".")[0], site.in_features) for site in layout.sites}
    others = sum(wide for _, wide in inputs if gated or wide != inner)  # without a gate the activation saves it
    return config.num_hidden_layers * layer + size * (products + others), size * (width + (3 if gated else 2) * inner)
