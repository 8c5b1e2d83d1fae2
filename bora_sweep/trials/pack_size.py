"""How many fits should share a forward pass, measured on the device with the base model and the text."""

import statistics
import time

import torch
from transformers import PreTrainedModel

from bora_sweep.config import Config, with_values
from bora_sweep.data.tokens import TokenizedCorpus
from bora_sweep.train.device import make_accelerator, wait_for
from bora_sweep.train.make_trainer import make_trainer
from bora_sweep.train.pack import Pack
from bora_sweep.train.step import step
from bora_sweep.trials.pass_cost import RATE

GAIN = 1.1
"""The speed-up of each fit that doubling a pack must give."""


def choose_pack(config: Config, corpus: TokenizedCorpus, base: PreTrainedModel, most: int) -> int:
    """The number of fits of a pack: doubled while each fit gets faster by a tenth and memory holds them.

    Args:
        config: Of the fits, but for tau.
        corpus: The tokenised text.
        base: The base model.
        most: The largest number.
    """
    size, seconds = 1, step_seconds(config, corpus, base, 1)
    while 2 * size <= most:
        try:
            doubled = step_seconds(config, corpus, base, 2 * size)
        except torch.OutOfMemoryError:
            break
        if seconds / size < GAIN * doubled / (2 * size):
            break
        size, seconds = 2 * size, doubled
    return size


def step_seconds(config: Config, corpus: TokenizedCorpus, base: PreTrainedModel, size: int, repeats: int = 5) -> float:
    """The median time of a step of `size` fits, after one of the largest batch, which needs the most memory.

    Args:
        config: Of the fits, but for tau.
        corpus: The tokenised text.
        base: The base model.
        size: Fits of the pack.
        repeats: Steps that are timed.

    Raises:
        torch.OutOfMemoryError: Memory does not hold a single document of each fit.
    """
    accelerator = make_accelerator(config)
    own = with_values(config, prior={"tau": 100.0}, method="map", train={"learning_rate": RATE})
    with Pack(own, corpus, base, accelerator) as pack:
        fits = [make_trainer(own, pack) for _ in range(size)]
        batches = sorted(fits[0].batches(epoch=1), key=lambda sequence_B: _padded_tokens(corpus, sequence_B))
        for fit in fits:
            fit.begin_epoch(batches)
        seconds = []
        for number in range(repeats + 1):
            sequence_B = batches[-1] if number == 0 else batches[(number * len(batches)) // (repeats + 1)]
            started = time.perf_counter()
            step(pack, fits, sequence_B, len(batches))
            wait_for(accelerator.device)
            seconds.append(time.perf_counter() - started)
        return statistics.median(seconds[1:])


def _padded_tokens(corpus: TokenizedCorpus, sequence_B) -> int:
    return len(sequence_B) * int((corpus.offsets[sequence_B + 1] - corpus.offsets[sequence_B]).max())
