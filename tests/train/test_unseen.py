"""Tasks that are left out of a fit: nothing of them reaches it, and they are scored under its Theta."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from tiny import make_base, make_frame, make_tokenizer

from bora_sweep.config import Config, load_config
from bora_sweep.data.corpus import Corpus
from bora_sweep.data.tokens import TokenizedCorpus, tokenize
from bora_sweep.errors import InputError
from bora_sweep.process import Interrupted
from bora_sweep.runs.results import read_results
from bora_sweep.train.fit import fit
from bora_sweep.train.state import Start, StepReport
from bora_sweep.train.unseen import check_folds, score_tasks, score_unseen, task_folds
from bora_sweep.trials.trial import Trial, run_trial
from bora_sweep.trials.unseen import read_fold, run_fold, trial_folds, write_unseen


def frame_of(sizes: dict[str, int]) -> pd.DataFrame:
    """Half of each task's documents to train on, a quarter each to validate and test."""
    frame = make_frame(sizes)
    place = frame.groupby("task").cumcount()
    frame["split"] = np.select([place % 4 < 2, place % 4 == 2], ["train", "validation"], "test")
    return frame.assign(content=None, document_id=[str(i) for i in range(len(frame))], floor_nll_nats=np.nan)


def corpus_of(frame: pd.DataFrame) -> TokenizedCorpus:
    return tokenize(Corpus("made", tuple(frame["task"].unique()), frame, ()), make_tokenizer(), max_tokens=16)


def config_of(*settings: str) -> Config:
    return load_config(
        ["train.max_epochs=4", "train.batch_size=4", "train.learning_rate=0.03", "lora.rank=2", "train.patience=2",
         "lora.target_modules=all-linear", "train.device=cpu", *settings]
    )  # fmt: skip


@pytest.mark.parametrize("tau", ["0", "30", "inf"])
@pytest.mark.parametrize("task_weights", ["tokens", "tasks"])
def test_no_bit_of_a_score_depends_on_the_training_text_of_the_task(tau, task_weights):
    """Neither on its words nor on its length, nor on how much there is."""
    frame, base = frame_of({"a": 12, "b": 12, "c": 8}), make_base(dtype=torch.float32)
    is_own = (frame["task"] == "b") & (frame["split"] == "train")
    config = config_of(f"prior.tau={tau}", f"train.task_weights={task_weights}")
    before = score_unseen(config, corpus_of(frame), base, [1])
    other = frame.assign(text=frame["text"].where(~is_own, "w1 w1 w2 w39 w38 w37 w36 w35 w34 w33 w32 w31 w30 w29"))
    other = other[~is_own | (np.arange(len(frame)) % 3 > 0)].reset_index(drop=True)
    after = score_unseen(config, corpus_of(other), base, [1])
    assert after.nll_nats == before.nll_nats
    assert (after.best_epoch, after.train_tokens) == (before.best_epoch, before.train_tokens)
    whole = fit(config, corpus_of(other), base)
    seen = score_tasks(config, corpus_of(other), base, [1], whole.mean_P)
    assert (seen == before.nll_nats) == (tau == "0")  # where Theta moves, the text would have mattered


def test_of_two_tasks_one_is_scored_under_the_fit_of_the_other_alone():
    frame, base = frame_of({"a": 12, "b": 16}), make_base()
    corpus, config = corpus_of(frame), config_of("prior.tau=inf")
    alone = fit(config, corpus_of(frame[frame["task"] == "b"].reset_index(drop=True)), base)
    start = Start(alone.mean_P, alone.mean_P.expand(2, -1))
    under_it = fit(config_of("prior.tau=inf", "method=zero_shot"), corpus, base, start=start)
    scores = score_unseen(config, corpus, base, [0])
    assert scores.nll_nats.keys() == {"a"}
    for split, nats in scores.nll_nats["a"].items():
        task_N = corpus.documents["task"].to_numpy()[corpus.split(split)]
        assert nats == pytest.approx(under_it.nll_nats[split][task_N == 0].sum(), rel=1e-12)
    assert scores.best_epoch == alone.state.best_epoch > 0


