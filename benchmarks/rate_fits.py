"""The corpora and fits of learning_rates.py and targets.py: small, of one thread, each fit kept in a JSON file."""

import json
import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from provenance import RESULTS
from transformers import PreTrainedModel

from bora_sweep.config import Config, load_config
from bora_sweep.data.corpus import load_corpus
from bora_sweep.data.tokens import TokenizedCorpus, tokenize
from bora_sweep.model.base import load_base, load_tokenizer
from bora_sweep.train.fit import fit

SPEAKERS = Path("runs/speakers.parquet")
OPT, SMOLLM2 = Path("runs/opt-en-1m"), Path("runs/smollm2")
CORPORA: dict[str, list[str]] = {
    "embedded": [str(Path(__file__).parents[1] / "conf" / "embedded.yaml"), "search.estimate_tau=false"],
    "speakers": [
        f"data.path={SPEAKERS}", f"model.name={OPT}", "model.max_tokens=64", "data.max_tasks=10",
        "lora.target_modules=[q_proj,v_proj]",
    ],
    "few_speakers": [
        f"data.path={SPEAKERS}", f"model.name={OPT}", "model.max_tokens=64", "data.max_tasks=8",
        "data.max_documents=48", "train.max_epochs=30", "train.patience=4",
    ],
    "smollm2": [
        f"data.path={SPEAKERS}", f"model.name={SMOLLM2}", "model.max_tokens=32", "data.max_tasks=6",
        "data.max_documents=16", "lora.target_modules=[q_proj,v_proj]", "lora.rank=16", "train.batch_size=8",
        "train.max_epochs=5", "train.patience=1",
    ],
}  # fmt: skip
"""The embedded corpus; ten of 28 speakers under a model of 1M parameters, and eight with fewer speeches; six speakers
with 16 speeches each under SmolLM2-135M-Instruct. All but the first read `runs/speakers.parquet`, `runs/opt-en-1m` and
`runs/smollm2`: put the files or links there."""


def settings_of(corpus: str, seed: int) -> Config:
    """The configuration of a corpus; the embedded one is drawn anew for each seed.

    Args:
        corpus: Of `CORPORA`.
        seed: Of the adapters, the order of the documents and their split.
    """
    torch.set_num_threads(1)
    drawn = [f"data.synthetic.seed={seed}"] if corpus == "embedded" else [f"data.seed={seed}"]
    return load_config([*CORPORA[corpus], "train.device=cpu", f"train.seed={seed}", "prior.tau=inf", *drawn])


@lru_cache(maxsize=1)
def loaded(corpus: str, seed: int) -> tuple[TokenizedCorpus, PreTrainedModel]:
    """The tokens and the base of a corpus.

    Args:
        corpus: Of `CORPORA`.
        seed: As for `settings_of`.
    """
    config = settings_of(corpus, seed)
    tokens = tokenize(load_corpus(config.data), load_tokenizer(config.model, config.data), config.model.max_tokens)
    return tokens, load_base(config.model, config.data)


def fitted(config: Config, tokens: TokenizedCorpus, base: PreTrainedModel) -> dict[str, Any]:
    """One fit: perplexities at its best epoch, the validation curve, and what it cost."""
    done = fit(config, tokens, base)
    perplexities = {
        split: math.exp(float(nll.sum()) / tokens.num_tokens(split)) for split, nll in done.nll_nats.items()
    }
    curve = [row["nll_nats"] / row["num_tokens"] for row in done.state.curve if row["split"] == "validation"]
    return {
        **perplexities,
        "epochs": done.state.epoch,
        "best_epoch": done.state.best_epoch,
        "tokens": done.state.train_tokens,
        "stopped_by": done.stopped_by,
        "parameters": done.layout.num_parameters,
        "curve": [round(nats, 5) for nats in curve],
    }


class Kept:
    """Cells of a benchmark that are kept in `results/NAME.json`, so that a second run goes on.

    Args:
        name: Of the benchmark.
    """

    def __init__(self, name: str) -> None:
        self.path = RESULTS / f"{name}.json"
        self.cells: dict[str, Any] = json.loads(self.path.read_text()) if self.path.exists() else {}

    def get(self, key: Sequence[object], make: Callable[[], Any]) -> Any:
        """The cell of this key, made if it is not there.

        Args:
            key: What it is of.
            make: Makes it; its result is put into the file at once.
        """
        name = " ".join(f"{part:g}" if isinstance(part, float) else str(part) for part in key)
        if name not in self.cells:
            self.cells[name] = make()
            print(name, {k: v for k, v in self.cells[name].items() if k != "curve"}, flush=True)
            self.path.write_text(json.dumps(self.cells, indent=1) + "\n")
        return self.cells[name]
