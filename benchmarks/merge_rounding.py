"""What rounding to bfloat16 takes from an adapter that is merged into the weights, by how large the adapter is.

    python benchmarks/merge_rounding.py

The embedded base, its files in bfloat16, and a fit in float32 at tau = 100. Each task's adapter is scaled to a share of
its size, merged, and rounded once. Of each share: the rounding error of the weights relative to the adapter's change of
them; that of the logits relative to the adapter's, which `export --merge` measures on 16 tokens; and the test nats that
the rounding costs, relative to those that the adapter gains. Passes are in float32, so that nothing else is rounded.
Written to `benchmarks/results/merge_rounding.md` and `.json`.
"""

import copy
import tempfile
from pathlib import Path

import numpy as np
import torch
from arguments import start
from provenance import record
from torch import Tensor

from bora_sweep import fit, load_config
from bora_sweep.data.corpus import load_corpus
from bora_sweep.data.tokens import TokenizedCorpus, tokenize_for
from bora_sweep.model.adapted import AdaptedModel
from bora_sweep.model.base import load_base, load_tokenizer
from bora_sweep.model.full_model import merged_weights, write_full
from bora_sweep.serve.load import load_trial

SHARES = [1.0, 0.3, 0.1, 0.03, 0.01, 0.003]
"""Of the adapter's change of the weights."""
MOST_TASKS, MOST_DOCUMENTS = 6, 24  # of a task
SETTINGS = ["conf/embedded.yaml", "prior.tau=100", "train.device=cpu", "train.max_epochs=6"]


@torch.no_grad()
def nats(base: torch.nn.Module, corpus: TokenizedCorpus, task: int) -> float:
    """Of the task's first test documents, one at a time."""
    of_task = [c for c in corpus.sequences("test") if corpus.documents["task"].iloc[c] == task][:MOST_DOCUMENTS]
    total = 0.0
    for c in of_task:
        where = slice(corpus.offsets[c], corpus.offsets[c + 1])
        tokens_T = torch.from_numpy(corpus.tokens[where].astype(np.int64))
        scored_T = torch.from_numpy(corpus.scored[where])
        log_p_TV = base(input_ids=tokens_T[None]).logits[0, :-1].log_softmax(-1)
        total -= float(log_p_TV.gather(1, tokens_T[1:, None])[:, 0][scored_T[1:]].double().sum())
    return total


def weight_error(base: torch.nn.Module, exact: dict[str, Tensor], rounded: dict[str, Tensor]) -> float:
    """Of all adapted modules together."""
    own = dict(base.named_parameters())
    lost = sum(float((rounded[name].float() - weight).square().sum()) for name, weight in exact.items())
    change = sum(float((weight - own[name].detach().float()).square().sum()) for name, weight in exact.items())
    return (lost / change) ** 0.5


def rows() -> list[dict]:
    """One for each share: means over tasks."""
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        plain = load_config(SETTINGS)
        load_base(plain.model, plain.data).to(torch.bfloat16).save_pretrained(here / "base")  # type: ignore[arg-type]
        load_tokenizer(plain.model, plain.data).save_pretrained(here / "base")
        fit(*SETTINGS, f"model.name={here / 'base'}", "model.dtype=float32", output=here / "run")
        loaded = load_trial(here / "run")
        config, layout = loaded.config, loaded.layout
        corpus = tokenize_for(config, load_corpus(config.data), load_tokenizer(config.model, config.data))
        base = load_base(config.model, config.data, torch.bfloat16)
        wide = copy.deepcopy(base).to(torch.float32)  # type: ignore[arg-type]
        bare = {task: nats(wide, corpus, number) for number, task in enumerate(corpus.tasks[:MOST_TASKS])}
        table = []
        for share in SHARES:
            found = []
            for number, task in enumerate(corpus.tasks[:MOST_TASKS]):
                theta_P = loaded.theta_of[task] * share**0.5  # A and B each
                exact = merged_weights(base, layout, theta_P, torch.float32)
                rounded = merged_weights(base, layout, theta_P)
                adapted = AdaptedModel(wide, layout)
                with adapted.with_adapter(theta_P):
                    own = nats(wide, corpus, number)
                adapted.remove_hooks()
                merged = copy.deepcopy(wide)
                merged.load_state_dict(rounded, strict=False)
                merge = write_full(here / f"{share}-{number}", base, layout, theta_P)
                lost = nats(merged, corpus, number) - own
                found.append((weight_error(base, exact, rounded), merge.rounding_error, lost, bare[task] - own))
            weights, logits, lost, gain = map(np.array, zip(*found, strict=True))
            table.append({
                "adapter's size": share,
                "weights": float(weights.mean()),
                "logits": float(logits.mean()),
                "logits, largest": float(logits.max()),
                "% of the gain in nats lost": float(100 * np.abs(lost).sum() / gain.sum()),
                "nats gained": float(gain.sum()),
            })  # fmt: skip
        return table


def run() -> None:
    """The table."""
    notes = [
        f"Means over {MOST_TASKS} tasks, but for the largest. Weights: rounding error over the adapter's change, by "
        "Frobenius norms. Logits: as `write_full` returns it. Nats: of "
        f"{MOST_DOCUMENTS} test documents of each task; lost is the sum of the changes' sizes."
    ]
    record("merge_rounding", "What rounding to bfloat16 takes from a merged adapter", "embedded base", rows(), notes)


if __name__ == "__main__":
    start(run, __doc__)
