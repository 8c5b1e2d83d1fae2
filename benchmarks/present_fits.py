"""Fits whose steps move the tasks of their batch alone, beside fits whose steps move all.

    python benchmarks/present_fits.py

The embedded family with 100 speakers of 8 documents each, 32 documents to a batch, so that a task is in about a quarter
of the batches. Written to `benchmarks/results/present_fits.md` and `.json`.
"""

from arguments import start
from provenance import record

from bora_sweep.config import Config, load_config
from bora_sweep.data.corpus import load_corpus
from bora_sweep.data.tokens import tokenize_for
from bora_sweep.model.base import load_base, load_tokenizer
from bora_sweep.runs.results import perplexity
from bora_sweep.train.fit import fit

FAMILY = [
    "conf/embedded.yaml", "data.synthetic.num_tasks=100", "data.synthetic.min_documents=8",
    "data.synthetic.max_documents=8", "train.device=cpu",
]  # fmt: skip
TAUS = (30, 100, 300)
FITS = {
    "all": ["train.update=all"],
    "present": ["train.update=present"],
    "present, 8 tasks in a batch": ["train.update=present", "train.tasks_per_batch=8"],
}


def config_of(tau: float, settings: list[str]) -> Config:
    """The configuration of one fit."""
    return load_config([*FAMILY, f"prior.tau={tau}", *settings])


def run() -> None:
    """The table."""
    config, rows = config_of(TAUS[0], []), []
    corpus = tokenize_for(config, load_corpus(config.data), load_tokenizer(config.model, config.data))
    base = load_base(config.model, config.data)
    for tau in TAUS:
        for name, settings in FITS.items():
            done = fit(config_of(tau, settings), corpus, base)
            row = {"tau": tau, "a step moves": name, "best epoch": done.state.best_epoch}
            for split in ("validation", "test"):
                row[f"{split} perplexity"] = perplexity(done.nll_nats[split].sum(), corpus.num_tokens(split))
            rows.append({**row, "distance to Theta": float((done.theta_KP - done.mean_P).norm(dim=1).mean())})
    notes = ["The last column is the mean over tasks of the norm of theta_d - Theta."]
    record("present_fits", "Fits by the tasks that a step moves", "100 speakers of 8 documents", rows, notes)


if __name__ == "__main__":
    start(run, __doc__)
