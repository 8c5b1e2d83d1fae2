"""What each deviation of the paper's published code does to the numbers: one at a time, from ours and back to ours.

    python benchmarks/ablation.py data.path=… model.name=…

Each row is a whole curve over tau: the end of one model for each task, the best tau, and one model for all. Rows that
begin at ours change one matter to how the published code has it; rows that begin at the published code change one back.
`test` is always the test perplexity of the fit, without padding; `reported` is what the protocol would print. Fits are
kept in `runs/ablation.json`, so that a second start goes on where the first was cut off.
"""

import json
import math
from pathlib import Path
from typing import Any

import torch
from arguments import start
from provenance import record

from bora_sweep.config import Config, load_config
from bora_sweep.data.corpus import load_corpus
from bora_sweep.data.tokens import TokenizedCorpus, tokenize_for
from bora_sweep.model.base import load_base, load_tokenizer
from bora_sweep.runs.results import perplexity
from bora_sweep.train.fit import fit

COMMON = [
    "data.max_tasks=5",
    "data.max_documents=40",
    "lora.rank=8",
    "lora.alpha=8",
    "lora.target_modules=null",
    "model.max_tokens=48",
    "train.batch_size=16",
    "train.max_epochs=25",
    "train.patience=3",
    "train.device=cpu",
]
"""Cut to what a core fits in minutes, for both protocols alike."""
RATE = ["train.learning_rate=1e-2"]
TIED = ["train.learning_rate=3e-3", "train.lr_per_tau=3e-4"]
"""Thirty times the published rates, for so much smaller a model: 3e-3 at tau = 0, as at tau = 10."""
TIED_SMALL = ["train.learning_rate=3e-3", "train.lr_per_tau=3e-3"]
"""The same rates over `SMALL`."""
CENTERED = ["prior.parametrization=centered"]
DEVIATIONS = {
    "penalty: norms of tensors": (["prior.penalty=tensor_norm"], ["prior.penalty=squared"]),
    "likelihood: means times documents": (["train.likelihood=documents"], ["train.likelihood=tokens"]),
    "padding scored": (["train.padding=scored"], ["train.padding=ignored"]),
    "reported: best epochs on validation": (["train.reported=best_epochs"], ["train.reported=test"]),
    "centered, rate tied to tau": ([*CENTERED, *TIED], [*RATE, "train.lr_per_tau=null"]),
    "centered, one rate": (CENTERED, ["prior.parametrization=noncentered", *RATE, "train.lr_per_tau=null"]),
    "one fit at tau = 0": (["train.independent=joint"], ["train.independent=separate"]),
    "split 50/25/25 by sample": (
        ["data.split=sample", "data.validation_fraction=0.25", "data.test_fraction=0.25", "data.seed=42"],
        ["data.split=by_text", "data.validation_fraction=0.17", "data.test_fraction=0.33", "data.seed=0"],
    ),
    "prompt": (
        ["data.prompt= [task] {task}", "data.template= [text] {text}", "model.max_text_tokens=38"],
        ["data.prompt=null", "data.template={text}", "model.max_text_tokens=null"],
    ),
    "noise at the start, fixed batches, no clipping": (
        ["train.initial_noise=0.001", "train.batches=fixed", "train.max_grad_norm=null"],
        ["train.initial_noise=0", "train.batches=by_length", "train.max_grad_norm=1.0"],
    ),
}
"""How the published code has it, and how ours has it."""
BACK = ("penalty: norms of tensors", "centered, rate tied to tau")
OURS, PUBLISHED = "ours", "published code"
LARGE, SMALL = (10.0, 100.0, 1e3), (1.0, 10.0, 100.0)
"""Between the ends: tau over sums of tokens and squares; tau over documents or norms, which are smaller."""
KEPT = Path("runs/ablation.json")


def variants() -> dict[str, list[str]]:
    """The settings of each row."""
    ours, published = [*COMMON, *RATE], ["protocol=published_code", *COMMON, *TIED_SMALL, "model.max_text_tokens=38"]
    there = {f"{OURS}, but {name}": [*ours, *changed] for name, (changed, _) in DEVIATIONS.items()}
    back = {f"{PUBLISHED}, but not {name}": [*published, *DEVIATIONS[name][1]] for name in BACK}
    return {OURS: ours, PUBLISHED: published, **there, **back}


