"""Bytes that a fit holds at the peak of a step, from the sizes of model, adapters and batch alone.

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

FLOAT = 4
"""Bytes of a number in the banks, their gradient and Adam's moments."""
STEP_COPIES = 3
"""Of a block of the bank, which a step of `bora_sweep.train.optim.ProximalAdam` makes and drops."""


@dataclass(frozen=True, kw_only=True)
class StepMemory:
    """Bytes on the device of a step for 0 < tau < inf. The best epoch's copy lies on the host and is not among them."""

    base: int
    """The frozen weights."""
    banks: int
    """Theta and the D deviations, 4 bytes a parameter, and Adam's two moments of each, 8."""
    forward: int
    """While the last chunk of the loss is computed: rows of adapters, saved activations, logits."""
    backward: int
    """While the gradient passes the last layer's feed-forward part: rows, saved activations, that part's gradients."""
    gather: int
    """As rows are gathered from the bank, or their gradients added into that of the bank."""
    update: int
    """In the optimiser's step: the bank's gradient and what the step makes."""

    @property
    def peak(self) -> int:
        """What is there all the time, and the most of what comes and goes."""
        return self.base + self.banks + max(self.forward, self.backward, self.gather, self.update)


def step_memory(
    base: PreTrainedModel,
    layout: Layout,
    num_tasks: int,
    rows: int,
    tokens: int,
    passes: int = 1,
    chunk: int = CHUNK_ELSEWHERE,
    block: int = BLOCK_ELSEWHERE,
) -> StepMemory:
    """The peak of forward and backward passes over B rows of T tokens each, and of the step after them.

    Args:
        base: The base model in the dtype that it is used in; its weights need not be there (`empty_base`).
        layout: The adapters, of a low-rank variant.
        num_tasks: D; with several fits at once, their sum.
        rows: B of a forward pass.
        tokens: T.
        passes: Of a step: more than one accumulate the bank's gradient, which is then there while they run.
        chunk: C.
        block: Numbers of the bank that a step takes at a time.

    Raises:
        InputError: The model is neither an OPT nor of Llama's kind.
    """
    bank, adapters = num_tasks * layout.num_parameters, rows * layout.num_parameters
    theta, size, positions = layout.num_parameters, base.dtype.itemsize, rows * tokens
    adapters_in_use = adapters * (FLOAT if size >= FLOAT else FLOAT + size)
    saved, feed_forward = _per_position(base, layout)
    width: int = base.get_input_embeddings().embedding_dim  # type: ignore[assignment]
    vocabulary: int = base.get_input_embeddings().num_embeddings  # type: ignore[assignment]
    gradient = FLOAT * (bank + theta)
    accumulated = gradient if passes > 1 else 0
    copies = FLOAT if size >= FLOAT else FLOAT + size  # of a logit as `LinearCrossEntropy` has it
    logits = vocabulary * copies * min(chunk, positions)
    return StepMemory(
        base=sum(weight.numel() for weight in base.parameters()) * size,
        banks=3 * FLOAT * (bank + theta),
        forward=accumulated + adapters_in_use + positions * (saved + 2 * size * width) + logits,
        backward=accumulated + adapters * size + positions * (saved + feed_forward),
        gather=accumulated + FLOAT * adapters + max(size * adapters, gradient),
        update=gradient + FLOAT * STEP_COPIES * max(theta, min(bank, block)),
    )


def tasks_that_fit(memory: int, base: PreTrainedModel, layout: Layout, rows: int, tokens: int, passes: int = 1) -> int:
    """The largest D whose step stays within `memory` bytes; arguments and errors as in `step_memory`."""

    def peak(num_tasks: int) -> int:
        return step_memory(base, layout, num_tasks, rows, tokens, passes).peak

    return bisect_right(range(1, memory), memory, key=peak)


def _per_position(base: PreTrainedModel, layout: Layout) -> tuple[int, int]:
    """Bytes that autograd saves for each position, and those of the gradients within a feed-forward part.

    A frozen matrix saves nothing: its gradient is not asked for. In each layer there remain the inputs of both norms;
    queries, keys, values and what attention makes of them, with a logarithm for each head; the feed-forward part's
    activation, with a gate its factors too; and for the adapters A x, and x where nothing else saves it.
    """
    config = base.config
    gated = hasattr(config, "rms_norm_eps")
    if not gated and config.model_type != "opt":
        raise InputError(f"{config.model_type}: the memory of a step is known for OPT and for Llama's kind of models")
    size, width, heads = base.dtype.itemsize, config.hidden_size, config.num_attention_heads
    head_width = getattr(config, "head_dim", None) or width // heads
    of_keys = (getattr(config, "num_key_value_heads", None) or heads) * head_width
    inner = config.intermediate_size if gated else config.ffn_dim
    norm = width * (FLOAT if gated else size)  # Llama's works in float32
    layer = 2 * norm + 2 * size * (heads * head_width + of_keys) + FLOAT * heads + (3 if gated else 1) * size * inner
    products = sum(part.shape[0] for part in layout.parts if part.kind == "A")
    inputs = {(site.name.rpartition(".")[0], site.in_features) for site in layout.sites}
    others = sum(wide for _, wide in inputs if gated or wide != inner)  # without a gate the activation saves it
    return config.num_hidden_layers * layer + size * (products + others), size * (width + (3 if gated else 2) * inner)