def test_at_tau_0_a_task_without_text_gets_the_base_model():
    corpus, base = corpus_of(frame_of({"a": 12, "b": 12})), make_base()
    untrained = fit(config_of("prior.tau=0", "method=zero_shot"), corpus, base)
    scores = score_unseen(config_of("prior.tau=0"), corpus, base, [0, 1])
    for split, nll_N in untrained.nll_nats.items():
        assert sum(scores.nll_nats[task][split] for task in corpus.tasks) == pytest.approx(nll_N.sum(), rel=1e-12)
    assert scores.epochs == 0


@pytest.mark.parametrize(("num_tasks", "num_folds"), [(2, 2), (7, 3), (12, 5), (3, 10)])
def test_each_task_is_left_out_once(num_tasks, num_folds):
    folds = task_folds(num_tasks, num_folds, seed=3)
    assert len(folds) == min(num_tasks, num_folds)
    assert sorted(task for fold in folds for task in fold) == list(range(num_tasks))
    assert max(map(len, folds)) - min(map(len, folds)) <= 1
    assert folds == task_folds(num_tasks, num_folds, seed=3)
    assert num_tasks < 12 or folds != task_folds(num_tasks, num_folds, seed=4)


def test_folds_that_leave_nothing_to_fit_are_refused():
    with pytest.raises(InputError, match="a single task"):
        check_folds(2, corpus_of(frame_of({"a": 12})), seed=0)
    frame = frame_of({"a": 12, "b": 12})
    frame = frame[(frame["task"] == "a") | (frame["split"] != "validation")].reset_index(drop=True)
    with pytest.raises(InputError, match="without the tasks 'a' no validation document"):
        check_folds(2, corpus_of(frame), seed=0)
    check_folds(3, corpus_of(frame_of({"a": 12, "b": 12, "c": 8})), seed=0)


def test_a_fold_resumes_and_the_column_is_filled_once_all_have_ended(tmp_path):
    frame = frame_of({"a": 12, "b": 12, "c": 8, "one": 1})  # `one` has a document to train on alone
    corpus, base = corpus_of(frame), make_base()
    config = config_of("prior.tau=30", "search.unseen_folds=2")
    run_trial(Trial("x", config), corpus, lambda: base, tmp_path)
    first, second = trial_folds(config, corpus, tmp_path, "x")
    run_fold(first, config, corpus, base)
    assert read_results(tmp_path).task_scores["unseen_nll_nats"].isna().all()
    done: list[StepReport] = []

    def stop_after_five_steps() -> None:
        if len(done) == 5:
            raise Interrupted

    with pytest.raises(Interrupted):
        run_fold(second, config, corpus, base, on_step=done.append, check_stop=stop_after_five_steps)
    assert read_fold(second) is None
    assert list(second.folder.glob("checkpoint-*"))
    run_fold(second, config, corpus, base, on_step=done.append)
    assert not list(second.folder.glob("checkpoint-*"))
    steps: list[StepReport] = []
    undisturbed = score_unseen(config, corpus, base, second.tasks, on_step=steps.append)
    assert [(report.epoch, report.batch) for report in done] == [(report.epoch, report.batch) for report in steps]
    assert read_fold(second).train_tokens == undisturbed.train_tokens
    assert read_fold(second).nll_nats == undisturbed.nll_nats
    before = read_results(tmp_path).task_scores
    write_unseen(tmp_path, "x", [first, second])
    after = read_results(tmp_path).task_scores
    pd.testing.assert_frame_equal(after.drop(columns="unseen_nll_nats"), before.drop(columns="unseen_nll_nats"))
    assert (after["unseen_nll_nats"].notna() == (after["split"] != "train")).all()
    of = after.set_index(["task", "split"])["unseen_nll_nats"]
    for fold in (first, second):
        for task, of_split in read_fold(fold).nll_nats.items():
            assert of_split == {split: of[task, split] for split in of_split}


def test_a_damaged_file_of_a_fold_is_named(tmp_path):
    corpus = corpus_of(frame_of({"a": 12, "b": 12}))
    fold = trial_folds(config_of("search.unseen_folds=2"), corpus, tmp_path, "x")[0]
    fold.file.parent.mkdir(parents=True)
    fold.file.write_text(json.dumps({"nll_nats": {}})[:-3])
    with pytest.raises(InputError, match=r"001\.json: damaged; remove it"):
        read_fold(fold)
