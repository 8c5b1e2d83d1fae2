"""A training step with up to 10,000 tasks, at the same tokens per step, where it moves the tasks of its batch alone.

    python benchmarks/banks.py

opt-en-1m's geometry with random weights, rank 8 on q and v; 64 rows of 64 tokens. Written to
`benchmarks/results/banks.md` and `.json`, on a GPU to `banks_gpu`.
"""

import numpy as np
import pandas as pd
from arguments import start
from geometry import GEOMETRIES, here, opt_en_1m
from provenance import record
from timing import Step, interleaved

from bora_sweep.config import load_config
from bora_sweep.data.tokens import TokenizedCorpus
from bora_sweep.train.device import make_accelerator
from bora_sweep.train.make_trainer import make_trainer
from bora_sweep.train.pack import Pack
from bora_sweep.train.step import step
from bora_sweep.train.trainer import Trainer

ROWS, TOKENS, BATCHES, ROUNDS = 64, 64, 8, 20
CONTENDERS = [
    (1, "present", "host", None),
    (64, "present", "host", None),
    (1_000, "present", "host", None),
    (10_000, "present", "host", None),
    (10_000, "present", "disk", None),
    (64, "present", "host", 16),
    (10_000, "present", "host", 16),
    (64, "all", "device", None),
    (1_000, "all", "device", None),
]
"""Tasks, `train.update`, `train.bank` and `train.tasks_per_batch`."""


def make_corpus(num_tasks: int) -> TokenizedCorpus:
    """Random documents of one length: enough for `BATCHES` batches, and four of each task at least."""
    count, rng = max(4 * num_tasks, BATCHES * ROWS), np.random.default_rng(0)
    tokens = rng.integers(4, 4096, (count, TOKENS)).astype(np.int32)
    scored = np.ones((count, TOKENS), dtype=bool)
    scored[:, 0] = False
    documents = pd.DataFrame({
        "task": np.arange(count) % num_tasks,
        "split": "train",
        "document_id": np.arange(count).astype(str),
        "floor_nll_nats": np.nan,
        "num_tokens": TOKENS - 1,
        "was_cut": False,
    })  # fmt: skip
    names = tuple(f"task {number}" for number in range(num_tasks))
    offsets = np.arange(count + 1) * TOKENS
    return TokenizedCorpus("random", names, documents, tokens.ravel(), scored.ravel(), offsets)


def make_step(num_tasks: int, update: str, bank: str, few: int | None) -> tuple[Step, Trainer]:
    """A step over a few batches in turn, each announced to the one before it, and the fit."""
    device, dtype = here()
    config = load_config(
        [
            "lora.rank=8", "lora.target_modules=[q_proj,v_proj]", f"train.batch_size={ROWS}", f"train.update={update}",
            f"train.bank={bank}", f"train.tasks_per_batch={few or 'null'}",
            f"train.device={'cpu' if device.type == 'cpu' else 'auto'}",
        ]
    )  # fmt: skip
    pack = Pack(config, make_corpus(num_tasks), GEOMETRIES["tiny"].base(device, dtype), make_accelerator(config))
    trainer = make_trainer(config, pack)
    batches = trainer.batches(epoch=1)[:BATCHES]
    trainer.begin_epoch(batches)

    def one(number: int) -> object:
        batch, following = (batches[place % len(batches)] for place in (number, number + 1))
        return step(pack, [trainer], batch, len(batches), following)

    return one, trainer


def device_bytes(trainer: Trainer) -> int:
    """Bytes of Theta, the tasks' rows and their moments on the device, and of the rows that are on their way."""
    tensors = [bank for state in trainer.optimizer.state.values() for bank in state.values()]
    tensors += trainer.hierarchy.parameters()
    if trainer.bank is not None:
        tensors += [*trainer.bank.on_device(), trainer.hierarchy.row_K]
    return sum({tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}.values())


def run() -> None:
    """The table."""
    device, dtype = here()
    made = [make_step(*contender) for contender in CONTENDERS]
    times = interleaved([one for one, _ in made], ROUNDS)
    rows = [
        {
            "tasks": num_tasks,
            "update": update,
            "bank": bank,
            "tasks per batch": "any" if few is None else few,
            "ms": 1e3 * taken.median,
            "± %": 100 * taken.spread,
            "time over one task's": taken.over(times[0]),
            "MB of tasks on the device": device_bytes(trainer) / 1e6,
        }
        for (num_tasks, update, bank, few), taken, (_, trainer) in zip(CONTENDERS, times, made, strict=True)
    ]
    notes = [
        f"{ROWS} rows of {TOKENS} tokens, {opt_en_1m.__name__}, rank 8 on q and v, {dtype}; medians of {ROUNDS} steps, "
        "± half the distance between the quartiles. The last column is counted between two steps: Theta, the rows that "
        "are held and those that are fetched, and their moments."
    ]
    name = "banks_gpu" if device.type == "cuda" else "banks"
    record(name, "A training step that moves the tasks of its batch alone", "tiny", rows, notes)


if __name__ == "__main__":
    start(run, __doc__)
