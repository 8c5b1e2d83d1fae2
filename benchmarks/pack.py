"""Time and memory for each value of tau where S = 1, 2, 4, 8, 16 of them share their forward passes.

    python benchmarks/pack.py

Batches of 1,024 tokens, which are small for a GPU: `tiny` of benchmarks/step.py on a CPU, `opt-350m` on a GPU. Beside
it, in float64, how far packed fits and the same fits alone are apart. Written to `benchmarks/results/pack.md` and
`.json`, on a GPU to `pack_gpu`.
"""

import math

import numpy as np
import pandas as pd
import torch
from arguments import start
from geometry import GEOMETRIES, Geometry, here
from provenance import record
from timing import Step, interleaved, peak_memory_gib, release

from bora_sweep.config import Config, TrainConfig, with_values
from bora_sweep.data.tokens import TokenizedCorpus
from bora_sweep.train.device import make_accelerator
from bora_sweep.train.fit import fit, fit_pack
from bora_sweep.train.make_trainer import make_trainer
from bora_sweep.train.pack import Pack
from bora_sweep.train.state import FitSpec
from bora_sweep.train.step import step

SIZES = (1, 2, 4, 8, 16)
ROWS, TOKENS = 8, 128
ROUNDS = 15
TAUS = (1.0, 30.0, 1000.0, math.inf)


def random_corpus(geometry: Geometry, tokens: int, documents: int) -> TokenizedCorpus:
    """Documents of random tokens, all of one length, the tasks by turns; a quarter each to validate and to test."""
    with torch.device("meta"):
        vocabulary = geometry.build().config.vocab_size
    place = np.arange(documents)
    split = np.select([place % 4 == 2, place % 4 == 3], ["validation", "test"], "train")
    columns = {"task": place // 4 % geometry.num_tasks, "split": split, "num_tokens": tokens - 1, "was_cut": False}
    frame = pd.DataFrame(columns).assign(document_id=place.astype(str), floor_nll_nats=math.nan)
    words = np.random.default_rng(0).integers(4, vocabulary, documents * tokens, dtype=np.int32)
    tasks = tuple(f"task{k}" for k in range(geometry.num_tasks))
    scored, offsets = np.arange(len(words)) % tokens > 0, np.arange(documents + 1) * tokens
    return TokenizedCorpus("random", tasks, frame, words, scored, offsets)


def config_of(geometry: Geometry, **train) -> Config:
    """Fits of a pack, but for tau."""
    return Config(lora=geometry.lora, train=TrainConfig(**train))


def make_step(geometry: Geometry, size: int) -> Step:
    """A step of a pack of `size`."""
    device, dtype = here()
    corpus = random_corpus(geometry, TOKENS, documents=8 * ROWS * 4)
    config = config_of(geometry, batch_size=ROWS)
    accelerator, base = make_accelerator(config), geometry.base(device, dtype)
    pack = Pack(config, corpus, base, accelerator)
    fits = [make_trainer(config, pack) for _ in range(size)]
    batches = fits[0].batches(epoch=1)
    return lambda number: step(pack, fits, batches[number % len(batches)], len(batches))


def apart() -> float:
    """The largest distance between a parameter of a packed fit and of the same fit alone, in float64, on a CPU."""
    geometry = GEOMETRIES["tiny"]
    corpus = random_corpus(geometry, tokens=12, documents=96)
    base = geometry.base(torch.device("cpu"), torch.float64)
    shared = config_of(geometry, batch_size=8, max_epochs=2, device="cpu")
    configs = [with_values(shared, prior={"tau": tau}) for tau in TAUS]
    packed = dict(fit_pack([FitSpec(config) for config in configs], corpus, base))
    alone = [fit(config, corpus, base) for config in configs]
    return max((packed[i].theta_KP - solo.theta_KP).abs().max().item() for i, solo in enumerate(alone))


def run() -> None:
    """The table."""
    device, dtype = here()
    size = "opt-350m" if device.type == "cuda" else "tiny"
    geometry = GEOMETRIES[size]
    memory = [peak_memory_gib(lambda number=number: make_step(geometry, number)) for number in SIZES]
    times = interleaved([make_step(geometry, number) for number in SIZES], ROUNDS)
    release()
    rows = [
        {
            "fits in a pack": number,
            "ms a step": 1e3 * taken.median,
            "± %": 100 * taken.spread,
            "time per fit over solo": taken.over(times[0]) / number,
            **({} if peak is None else {"peak GiB per fit": peak / number}),
        }
        for number, taken, peak in zip(SIZES, times, memory, strict=True)
    ]
    notes = [
        f"{geometry.num_tasks} tasks, {ROWS} rows of {TOKENS} tokens, rank {geometry.rank}, {dtype}; medians of "
        f"{ROUNDS} steps, ± half the distance between the quartiles.",
        f"Packed fits of tiny at tau = {', '.join(f'{tau:g}' for tau in TAUS)} and the same fits alone, in float64: "
        f"parameters at most {apart():.1e} apart.",
    ]
    name = "pack_gpu" if device.type == "cuda" else "pack"
    record(name, "Fits that share their forward passes", size, rows, notes)


if __name__ == "__main__":
    start(run, __doc__)
