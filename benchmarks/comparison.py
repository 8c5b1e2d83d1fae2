"""Every method on the same text and budget, with three seeds: test perplexity beside BoRA at its best tau.

    python benchmarks/comparison.py speakers data.path=speakers.parquet model.name=opt-en-1m
    python benchmarks/comparison.py smollm2 data.path=speakers.parquet model.name=SmolLM2-135M

All fits have adapters on q and v (PEFT's default), and the same rank, learning rate, most epochs and patience. BoRA is
fitted at a grid of tau, of which each seed takes the best on validation; pFedMe takes the same tau. Fits run one after
another on one thread. A finished cell is kept in `benchmarks/results/comparison.json`, so that a second start goes on
where the first was cut off, and a cell that was cut off begins anew. Written to `benchmarks/results/comparison.md`
after each cell.
"""

import argparse
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from arguments import refusing
from comparison_tables import Cells, about_corpus, write_tables
from provenance import origin
from transformers import PreTrainedModel

from bora_sweep.config import Config, load_config, with_values
from bora_sweep.data.corpus import load_corpus
from bora_sweep.data.encode import Encoder
from bora_sweep.data.task_prompt import with_task_names
from bora_sweep.data.tokens import TokenizedCorpus, tokenize
from bora_sweep.errors import InputError
from bora_sweep.model.base import load_base, load_tokenizer
from bora_sweep.model.merge_tasks import merge
from bora_sweep.model.sites import find_sites
from bora_sweep.model.wide_rank import wide_rank
from bora_sweep.runs.results import perplexity
from bora_sweep.train.fit import fit
from bora_sweep.train.state import Fit, Start
from bora_sweep.tune.points import Point, trial_config

SEEDS = range(3)
LEARN = "prior.tau=learn"


@dataclass(frozen=True)
class Budget:
    """What all fits of a corpus have in common, and the grid of tau."""

    settings: Sequence[str]
    taus: Sequence[float]


BUDGETS = {
    "speakers": Budget(
        [
            "data.max_documents=40",
            "model.max_tokens=32",
            "lora.rank=8",
            "train.batch_size=16",
            "train.max_epochs=25",
            "train.patience=3",
        ],
        (316, 1000, 3160, 10000, 31600, 100000),
    ),
    "smollm2": Budget(
        [
            "data.max_tasks=6",
            "data.max_documents=12",
            "data.train_fraction=0.34",
            "data.validation_fraction=0.16",
            "data.test_fraction=0.5",
            "model.max_tokens=32",
            "lora.rank=8",
            "train.batch_size=2",
            "train.learning_rate=1e-3",
            "train.max_epochs=4",
            "train.patience=2",
        ],
        (1000, 10000),
    ),
}


