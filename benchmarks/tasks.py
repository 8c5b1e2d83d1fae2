"""Time and memory of a training step as the tasks grow in number, at the same tokens per step.

    python benchmarks/tasks.py

D = 1, 4, 16, 64, 256 in turn: `tiny` of benchmarks/step.py on a CPU, `opt-350m` on a GPU. Written to
`benchmarks/results/tasks.md` and `.json`, on a GPU to `tasks_gpu`.
"""

from dataclasses import replace

from arguments import start
from geometry import GEOMETRIES, Geometry, here
from loops import Ours
from provenance import record
from timing import Step, interleaved, peak_memory_gib

NUM_TASKS = (1, 4, 16, 64, 256)
ROUNDS = 20


def make_step(geometry: Geometry) -> Step:
    """Our step over a few batches in turn."""
    device, dtype = here()
    loop, batches = Ours(geometry, device, dtype), geometry.batches(4, device)
    return lambda number: loop.step(batches[number % len(batches)])


def run() -> None:
    """The table."""
    device, dtype = here()
    size = "opt-350m" if device.type == "cuda" else "tiny"
    geometries = [replace(GEOMETRIES[size], num_tasks=number) for number in NUM_TASKS]
    memory = [peak_memory_gib(lambda geometry=geometry: make_step(geometry)) for geometry in geometries]
    times = interleaved([make_step(geometry) for geometry in geometries], ROUNDS)
    rows = [
        {
            "tasks": number,
            "ms": 1e3 * taken.median,
            "± %": 100 * taken.spread,
            "time over one task's": taken.over(times[0]),
            **({} if peak is None else {"peak GiB": peak}),
        }
        for number, taken, peak in zip(NUM_TASKS, times, memory, strict=True)
    ]
    about = f"{GEOMETRIES[size].rows} rows of {GEOMETRIES[size].tokens} tokens, rank {GEOMETRIES[size].rank}, {dtype}"
    notes = [f"{about}; medians of {ROUNDS} steps, ± half the distance between the quartiles."]
    name = "tasks_gpu" if device.type == "cuda" else "tasks"
    record(name, "A training step by the number of tasks", size, rows, notes)


if __name__ == "__main__":
    start(run, __doc__)
