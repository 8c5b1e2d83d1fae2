"""tau learnt within one fit (`prior.tau=learn`) against the best of a sweep of twelve, and how steady it is.

    python benchmarks/learnt_tau.py
    python benchmarks/learnt_tau.py data.path=SPEAKERS.parquet model.name=OPT-EN-1M

Without settings: the embedded corpus at five similarities, three corpora each; with the settings of a corpus and a
model: these. A sweep is a pack of twelve values of tau from 3 to 10,000 (of a given corpus from 30 to 100,000), and
tau = inf; the best is chosen on validation. A fit that learns tau is made with three seeds, at half and twice the
learning rate, and with a tau for each task, each matrix and each layer. The sweep of a given corpus is made with three
seeds too, each beside the learnt fit of its seed. Finished fits are kept in
`benchmarks/results/learnt_tau.json`, and a second run goes on. The table is in `learnt_tau.md`.
"""

import json
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from arguments import start
from provenance import RESULTS, origin, provenance

from bora_sweep.config import Config, load_config, with_values
from bora_sweep.data.corpus import load_corpus
from bora_sweep.data.tokens import TokenizedCorpus, tokenize
from bora_sweep.model.base import load_base, load_tokenizer
from bora_sweep.runs.results import perplexity
from bora_sweep.train.fit import fit_pack
from bora_sweep.train.state import Fit, FitSpec

EMBEDDED = str(Path(__file__).parents[1] / "conf" / "embedded.yaml")
SIMILARITIES, CORPORA = (0.1, 0.3, 0.5, 0.7, 0.9), (0, 1, 2)
STEADY = (0.1, 0.5, 0.9)
"""Similarities at which seeds, rates and groups are varied, on corpus 0."""
SWEEP, GIVEN_SWEEP = (
    [float(f"{tau:.3g}") for tau in np.geomspace(low, high, 12)] for low, high in ((3, 1e4), (30, 1e5))
)
VARIANTS: dict[str, dict[str, Any]] = {
    "learnt": {},
    "seed 1": {"train": {"seed": 1}},
    "seed 2": {"train": {"seed": 2}},
    "half the rate": {"rate": 0.5},
    "twice the rate": {"rate": 2.0},
    "a tau of each task": {"prior": {"groups": "task"}},
    "a tau of each matrix": {"prior": {"groups": "matrix"}},
    "a tau of each layer": {"prior": {"groups": "layer"}},
    "sweep, seed 1": {"train": {"seed": 1}},
    "sweep, seed 2": {"train": {"seed": 2}},
}
PAIRS = {"sweep": "learnt", "sweep, seed 1": "seed 1", "sweep, seed 2": "seed 2"}
"""The fit that learns tau beside each sweep, with the same seed."""
STORE = RESULTS / "learnt_tau.json"


def run(settings: Sequence[str]) -> None:
    """Make the fits that are missing, and write the table."""
    torch.set_num_threads(1)
    cells: dict[str, Any] = json.loads(STORE.read_text()) if STORE.exists() else {}
    for corpus_name, own, names, taus in corpora(settings):
        missing = [name for name in ("sweep", *names) if f"{corpus_name}: {name}" not in cells]
        if not missing:
            continue
        config = load_config([*own, "train.device=cpu"])
        corpus = tokenize(load_corpus(config.data), load_tokenizer(config.model, config.data), config.model.max_tokens)
        base = load_base(config.model, config.data)
        for name in missing:
            values = [*taus, math.inf] if name in PAIRS else ["learn"]
            specs = [FitSpec(varied(config, tau, VARIANTS.get(name, {}))) for tau in values]
            found = {}
            for place, done in fit_pack(specs, corpus, base):
                found[str(values[place])] = cell(done, corpus, specs[place].config)
            made = origin()
            made["command"] = re.sub(r"(data\.path|model\.name)=\S+", r"\1=…", made["command"])
            cells[f"{corpus_name}: {name}"] = {"fits": found, "made": made}
            print(corpus_name, name, found if name not in PAIRS else best_of(found), flush=True)
            STORE.write_text(json.dumps(cells, indent=1) + "\n", encoding="utf-8")
    commits = ", ".join(dict.fromkeys(entry["made"]["commit"] for entry in cells.values()))
    made = [provenance(list(cells.values())[-1]["made"]), f"Fits were made at commits {commits}."]
    text = "\n\n".join(["# tau learnt within one fit", *tables(cells), *made])
    (RESULTS / "learnt_tau.md").write_text(text + "\n", encoding="utf-8")
    print(text)


