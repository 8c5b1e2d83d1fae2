"""Model FLOP utilisation of a training step on a GPU, eager and compiled, against the matrix rate of the same run.

    python benchmarks/mfu.py [opt-350m] [llama-1b]

A token costs 4 N operations under a frozen base of N weights in its matrices (2 N forward, 2 N for the gradient of
activations; that of the weights is not there), 6 P in adapters, which are trained, and in each layer 6 T H for causal
attention, half of what full attention would take. The gradient towards the embeddings, which nobody needs, is counted:
below 1% of the whole. Written to `benchmarks/results/mfu_gpu.md` and `.json`; without a GPU it says so and
ends.
"""

import torch
from arguments import start
from geometry import GEOMETRIES, Geometry, here
from loops import Ours
from provenance import record
from timing import interleaved, release
from torch import nn

SIZES = ["opt-350m", "llama-1b"]
SIDE, ROUNDS = 8192, 15


def flops_per_token(loop: Ours, tokens: int) -> float:
    """Operations of a step for each token of rows of `tokens`; see the module."""
    base = loop.adapted.base
    weights = sum(module.weight.numel() for module in base.modules() if isinstance(module, nn.Linear))
    attention = 6 * base.config.num_hidden_layers * base.config.hidden_size * tokens
    return 4 * weights + 6 * loop.layout.num_parameters + attention


def matmul_flops_per_second(device: torch.device, dtype: torch.dtype) -> float:
    """Of a product of two large square matrices of random numbers."""
    a, b = (torch.randn(SIDE, SIDE, device=device, dtype=dtype) for _ in range(2))
    (taken,) = interleaved([lambda _: a @ b], 20, warmup=5)
    return 2 * SIDE**3 / taken.median


def utilisation(geometry: Geometry, peak: float) -> list[dict]:
    """A row for the eager step and one for the compiled, timed in turn."""
    device, dtype = here()
    loops = {"eager": Ours(geometry, device, dtype), "torch.compile": Ours(geometry, device, dtype, compiled=True)}
    batches = geometry.batches(4, device)
    flops = flops_per_token(loops["eager"], geometry.tokens) * geometry.rows * geometry.tokens
    times = interleaved([lambda n, loop=loop: loop.step(batches[n % 4]) for loop in loops.values()], ROUNDS, warmup=4)
    return [
        {
            "step": name,
            "tokens per second": geometry.rows * geometry.tokens / taken.median,
            "ms": 1e3 * taken.median,
            "± %": 100 * taken.spread,
            "TFLOP/s": flops / taken.median / 1e12,
            "MFU %": 100 * flops / taken.median / peak,
        }
        for name, taken in zip(loops, times, strict=True)
    ]


def run(sizes: list[str]) -> None:
    """A table for each size; none: for all."""
    device, dtype = here()
    if device.type != "cuda":
        print("benchmarks/mfu.py measures a GPU and there is none here: nothing was measured")
        return
    for size in sizes or SIZES:
        peak = matmul_flops_per_second(device, dtype)
        geometry = GEOMETRIES[size]
        rows = utilisation(geometry, peak)
        release()
        about = f"{geometry.rows} rows of {geometry.tokens} tokens, {geometry.num_tasks} tasks, rank {geometry.rank}"
        rate = f"A product of matrices of {SIDE:,} by {SIDE:,}: {peak / 1e12:,.0f} TFLOP/s."
        notes = [f"{about}, {dtype}; medians of {ROUNDS} steps. {rate}"]
        record("mfu_gpu", "Model FLOP utilisation", size, rows, notes)


if __name__ == "__main__":
    start(run, __doc__, "SIZE", choices=SIZES)
