"""Times of steps that are compared with one another, and the memory that each takes."""

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

Step = Callable[[int], object]
"""One step; its argument counts the rounds."""


@dataclass(frozen=True)
class Times:
    """Seconds of one contender, one value for each round."""

    seconds: np.ndarray

    @property
    def median(self) -> float:
        """Seconds."""
        return float(np.median(self.seconds))

    @property
    def spread(self) -> float:
        """Half the distance between the quartiles, over the median."""
        low, high = np.quantile(self.seconds, [0.25, 0.75])
        return float((high - low) / 2 / self.median)

    def over(self, other: "Times") -> float:
        """The median of the rounds' ratios, which a machine that is slow for a while does not move."""
        return float(np.median(self.seconds / other.seconds))


def interleaved(steps: Sequence[Step], rounds: int, warmup: int = 2) -> list[Times]:
    """Times of each of `steps`, taken in turn: the first, the second, …, the first again."""
    seconds = np.empty((rounds, len(steps)))
    for number in range(-warmup, rounds):
        for index, step in enumerate(steps):
            _wait()
            started = time.perf_counter()
            step(number + warmup)
            _wait()
            if number >= 0:
                seconds[number, index] = time.perf_counter() - started
    return [Times(column) for column in seconds.T]


def peak_memory_gib(make_step: Callable[[], Step]) -> float | None:
    """Most GPU memory that two steps hold, model and all; None on a CPU, whose allocator does not tell."""
    if not torch.cuda.is_available():
        return None
    release()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    step = make_step()
    for number in range(2):
        step(number)
    peak = (torch.cuda.max_memory_allocated() - before) / 2**30
    del step
    release()
    return peak


def release() -> None:
    """Give back what is no longer held."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
