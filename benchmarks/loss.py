"""The loss of a frozen head in chunks against the plain loss: time, and the largest tensor.

    python benchmarks/loss.py

Forward and backward over chunk sizes, in turn, vocabularies of 4,096 and 50,272; what `CHUNK` in
`bora_sweep/model/linear_cross_entropy.py` is chosen by. Written to `benchmarks/results/loss.md` and `.json`, on a GPU
to `loss_gpu`.

Shapes: M positions, H hidden, V vocabulary.
"""

from collections.abc import Callable

import torch
from arguments import start
from geometry import here
from provenance import record
from timing import interleaved
from torch import Tensor, nn
from torch.nn import functional as F

from bora_sweep.model.linear_cross_entropy import LinearCrossEntropy, workspace

CHUNKS = {"cpu": (64, 128, 256, 512, 1024, 2048), "cuda": (512, 1024, 2048, 4096, 8192)}
SIZES = {"cpu": ((4096, 128, 4096), (2048, 512, 50272)), "cuda": ((8192, 1024, 4096), (8192, 1024, 50272))}
"""(M, H, V)."""
ROUNDS = 9

Loss = Callable[[Tensor, nn.Linear, Tensor], Tensor]


def plain(hidden_MH: Tensor, head: nn.Linear, target_M: Tensor) -> Tensor:
    """All logits at once, in float32 for the sum."""
    return F.cross_entropy(head(hidden_MH).float(), target_M, reduction="sum")


def chunked(size: int) -> Loss:
    """The loss of our step with chunks of `size` positions."""

    def loss(hidden_MH: Tensor, head: nn.Linear, target_M: Tensor) -> Tensor:
        space_CV = workspace(size, len(head.weight), torch.float32, hidden_MH.device)
        return LinearCrossEntropy.apply(hidden_MH, head.weight, head.bias, target_M, space_CV).sum()

    return loss


def run() -> None:
    """A table for each vocabulary."""
    device, dtype = here()
    for positions, hidden, vocabulary in SIZES[device.type]:
        head = nn.Linear(hidden, vocabulary, bias=False, device=device, dtype=dtype).requires_grad_(False)
        hidden_MH = torch.randn(positions, hidden, device=device, dtype=dtype, requires_grad=True)
        target_M = torch.randint(vocabulary, (positions,), device=device)
        losses = {"plain": (positions, plain), **{f"{c:,}": (c, chunked(c)) for c in CHUNKS[device.type]}}

        def step(loss: Loss, x=hidden_MH, head=head, target_M=target_M) -> Callable[[int], object]:
            return lambda _: torch.autograd.grad(loss(x, head, target_M), x)

        times = interleaved([step(loss) for _, loss in losses.values()], ROUNDS)
        rows = [
            {
                "chunk": name,
                "ms": 1e3 * taken.median,
                "± %": 100 * taken.spread,
                "time over plain": taken.over(times[0]),
                "largest tensor, MiB": min(size, positions) * vocabulary * 4 / 2**20,
            }
            for (name, (size, _)), taken in zip(losses.items(), times, strict=True)
        ]
        about = f"{positions:,} positions of {hidden} numbers, {dtype}; forward and backward; medians of {ROUNDS}"
        notes = [f"{about}, ± half the distance between the quartiles."]
        name = "loss_gpu" if device.type == "cuda" else "loss"
        record(name, "The loss of a linear head in chunks", f"vocabulary of {vocabulary:,}", rows, notes)


if __name__ == "__main__":
    start(run, __doc__)
