"""What a task without text can expect: fits that leave tasks out, beside corrections of the one fit of all tasks.

    python benchmarks/unseen_tasks.py [key=value …]

By default on the embedded corpus. Each task is left out in turn, and its validation and test documents are scored under
Theta of a fit of the others: the truth here. Beside it: Theta of the whole fit as it is; the mean of the other tasks'
adapters; and a Newton step that removes the task, by the diagonal of the Fisher information (`newton`). `search.taus`
names the values of tau, above 0. Added to `benchmarks/results/unseen_tasks.md`, a section for each corpus.
"""

import math
from pathlib import Path

import numpy as np
import torch
from arguments import start
from provenance import record
from torch import Tensor
from transformers import PreTrainedModel

from bora_sweep.config import Config, load_config, with_values
from bora_sweep.data.corpus import load_corpus
from bora_sweep.data.tokens import TokenizedCorpus, tokenize_for
from bora_sweep.model.base import load_base, load_tokenizer
from bora_sweep.train.fit import fit
from bora_sweep.train.methods.tau_estimate import Curvature, curvature
from bora_sweep.train.state import Fit
from bora_sweep.train.unseen import score_tasks, score_unseen, task_folds

EMBEDDED = str(Path(__file__).resolve().parents[1] / "conf" / "embedded.yaml")
TAUS = [10.0, 150.0, math.inf]
FEW_FOLDS = 4
OTHER_SEED = "Θ of another seed"
INSTEAD = ("mean of the others", "Newton step", f"{FEW_FOLDS} folds")
"""What might take the place of leaving each task out."""
RIDGE = 0.1
"""Added to a sum of curvatures as a share of its mean: without it some coordinates have next to none."""


def newton(config: Config, whole: Fit, around: Curvature, task: int) -> Tensor:
    """Theta without a task: a Newton step on the profile of J over Theta, from the whole fit's.

    With H_j the diagonal of task j's Fisher information and W_j = tau H_j / (H_j + tau), it is
    Theta - tau (theta_d - Theta) / sum of W_j over the others; at tau = inf the task's own gradient takes the place of
    the prior's pull, which it balances at the MAP.
    """
    others = [other for other in range(len(around.nll_K)) if other != task]
    tau, fisher_KP = config.tau, around.fisher_KP.clamp(min=0)
    if math.isinf(tau):
        pull_P, curvature_P = -around.score_KP[task], fisher_KP[others].sum(0)
    else:
        pull_P = tau * (whole.theta_KP[task] - whole.mean_P)
        curvature_P = (tau * fisher_KP / (fisher_KP + tau))[others].sum(0)
    return whole.mean_P - pull_P / (curvature_P + RIDGE * curvature_P.mean())


def mean_of_others(config: Config, whole: Fit, task: int) -> Tensor:
    """The mean of the other tasks' adapters; at tau = inf they are all Theta."""
    others = [other for other in range(len(whole.theta_KP)) if other != task]
    return whole.mean_P if math.isinf(config.tau) else whole.theta_KP[others].mean(0)


def nats_K(scores: dict[str, dict[str, float]], tasks: tuple[str, ...]) -> np.ndarray:
    """Each task's nats, over validation and test."""
    return np.array([sum(scores[task].values()) for task in tasks])


def own_nats(whole: Fit) -> float:
    """All nats of validation and test under the tasks' own adapters."""
    return sum(float(nll_N.sum()) for nll_N in whole.nll_nats.values())


def at_tau(config: Config, corpus: TokenizedCorpus, base: PreTrainedModel) -> dict[str, object]:
    """A row of the table."""
    tasks, every = corpus.tasks, range(corpus.num_tasks)
    whole = fit(config, corpus, base)
    other_seed = fit(with_values(config, train={"seed": config.train.seed + 1}), corpus, base)
    around = curvature(config, corpus, base, whole.theta_KP)

    def alone(adapter_of: list[Tensor]) -> dict[str, dict[str, float]]:
        return {
            name: nats
            for task in every
            for name, nats in score_tasks(config, corpus, base, [task], adapter_of[task]).items()
        }

    def refitted(num_folds: int) -> dict[str, dict[str, float]]:
        folds = task_folds(corpus.num_tasks, num_folds, config.train.seed)
        return {
            name: nats for fold in folds for name, nats in score_unseen(config, corpus, base, fold).nll_nats.items()
        }

    scores = {
        "Θ of the whole fit": score_tasks(config, corpus, base, every, whole.mean_P),
        OTHER_SEED: score_tasks(config, corpus, base, every, other_seed.mean_P),
        "mean of the others": alone([mean_of_others(config, whole, task) for task in every]),
        "Newton step": alone([newton(config, whole, around, task) for task in every]),
        f"{FEW_FOLDS} folds": refitted(FEW_FOLDS),
        "each task left out": refitted(corpus.num_tasks),
    }
    num_tokens = corpus.num_tokens("validation") + corpus.num_tokens("test")
    per_token = {name: nats_K(found, tasks).sum() / num_tokens for name, found in scores.items()}
    base_alone = nats_K(score_tasks(config, corpus, base, every, None), tasks).sum() / num_tokens
    levels = {"base alone": base_alone, **per_token, "own adapters": own_nats(whole) / num_tokens}
    seed, truth, before = levels.pop(OTHER_SEED), per_token["each task left out"], per_token["Θ of the whole fit"]
    gap = float(truth - before)
    errors = {f"{name}: error, % of the gap": per_token[name] - truth for name in INSTEAD}
    return {
        "τ": f"{config.tau:g}",
        **{name: math.exp(value) for name, value in levels.items()},
        "gap, nats per token": gap,
        **{name: 100 * float(error) / gap for name, error in errors.items()},
        "another seed of Θ: change, % of the gap": 100 * float(seed - before) / gap,
    }


def run(settings: list[str]) -> None:
    """A row for each tau."""
    torch.set_num_threads(1)
    corpus_of = ["lora.target_modules=null"] if any("data.path" in s for s in settings) else [EMBEDDED]
    config = load_config([*corpus_of, "train.device=cpu", *settings])
    corpus = tokenize_for(config, load_corpus(config.data), load_tokenizer(config.model, config.data))
    base = load_base(config.model, config.data)
    rows = []
    for tau in config.search.taus or TAUS:
        rows.append(at_tau(with_values(config, prior={"tau": tau}), corpus, base))
        print(rows[-1], flush=True)
    trained = corpus.num_tokens("train")
    notes = [
        f"{corpus.num_tasks} tasks, {trained:,} training tokens. Perplexities of validation and test together. The gap "
        "is from Θ of the whole fit to the fits that left the task out; a correction is as good as its error is small."
    ]
    record("unseen_tasks", "What a task without text can expect", corpus.name, rows, notes)


if __name__ == "__main__":
    start(run, __doc__, "key=value")
