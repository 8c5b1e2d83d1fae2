"""Tokens per second of one training step: ours, the paper's published algorithm and code, one PEFT adapter.

    python benchmarks/step.py [tiny] [crowd] [opt-350m] [llama-1b]

All in turn on the same batches, models with random weights, float32 on a CPU, bfloat16 on a GPU. Beside it, in
float64 (float32 for the large models), how far ours and the published algorithm are apart in loss and gradients.
Written to `benchmarks/results/step.md` and `.json`, on a GPU to `step_gpu`. Where PEFT is not installed ours alone is
timed.
"""

from dataclasses import replace

import torch
from arguments import start
from geometry import GEOMETRIES, Geometry, here
from loops import HAS_PEFT, OneAdapter, Ours, Published, PublishedStep
from provenance import record
from timing import Step, interleaved, peak_memory_gib, release

ROUNDS = {"opt-350m": 5, "llama-1b": 10}
ROUNDS_OF_SMALL = 20
CONTENDERS = {
    "ours": Ours,
    "published algorithm": Published,
    "published code, the norms of its log too": PublishedStep,
    "one PEFT adapter": OneAdapter,
}
NOT_INSTALLED = "PEFT is not installed here: the published algorithm and the single adapter were skipped."


def agreement(geometry: Geometry, device: torch.device, dtype: torch.dtype) -> tuple[float, float]:
    """Relative differences between ours and the published algorithm at the same adapters: of the loss, of gradients."""
    ours, published = Ours(geometry, device, dtype), Published(geometry, device, dtype)
    (batch,) = geometry.batches(1, device)
    generator = torch.Generator(device).manual_seed(1)
    with torch.no_grad():
        for bank in ours.hierarchy.parameters():
            bank += 0.02 * torch.randn(bank.shape, generator=generator, device=device, dtype=bank.dtype)
    published.load_(ours.hierarchy.mean_P.detach(), ours.hierarchy.theta_KP(), ours.layout)
    nats, *gradients = ours.gradients(batch)
    expected_nats, *expected = published.gradients(batch, ours.layout)
    apart = max(((a - b).norm() / b.norm()).item() for a, b in zip(gradients, expected, strict=True))
    return abs(nats - expected_nats) / expected_nats, apart


def make_step(name: str, geometry: Geometry) -> Step:
    """A contender's step over a few batches in turn."""
    device, dtype = here()
    loop, batches = CONTENDERS[name](geometry, device, dtype), geometry.batches(4, device)
    return lambda number: loop.step(batches[number % len(batches)])


def compare(size: str) -> tuple[list[dict], list[str]]:
    """The rows of one size's table, and what is to be said below it."""
    geometry, (device, _) = GEOMETRIES[size], here()
    if size == "opt-350m" and device.type == "cpu":
        geometry = replace(geometry, rows=8, tokens=64)
    names = list(CONTENDERS) if HAS_PEFT else ["ours"]
    memory = {name: peak_memory_gib(lambda name=name: make_step(name, geometry)) for name in names}
    rounds = ROUNDS.get(size, ROUNDS_OF_SMALL)
    times = interleaved([make_step(name, geometry) for name in names], rounds)
    rows = [
        {
            "step": name,
            "tokens per second": geometry.rows * geometry.tokens / taken.median,
            "ms": 1e3 * taken.median,
            "± %": 100 * taken.spread,
            "time over ours": taken.over(times[0]),
            **({} if memory[name] is None else {"peak GiB": memory[name]}),
        }
        for name, taken in zip(names, times, strict=True)
    ]
    release()
    about = f"{geometry.num_tasks} tasks, {geometry.rows} rows of {geometry.tokens} tokens, rank {geometry.rank}"
    notes = [
        f"{about}; medians of {rounds} steps, ± half the distance between the quartiles.",
        agreement_in_words(size),
    ]
    return rows, notes


def agreement_in_words(size: str) -> str:
    """How far ours and the published algorithm are apart, on a small batch where the model is large."""
    if not HAS_PEFT:
        return NOT_INSTALLED
    small = size in ("tiny", "crowd")
    dtype = torch.float64 if small else torch.float32
    geometry = GEOMETRIES[size] if small else replace(GEOMETRIES[size], num_tasks=3, rows=4, tokens=32)
    nats, gradients = agreement(geometry, here()[0], dtype)
    release()
    name = str(dtype).removeprefix("torch.")
    return f"Ours and the published algorithm in {name}: loss {nats:.1e} apart, gradients {gradients:.1e} (relative)."


def run(sizes: list[str]) -> None:
    """A table for each size; none: for all."""
    device, dtype = here()
    name = "step_gpu" if device.type == "cuda" else "step"
    for size in sizes or GEOMETRIES:
        if size == "llama-1b" and device.type == "cpu":
            print("llama-1b: needs a GPU, skipped")
            continue
        rows, notes = compare(size)
        record(name, f"One training step, {str(dtype).removeprefix('torch.')}", size, rows, notes)


if __name__ == "__main__":
    start(run, __doc__, "SIZE", choices=GEOMETRIES)
