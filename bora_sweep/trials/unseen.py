"""The fits that leave tasks out, as part of a trial: their files, and the column `unseen_nll_nats` that they fill.

A fold has the folder `RUN/trials/TRIAL/unseen-FOLDS/FOLD`, with its checkpoints while it runs. Its scores are in
the file of that name with the ending `.json`, written once it has ended: a resume makes only those that are missing.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass

from transformers import PreTrainedModel

from bora_sweep.config import Config
from bora_sweep.data.tokens import TokenizedCorpus
from bora_sweep.errors import InputError
from bora_sweep.runs.results import read_trial_table, write_table
from bora_sweep.runs.storage import Folder, read_bytes, write_bytes
from bora_sweep.train.checkpoint import drop_checkpoints
from bora_sweep.train.state import State, StepReport, no_op
from bora_sweep.train.unseen import UnseenScores, score_unseen, task_folds


@dataclass(frozen=True)
class Fold:
    """Tasks that a fit leaves out, and where its files are."""

    number: int
    """From 1."""
    num_folds: int
    tasks: list[int]
    folder: Folder

    @property
    def file(self) -> Folder:
        """Of its scores."""
        return self.folder.parent / f"{self.folder.name}.json"

    @property
    def name(self) -> str:
        """In messages."""
        return f"tasks without text, fold {self.number} of {self.num_folds}"


def trial_folds(config: Config, corpus: TokenizedCorpus, run: Folder, trial_id: str) -> list[Fold]:
    """The folds of a trial; `search.unseen_folds` is their number, unless there are fewer tasks."""
    assert config.search.unseen_folds is not None
    folds = task_folds(corpus.num_tasks, config.search.unseen_folds, config.train.seed)
    parent = run / "trials" / trial_id / f"unseen-{len(folds)}"
    return [Fold(number, len(folds), tasks, parent / f"{number:03d}") for number, tasks in enumerate(folds, start=1)]


def read_fold(fold: Fold) -> UnseenScores | None:
    """The scores of a fold; None where it has not ended.

    Raises:
        InputError: The file is damaged.
    """
    try:
        return UnseenScores(**json.loads(read_bytes(fold.file)))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError):
        raise InputError(f"{fold.file}: damaged; remove it, and --resume makes it again") from None


def run_fold(
    fold: Fold,
    config: Config,
    corpus: TokenizedCorpus,
    base: PreTrainedModel,
    *,
    on_step: Callable[[StepReport], None] = no_op,
    on_epoch: Callable[[State], None] = no_op,
    check_stop: Callable[[], None] = no_op,
) -> None:
    """Fit without a fold's tasks, from its checkpoint if there is one, and write their scores.

    Args:
        fold: The tasks.
        config: Of the trial.
        corpus: Of all tasks.
        base: The base model.
        on_step: As for `bora_sweep.train.fit.fit`.
        on_epoch: As for `bora_sweep.train.fit.fit`.
        check_stop: As for `bora_sweep.train.fit.fit`.

    Raises:
        Interrupted: `check_stop` raised it; a checkpoint was written.
    """
    scores = score_unseen(
        config, corpus, base, fold.tasks, fold.folder, on_step=on_step, on_epoch=on_epoch, check_stop=check_stop
    )
    write_bytes(fold.file, json.dumps(asdict(scores)).encode())
    drop_checkpoints(fold.folder)


def write_unseen(run: Folder, trial_id: str, folds: list[Fold]) -> None:
    """Fill the column `unseen_nll_nats` of a trial's `task_scores`, once all of its folds have ended."""
    nll_nats = {}
    for fold in folds:
        scores = read_fold(fold)
        assert scores is not None
        nll_nats |= scores.nll_nats
    rows = read_trial_table(run, "task_scores", trial_id)
    unseen = [nll_nats[row["task"]].get(row["split"]) for row in rows]
    filled = [row | {"unseen_nll_nats": nats} for row, nats in zip(rows, unseen, strict=True)]
    if filled != rows:
        write_table(run, "task_scores", trial_id, filled)
