"""The computations of new_tasks.py: fits of a run's tasks, and curves of held-out ones. Each is kept in a file."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from task_curves import Rows, curve, part_of
from transformers import PreTrainedModel

from bora_sweep.config import Config, load_config
from bora_sweep.data.corpus import load_corpus
from bora_sweep.data.tokens import TokenizedCorpus, tokenize
from bora_sweep.model.base import load_base, load_tokenizer
from bora_sweep.train.fit import fit

EMBEDDED = [str(Path(__file__).parents[1] / "conf" / "embedded.yaml")]
EMBEDDED += ["data.synthetic.num_tasks=18", "data.synthetic.max_documents=160", "prior.tau=316"]
FILE = [
    "data.max_tasks=14",
    "data.seed=2",  # as in coordinates.py
    "model.max_tokens=32",
    "lora.rank=8",
    "lora.target_modules=all-linear",
    "train.batch_size=16",
    "prior.tau=3160",
]
WEAKER = 1 / 3.16
"""Another tau for the rules, over the run's: what a rule does where the prior is weaker."""
POINTS = (0, 4, 8, 12, 16, 24, 32, 48, 64)
"""Steps after which curves are scored."""
LATER = (96, 128)
"""Further ones of `add` with few documents."""
EARLY = (0, 1, 2, 4, 8, 12, 16, 24, 32)
"""Those from Theta without a prior, where a few steps are best."""
FEW = 8
FOLDS = 4
UNCLIPPED = "train.max_grad_norm=null"
KEPT = Path("runs/new_tasks")
FITS = ("run", "refit")
"""Kinds of cells that are fits of all tasks."""


@dataclass(frozen=True)
class Cell:
    """One computation; its name is that of its file."""

    kind: str
    """`run` or `refit`: a fit of all tasks. `add`, `tuned` (from Theta), `scratch`: fits of the held-out tasks alone.
    `folds`: `add` with a part of the documents left out in turn. `own`: `add` for the run's own tasks, scored on
    validation."""
    count: int = 0
    """n, the documents of each task."""
    held: bool = False
    """Whether a fifth of them, at least one, is not trained on."""
    factor: float = 1.0
    """tau over the run's."""
    num_batches: int = 1
    clipped: bool = False
    only: int | None = None
    """Of a refit: the one held-out task that is in it; None: all of them."""

    @property
    def name(self) -> str:
        """Of its file."""
        flags = f"{'-held' * self.held}{'-clipped' * self.clipped}{'' if self.only is None else f'-only{self.only}'}"
        return f"{self.kind}-{self.count}-tau{self.factor:.3f}-batches{self.num_batches}{flags}.npz"


@dataclass(frozen=True)
class Plan:
    """What is computed for a corpus."""

    counts: tuple[int, ...]
    """n, the documents of a held-out task."""
    rule_counts: tuple[int, ...]
    """Those for which rules are compared."""
    spreads: tuple[tuple[int, int, bool], ...] = ()
    """n, steps over which documents are spread, and whether gradients are clipped."""
    factors: tuple[float, ...] = (1.0, WEAKER)
    """Values of tau for the rules, over the run's."""

    def runs(self) -> list[Cell]:
        """Fits that the others start from."""
        return [Cell("run", factor=factor) for factor in self.factors]

    def others(self, num_new: int) -> list[Cell]:
        """All else, with `num_new` held-out tasks."""
        found = [Cell("refit", count) for count in self.counts]
        found += [Cell("refit", FEW, only=task) for task in range(num_new)]
        for count in self.counts:
            found += [Cell(kind, count) for kind in ("add", "tuned", "scratch")]
            found += [Cell(kind, count, held=True) for kind in ("tuned", "scratch") if count > 1]
        for factor in self.factors:
            for count in self.rule_counts:
                found += [Cell("own", count, factor=factor), Cell("add", count, factor=factor)]
                found += [Cell("folds", count, factor=factor), Cell("add", count, held=True, factor=factor)] * (
                    count > 1
                )
        found += [Cell("add", count, num_batches=b, clipped=clipped) for count, b, clipped in self.spreads]
        return sorted(set(found), key=lambda cell: (cell.kind != "refit", -cell.count))


COUNTS = (1, 2, 4, 8, 16, 32)
EMBEDDED_PLAN = Plan(
    counts=COUNTS,
    rule_counts=(1, 4, 16),
    spreads=tuple((count, batches, clipped) for count in (1, 8) for batches in (1, 4, 16) for clipped in (True, False)),
)
FILE_PLAN = Plan(counts=COUNTS, rule_counts=(1, 4))