def taus(settings: list[str]) -> list[float]:
    """The values that a row is fitted at."""
    config = load_config(settings)
    small = config.prior.penalty == "tensor_norm" or config.train.likelihood == "documents"
    return [0.0, *(SMALL if small else LARGE), math.inf]


class Fits:
    """Fits at one setting each, kept; corpora and the base are made once."""

    def __init__(self, own: list[str]) -> None:
        KEPT.parent.mkdir(exist_ok=True)
        self.own, self.kept = own, json.loads(KEPT.read_text()) if KEPT.exists() else {}
        self.base: Any = None
        self.corpora: dict[str, TokenizedCorpus] = {}

    def numbers(self, settings: list[str], tau: float) -> dict[str, float]:
        """Of the fit: validation and test perplexity, what is reported, epochs and the best of them."""
        arguments = [*settings, *self.own, f"prior.tau={tau}"]
        name = " ".join(arguments)
        if name not in self.kept:
            self.kept[name] = self._fit(load_config(arguments))
            KEPT.write_text(json.dumps(self.kept, indent=1))
        return self.kept[name]

    def _fit(self, config: Config) -> dict[str, float]:
        which = repr((config.data, config.model))
        if which not in self.corpora:
            tokenizer = load_tokenizer(config.model, config.data)
            self.corpora[which] = tokenize_for(config, load_corpus(config.data), tokenizer)
        corpus = self.corpora[which]
        self.base = self.base or load_base(config.model, config.data)
        done = fit(config, corpus, self.base)
        found = {s: perplexity(float(nats.sum()), corpus.num_tokens(s)) for s, nats in done.nll_nats.items()}
        reported = found["test"] if done.reported is None else done.reported.perplexity
        return {**found, "reported": reported, "epochs": done.state.epoch, "best_epoch": done.state.best_epoch}


def row(fits: Fits, name: str, settings: list[str]) -> dict[str, Any]:
    """A line of the table. What a protocol reports is what it chooses tau by; ours chooses on validation."""
    of_tau = {tau: fits.numbers(settings, tau) for tau in taus(settings)}
    best_epochs = load_config(settings).train.reported == "best_epochs"
    choice = "reported" if best_epochs else "validation"
    best = min((tau for tau in of_tau if 0 < tau < math.inf), key=lambda tau: of_tau[tau][choice])
    ends = of_tau[0.0], of_tau[math.inf]
    found = {"": name, "best tau": f"{best:g}"}
    for kind in ("test", "reported"):
        value = of_tau[best][kind]
        found |= {f"{kind}, 0": ends[0][kind], f"{kind}, best": value, f"{kind}, inf": ends[1][kind]}
        gains = [f"{100 * (1 - value / end[kind]):.1f} / " for end in ends]
        found[f"{kind}: % below 0 / inf"] = "".join(gains).rstrip(" /")
    found["epochs at 0, best, inf"] = ", ".join(f"{of_tau[tau]['epochs']:.0f}" for tau in (0.0, best, math.inf))
    print(json.dumps(found), flush=True)
    return found


def main(own: list[str]) -> None:
    """Every fit that is not kept yet, then the tables."""
    torch.set_num_threads(1)
    fits = Fits(own)
    rows = [row(fits, name, settings) for name, settings in variants().items()]
    blank = {f"{tau:g}": "" for tau in (0.0, *sorted({*SMALL, *LARGE}), math.inf)}
    curves = [
        {"": name, **blank, **{f"{tau:g}": _cell(fits.numbers(settings, tau)) for tau in taus(settings)}}
        for name, settings in variants().items()
    ]
    record("ablation", "Protocols, one deviation at a time", "Ends, best tau and what is reported", rows)
    record("ablation", "Protocols, one deviation at a time", "Over tau: test, reported, epochs (best)", curves)


def _cell(of: dict[str, float]) -> str:
    return f"{of['test']:.1f}, {of['reported']:.1f}, {of['epochs']:.0f} ({of['best_epoch']:.0f})"


if __name__ == "__main__":
    start(main, __doc__, "key=value")