def corpora(settings: Sequence[str]) -> Iterator[tuple[str, list[str], list[str], list[float]]]:
    """Name, settings, the variants to fit, and the values of the sweep, of each corpus."""
    if settings:
        names = ["learnt", "seed 1", "seed 2", "half the rate", "twice the rate", "sweep, seed 1", "sweep, seed 2"]
        yield "given", ["lora.target_modules=null", *settings], names, GIVEN_SWEEP
        return
    for corpus in CORPORA:
        for similarity in SIMILARITIES:
            synthetic = [f"data.synthetic.similarity={similarity}", f"data.synthetic.seed={corpus}"]
            names = [name for name in VARIANTS if name not in PAIRS or name == "learnt"]
            names = names if corpus == 0 and similarity in STEADY else ["learnt"]
            yield f"similarity {similarity}, corpus {corpus}", [EMBEDDED, *synthetic], names, SWEEP


def varied(config: Config, tau: Any, change: dict[str, Any]) -> Config:
    """The configuration of a fit."""
    train = {**change.get("train", {}), "learning_rate": config.train.learning_rate * change.get("rate", 1.0)}
    return with_values(config, train=train, prior={"tau": tau, **change.get("prior", {})})


def cell(done: Fit, corpus: TokenizedCorpus, config: Config) -> dict[str, float]:
    """What is kept of a fit. `asked` are tokens of validation that were scored to learn it."""
    scores = {
        split: perplexity(done.nll_nats[split].sum(), corpus.num_tokens(split)) for split in ("validation", "test")
    }
    state = done.state
    counts = {"epochs": state.epoch, "tokens": state.train_tokens, "asked": state.asked_tokens}
    return {**scores, "tau": state.best_tau or config.tau, **counts}


def best_of(fits: dict[str, dict[str, float]]) -> dict[str, float]:
    """The fit of a sweep that is best on validation."""
    return min(fits.values(), key=lambda found: found["validation"])


def work(found: dict[str, float]) -> float:
    """Training tokens, and half of the tokens that were only scored: a frozen base has no gradient of its weights, so
    that a training token takes a forward pass and as much again."""
    return found["tokens"] + found["asked"] / 2


def tables(cells: dict[str, Any]) -> Iterator[str]:
    """Markdown: the learnt fit against the sweep, and its variants."""
    names = sorted({key.rpartition(": ")[0] for key in cells}, key=lambda name: (name == "given", name))
    of = {key: entry["fits"] for key, entry in cells.items()}
    complete = [name for name in names if f"{name}: sweep" in of and f"{name}: learnt" in of]
    rows, summary = [], []
    for kind in dict.fromkeys(name == "given" for name in complete):
        above, works = [], []
        for name in complete:
            for sweep_name, learnt_name in PAIRS.items():
                if (name == "given") != kind or f"{name}: {sweep_name}" not in of:
                    continue
                sweep, learnt = of[f"{name}: {sweep_name}"], of[f"{name}: {learnt_name}"]["learn"]
                best, shared = best_of(sweep), sweep["inf"]
                above.append(100 * (learnt["test"] / best["test"] - 1))
                works.append(work(learnt) / shared["tokens"])
                rows.append([
                    f"{name}{sweep_name.removeprefix('sweep')}", f"{best['tau']:,.0f}", f"{best['test']:.3f}",
                    f"{learnt['tau']:,.0f}", f"{learnt['test']:.3f}", f"{above[-1]:+.2f}",
                    f"{learnt['tokens'] / shared['tokens']:.2f}", f"{works[-1]:.2f}",
                ])  # fmt: skip
        summary.append(
            f"{'The given corpus' if kind else 'The embedded family'}: {np.mean(above):+.2f}% above the best of the "
            f"sweep on test on average, {max(above):+.2f}% at worst. Training tokens and half of the scored ones, over "
            f"those of the shared fit: {np.mean(works):.2f} on average, {max(works):.2f} at most."
        )
    header = ["corpus", "best tau of the sweep", "its test perplexity", "tau learnt", "its test perplexity",
              "above the sweep, %", "training tokens / shared fit", "with scoring"]  # fmt: skip
    yield as_markdown([header, *rows])
    yield "\n\n".join(summary)
    spread = [["corpus", "variant", "tau", "validation perplexity", "test perplexity"]]
    for name in complete:
        fits = {v: of[f"{name}: {v}"]["learn"] for v in VARIANTS if v not in PAIRS and f"{name}: {v}" in of}
        if len(fits) == 1:
            continue
        spread += [[name, v, f"{f['tau']:,.1f}", f"{f['validation']:.3f}", f"{f['test']:.3f}"] for v, f in fits.items()]
    yield as_markdown(spread)


def as_markdown(rows: list[list[str]]) -> str:
    """The rows as a Markdown table; the first one is the header."""
    return "\n".join("| " + " | ".join(row) + " |" for row in [rows[0], ["---"] * len(rows[0]), *rows[1:]])


if __name__ == "__main__":
    start(run, __doc__, metavar="SETTING")