def read(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a fit of all tasks."""
    with np.load(path, allow_pickle=False) as arrays:
        return dict(arrays)


class Work:
    """The corpus, its held-out tasks, and the computation of a cell.

    Args:
        settings: What was given on the command line.
    """

    def __init__(self, settings: Sequence[str]) -> None:
        torch.set_num_threads(1)
        common = ["train.device=cpu", "train.patience=5"]
        self.config: Config = load_config([*(FILE if settings else EMBEDDED), *common, *settings])
        self.plan, config = (FILE_PLAN if settings else EMBEDDED_PLAN), self.config
        tokenizer = load_tokenizer(config.model, config.data)
        self.corpus: TokenizedCorpus = tokenize(load_corpus(config.data), tokenizer, config.model.max_tokens)
        tasks, task_N = self.corpus.tasks, self.corpus.documents["task"].to_numpy()
        self.documents_of: dict[tuple[str, str], list[int]] = {
            (task, split): self.corpus.split(split)[task_N[self.corpus.split(split)] == k].tolist()
            for k, task in enumerate(tasks)
            for split in ("train", "validation", "test")
        }
        large = [task for task in tasks if len(self.pool(task)) >= COUNTS[-1]]
        self.new = sorted(np.random.default_rng(0).permutation(large)[: len(tasks) // 3].tolist())
        self.run = [task for task in tasks if task not in self.new]
        self.folder = KEPT / self.corpus.name

    @cached_property
    def base(self) -> PreTrainedModel:
        """The base model."""
        return load_base(self.config.model, self.config.data)

    def pool(self, task: str) -> list[int]:
        """The documents of a held-out task that it may be fitted on, in a random order."""
        documents = [*self.documents_of[task, "train"], *self.documents_of[task, "validation"]]
        return np.random.default_rng([0, self.corpus.tasks.index(task)]).permutation(documents).tolist()

    def tests(self) -> Rows:
        """The test documents of the held-out tasks."""
        return [(n, task, "test") for task in self.new for n in self.documents_of[task, "test"]]

    def rows_of_run(self, splits: Sequence[str]) -> Rows:
        """Documents of the run's tasks."""
        return [(n, task, split) for task in self.run for split in splits for n in self.documents_of[task, split]]

    def rows(self, cell: Cell) -> Rows:
        """The documents of fits of tasks alone."""
        if cell.kind == "own":
            enough = [task for task in self.run if len(self.documents_of[task, "train"]) >= cell.count]
            trained = [(n, task, "train") for task in enough for n in self.documents_of[task, "train"][: cell.count]]
            return [*trained, *((n, t, "validation") for t in enough for n in self.documents_of[t, "validation"])]
        chosen = {task: self.pool(task)[: cell.count] for task in self.new}
        if cell.kind == "folds":
            folds = range(min(FOLDS, cell.count))
            return [
                (n, f"{task} {fold}", "validation" if place % len(folds) == fold else "train")
                for task, documents in chosen.items()
                for fold in folds
                for place, n in enumerate(documents)
            ]
        held = max(1, round(cell.count / 5)) if cell.held else 0
        split_of = ["validation"] * held + ["train"] * (cell.count - held)
        trained = [(n, task, split) for task in self.new for n, split in zip(chosen[task], split_of, strict=True)]
        return [*trained, *self.tests()]

    def compute(self, cell: Cell) -> None:
        """Compute a cell and keep it."""
        path = self.folder / cell.name
        tau = self.config.tau * cell.factor
        if cell.kind in FITS:
            new = self.new if cell.only is None else [self.new[cell.only]]
            trained = [(n, task, "train") for task in new for n in self.pool(task)[: cell.count]]
            tests = [row for row in self.tests() if row[1] in new] if trained else self.rows_of_run(["test"])
            part = part_of(self.corpus, [*self.rows_of_run(["train", "validation"]), *tests, *trained])
            done = fit(load_config([f"prior.tau={tau}"], base=self.config), part, self.base)
            steps = [row["step"] for row in done.state.curve if row["epoch"] == done.state.best_epoch]
            np.savez(path, mean_P=done.mean_P.numpy(), steps=np.array(steps[:1]), test_N=done.nll_nats["test"])
            return
        is_tuned = cell.kind in ("tuned", "scratch")
        settings = ["prior.tau=0"] if is_tuned else ["method=add", f"prior.tau={tau}"]
        config = load_config([*settings, *([] if cell.clipped else [UNCLIPPED])], base=self.config)
        run = read(self.folder / Cell("run", factor=cell.factor).name)
        mean_P = None if cell.kind == "scratch" else torch.from_numpy(run["mean_P"])
        is_long = cell == Cell("add", cell.count, factor=cell.factor) and cell.count <= FEW
        points = EARLY if cell.kind == "tuned" else (*POINTS, *LATER) if is_long else POINTS
        part = part_of(self.corpus, self.rows(cell))
        curve(config, part, self.base, mean_P, points, cell.num_batches).save(path)