class Work:
    """The fits of one corpus.

    Args:
        name: Of `BUDGETS`.
        settings: Where text and model are.
    """

    def __init__(self, name: str, settings: Sequence[str]) -> None:
        self.name, self.taus = name, BUDGETS[name].taus
        common = ["lora.target_modules=null", "train.device=cpu", "model.dtype=float32"]
        self.settings = [*BUDGETS[name].settings, *common, *settings]
        config = load_config(self.settings)
        tokenizer = load_tokenizer(config.model, config.data)
        self.base: PreTrainedModel = load_base(config.model, config.data)
        self.corpus = tokenize(load_corpus(config.data), tokenizer, config.model.max_tokens)
        self.wanted_rank = config.lora.rank * self.corpus.num_tasks
        rank = wide_rank(config.lora.rank, self.corpus.num_tasks, find_sites(self.base, config.lora))
        self.config = with_values(config, search={"wide_rank": rank})
        self.named = with_task_names(with_values(config, method="task_prompt"), self.corpus, Encoder(tokenizer))
        self.cells = Cells(name, about_corpus(self.corpus, self.config, self.wanted_rank), _origin(name))

    def run(self) -> None:
        """Compute what is missing, and write the tables after each cell."""
        for seed in SEEDS:
            for group in self.groups():
                if not self.cells.has(group, seed):
                    self.cells.add(group, seed, self.compute(group, seed))
                    write_tables()
        write_tables()

    def groups(self) -> list[str]:
        """The cells of a seed, in order: what is fitted together has one name."""
        learnt = ["learn"] if can_learn() else []
        fits = [f"bora {tau:g}" for tau in self.taus]
        return ["zero_shot", "shared", "independent", *fits, *learnt, "fedsa", "shared_wide", "task_prompt", "pfedme"]

    def compute(self, group: str, seed: int) -> dict[str, dict]:
        """The scores of a cell, by method."""
        tau, method = math.inf, group
        if group == "independent":
            return self.independent_and_merged(seed)
        if group == "shared":
            return self.shared_and_tuned(seed)
        if group == "learn":
            config = load_config([*self.settings, LEARN, f"train.seed={seed}"])
            return {"learn": self.scores(config, self.corpus)[0]}
        if group == "fedsa":
            tau = 0.0
        elif group == "pfedme":
            tau = self.cells.best_tau(seed)
        elif group.startswith("bora "):
            tau, method = float(group.removeprefix("bora ")), "map"
        config = trial_config(self.config, Point(0, tau, method=method), seed)
        return {group: self.scores(config, self.named if group == "task_prompt" else self.corpus)[0]}

    def independent_and_merged(self, seed: int) -> dict[str, dict]:
        """The fits of the tasks alone, and their adapters merged into one."""
        config = trial_config(self.config, Point(0, 0.0), seed)
        scores, done = self.scores(config, self.corpus)
        found = {"independent": scores}
        for method in ("average", "ties", "dare"):
            mean_P = merge(done.theta_KP, done.layout, method, seed)
            start = Start(mean_P, mean_P.expand_as(done.theta_KP), is_candidate=True)
            merged = trial_config(self.config, Point(0, math.inf, method=method), seed)
            found[method] = _with_cost_of(scores, self.scores(merged, self.corpus, start)[0])
        return found

    def shared_and_tuned(self, seed: int) -> dict[str, dict]:
        """The shared fit, and from there each task alone without a prior."""
        scores, done = self.scores(trial_config(self.config, Point(0, math.inf), seed), self.corpus)
        start = Start(done.mean_P, done.theta_KP, is_candidate=True)
        tuned = trial_config(self.config, Point(0, 0.0, method="fine_tuned"), seed)
        return {"shared": scores, "fine_tuned": _with_cost_of(scores, self.scores(tuned, self.corpus, start)[0])}

    def scores(self, config: Config, corpus: TokenizedCorpus, start: Start | None = None) -> tuple[dict, Fit]:
        """One fit: its perplexities, the nats of its test documents, and what it cost."""
        began = time.perf_counter()
        done = fit(config, corpus, self.base, start=start)
        state, nats = done.state, done.nll_nats
        tau = config.tau if state.best_tau is None else state.best_tau  # where it was learnt
        return {
            "tau": f"{float(f'{tau:.3g}'):g}" if config.learns_tau else f"{tau:g}",
            "rank": config.lora.rank,
            "validation": perplexity(float(nats["validation"].sum()), corpus.num_tokens("validation")),
            "test": perplexity(float(nats["test"].sum()), corpus.num_tokens("test")),
            "epochs": state.epoch,
            "best_epoch": state.best_epoch,
            "stopped_by": done.stopped_by,
            "train_tokens": state.train_tokens,
            "seconds": round(time.perf_counter() - began, 1),
            "test_nats": [round(value, 4) for value in nats["test"].tolist()],
        }, done


def can_learn() -> bool:
    """Whether this version learns tau within a fit."""
    try:
        load_config([LEARN])
    except InputError:
        return False
    return True


def _with_cost_of(first: dict, scores: dict) -> dict:
    """With the tokens and seconds of the fit that it was made from."""
    return {**scores, **{key: first[key] + scores[key] for key in ("train_tokens", "seconds")}}


def _origin(name: str) -> dict[str, str]:
    """Where the figures come from, whatever the folders of text and model are."""
    return origin() | {"command": f"python benchmarks/comparison.py {name} data.path=… model.name=…"}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", choices=BUDGETS)
    parser.add_argument("settings", nargs="+", metavar="key=value")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    with refusing(parser):
        Work(asked.corpus, asked.settings).run()
