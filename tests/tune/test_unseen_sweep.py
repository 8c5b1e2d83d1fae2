"""The end of a sweep: fits that leave tasks out, as the best trial, in processes of Ray's."""

import os
import signal
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tiny import make_corpus

from bora_sweep.config import Config, load_config, with_values
from bora_sweep.model.base import load_base
from bora_sweep.runs.folder import create_run
from bora_sweep.runs.results import read_results, trial_rows
from bora_sweep.runs.run_lock import run_lock
from bora_sweep.train.unseen import score_unseen
from bora_sweep.tune import run_sweep
from bora_sweep.tune.unseen import best_trial, config_of_trial

pytestmark = [pytest.mark.ray, pytest.mark.slow]
CORPUS = make_corpus({"a": 16, "b": 16, "c": 12})


class InterruptedConsole(Console):
    """Ctrl-C arrives when a line of these words is printed."""

    def __init__(self, words: str, file: StringIO) -> None:
        super().__init__(file=file, soft_wrap=True)
        self.words = words

    def print(self, *objects: Any, **options: Any) -> None:
        super().print(*objects, **options)
        if self.words and self.words in str(objects[0]):
            os.kill(os.getpid(), signal.SIGINT)


def sweep(config: Config, run: Path, words: str = "") -> tuple[bool, str]:
    """Whether the sweep ended, and what it printed."""
    with StringIO() as printed, run_lock(run):
        ended = run_sweep(config, CORPUS, run, [], InterruptedConsole(words, printed))
        return ended, printed.getvalue()


@pytest.mark.usefixtures("ray_here")
def test_the_best_trial_gets_the_column_also_after_an_interrupt(tmp_path, model_folder):
    config = load_config(
        ["lora.rank=2", "train.learning_rate=0.05", "train.max_epochs=3", "train.batch_size=4", "train.device=cpu",
         "search.num_trials=0", "search.taus=[20]", "ray.max_concurrent=1", f"model.name={model_folder}"]
    )  # fmt: skip
    create_run(config, tmp_path)
    assert sweep(config, tmp_path)[0]
    rows = trial_rows(tmp_path)
    assert read_results(tmp_path).task_scores["unseen_nll_nats"].isna().all()
    config = with_values(config, search={"unseen_folds": 3})
    ended, printed = sweep(config, tmp_path, "fold 1 of 3: done")
    assert not ended
    assert "fold 2 of 3" not in printed
    assert read_results(tmp_path).task_scores["unseen_nll_nats"].isna().all()
    ended, printed = sweep(config, tmp_path)
    assert ended
    assert "fold 1 of 3" not in printed  # not made again
    assert printed.count("done") == 2
    assert trial_rows(tmp_path) == rows
    scores = read_results(tmp_path).task_scores
    filled = scores[scores["unseen_nll_nats"].notna()]
    best = best_trial(tmp_path)
    assert set(filled["trial_id"]) == {best}
    assert best == min(
        (row for row in rows if row["method"] == "map"), key=lambda row: row["validation_perplexity"]
    )["trial_id"]  # fmt: skip
    own, base = config_of_trial(config, tmp_path, best), load_base(config.model, config.data)
    assert own.prior.tau == next(row["tau"] for row in rows if row["trial_id"] == best)
    of = filled.set_index(["task", "split"])["unseen_nll_nats"]
    for task, name in enumerate(CORPUS.tasks):
        for split, nats in score_unseen(own, CORPUS, base, [task]).nll_nats[name].items():
            assert of[name, split] == pytest.approx(nats, rel=1e-6)
    assert not list((tmp_path / "trials").glob("*/*/*/checkpoint-*"))
