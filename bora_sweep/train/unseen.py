"""Tasks without any text: the documents of some tasks, scored under Theta of a fit that never saw these tasks.

A task that was in no fit is served by Theta. Theta of the whole fit has seen the training text of every task, so
scores under it are too good. Here some tasks are left out, the others are fitted as if those did not exist, and those
are scored under Theta of that fit. docs/method.md says why no correction of the whole fit takes its place.

Shapes: P parameters of one adapter.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor
from transformers import PreTrainedModel

from bora_sweep.config import PERPLEXITY, Config, with_values
from bora_sweep.data.some_tasks import some_tasks
from bora_sweep.data.tokens import TokenizedCorpus
from bora_sweep.errors import require
from bora_sweep.runs.storage import Folder
from bora_sweep.train.fit import fit
from bora_sweep.train.state import Start, State, StepReport, no_op

SCORED = ("validation", "test")


@dataclass(frozen=True)
class UnseenScores:
    """Nats of the tasks that a fit left out, and what the fit took."""

    nll_nats: dict[str, dict[str, float]]
    """By task, then by split; a split without documents of the task is not there."""
    epochs: int
    best_epoch: int
    stopped_by: str | None
    train_tokens: int
    train_seconds: float


def task_folds(num_tasks: int, num_folds: int, seed: int) -> list[list[int]]:
    """The tasks that each fit leaves out: random folds of equal size, to within one task.

    Args:
        num_tasks: D.
        num_folds: Fits; with D or more each task is left out alone.
        seed: Of the order in which tasks are dealt out.
    """
    order = np.random.default_rng(seed).permutation(num_tasks)
    return [sorted(fold.tolist()) for fold in np.array_split(order, min(num_folds, num_tasks))]


def check_folds(num_folds: int, corpus: TokenizedCorpus, seed: int) -> None:
    """Refuse folds whose other tasks could not be fitted.

    Args:
        num_folds: `search.unseen_folds`.
        corpus: Of all tasks.
        seed: As for `task_folds`.

    Raises:
        InputError: There is a single task, or all validation documents are of tasks that are left out together.
    """
    key, num_tasks = f"search.unseen_folds={num_folds}", corpus.num_tasks
    require(num_tasks > 1, f"{key}: leaves tasks out in turn, and the data have a single task; drop it")
    validated = set(corpus.documents["task"].iloc[corpus.split("validation")])
    for fold in task_folds(num_tasks, num_folds, seed):
        names = ", ".join(repr(corpus.tasks[task]) for task in fold[:3])
        require(
            bool(validated - set(fold)),
            f"{key}: without the tasks {names}{', …' if len(fold) > 3 else ''} no validation document is left, so "
            "nothing would say when to stop; raise it, or raise data.validation_fraction",
        )


def score_unseen(
    config: Config,
    corpus: TokenizedCorpus,
    base: PreTrainedModel,
    left_out: Sequence[int],
    folder: Folder | None = None,
    *,
    on_step: Callable[[StepReport], None] = no_op,
    on_epoch: Callable[[State], None] = no_op,
    check_stop: Callable[[], None] = no_op,
) -> UnseenScores:
    """Fit the other tasks, and score validation and test of those left out under Theta.

    The fit is the one that a corpus without these tasks would have, at the same tau and seed: its N, its batches, its
    early stopping. At tau = 0 Theta does not move, so nothing is fitted and the base model is scored.

    Args:
        config: Of the whole fit.
        corpus: Of all tasks.
        base: The base model.
        left_out: Places of the tasks in `corpus.tasks`; not all of them.
        folder: For the checkpoints of the fit.
        on_step: As for `bora_sweep.train.fit.fit`.
        on_epoch: As for `bora_sweep.train.fit.fit`.
        check_stop: As for `bora_sweep.train.fit.fit`.

    Raises:
        Interrupted: `check_stop` raised it.
    """
    config = with_values(config, metrics=[], search={"objective": PERPLEXITY})
    if config.tau == 0:
        return UnseenScores(score_tasks(config, corpus, base, left_out, None, check_stop), 0, 0, None, 0, 0.0)
    others = some_tasks(corpus, sorted(set(range(corpus.num_tasks)) - set(left_out)))
    done = fit(config, others, base, folder, on_step=on_step, on_epoch=on_epoch, check_stop=check_stop)
    nll_nats = score_tasks(config, corpus, base, left_out, done.mean_P, check_stop)
    state = done.state
    return UnseenScores(
        nll_nats, state.epoch, state.best_epoch, done.stopped_by, state.train_tokens, state.train_seconds
    )


def score_tasks(
    config: Config,
    corpus: TokenizedCorpus,
    base: PreTrainedModel,
    tasks: Sequence[int],
    mean_P: Tensor | None,
    check_stop: Callable[[], None] = no_op,
) -> dict[str, dict[str, float]]:
    """Nats of these tasks' documents of validation and test under one adapter, by task and split.

    Args:
        config: Of a fit.
        corpus: Of all tasks.
        base: The base model.
        tasks: Places of the tasks in `corpus.tasks`.
        mean_P: The adapter; None: the base model alone.
        check_stop: As for `bora_sweep.train.fit.fit`.
    """
    own = some_tasks(corpus, tasks, SCORED)  # no training text: not even its lengths choose how a row is computed
    if own.documents.empty:
        return {task: {} for task in own.tasks}
    start = None if mean_P is None else Start(mean_P, mean_P.expand(own.num_tasks, -1))
    # One adapter for all, and nothing to train: weights of tasks would divide by their training tokens.
    config = with_values(config, method="zero_shot", prior={"tau": math.inf}, train={"task_weights": "tokens"})
    done = fit(config, own, base, start=start, check_stop=check_stop)
    nll_nats: dict[str, dict[str, float]] = {task: {} for task in own.tasks}
    for split in SCORED:
        task_N = own.documents["task"].to_numpy()[own.split(split)]
        for task in np.unique(task_N).tolist():
            nll_nats[own.tasks[task]][split] = float(done.nll_nats[split][task_N == task].sum())
    return nll_nats
