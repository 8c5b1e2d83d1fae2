"""How many fits share a forward pass with profit, measured on the device, the base model and the text at hand."""

import statistics
import time

import torch
from transformers import PreTrainedModel

from bora_sweep.config import Config, with_values
from bora_sweep.data.tokens import TokenizedCorpus
from bora_sweep.train.device import make_accelerator
from bora_sweep.train.make_trainer import make_trainer
from bora_sweep.train.pack import Pack
from bora_sweep.train.step import step

GAIN = 1.1
"""How much faster each fit must get where a pack is doubled."""


def choose_pack(config: Config, corpus: TokenizedCorpus, base: PreTrainedModel, most: int) -> int:
    """Fits in a pack, at most `most`: doubled while that makes each of them faster by a tenth, and while they fit."""
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
    """Median time of a step of `size` fits; the largest batch, which decides whether they fit, goes before."""
    accelerator = make_accelerator(config)
    own = with_values(config, prior={"tau": 100.0}, method="map")
    with Pack(own, corpus, base, accelerator) as pack:
        fits = [make_trainer(own, pack) for _ in range(size)]
        batches = sorted(fits[0].batches(epoch=1), key=lambda document_B: _padded_tokens(corpus, document_B))
        seconds = []
        for number in range(repeats + 1):
            document_B = batches[-1] if number == 0 else batches[(number * len(batches)) // (repeats + 1)]
            started = time.perf_counter()
            step(pack, fits, document_B, len(batches))
            _wait(accelerator.device)
            seconds.append(time.perf_counter() - started)
        return statistics.median(seconds[1:])


def _padded_tokens(corpus: TokenizedCorpus, document_B) -> int:
    return len(document_B) * int((corpus.offsets[document_B + 1] - corpus.offsets[document_B]).max())


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
