"""Tasks with one or two documents: they train, get an adapter, and have no test score of their own."""

import numpy as np
import pytest
import torch
from tiny import make_base, make_frame, make_tokenizer

from bora_sweep.config import load_config
from bora_sweep.data.corpus import Corpus
from bora_sweep.data.tokens import TokenizedCorpus, tokenize
from bora_sweep.runs.results import read_results
from bora_sweep.train.device import make_accelerator
from bora_sweep.train.fit import fit, run_epoch, validate
from bora_sweep.train.make_trainer import make_trainer
from bora_sweep.train.pack import Pack
from bora_sweep.trials.trial import Trial, run_trial


def small_corpus() -> TokenizedCorpus:
    """Two tasks with every split, one that trains on a document and validates on another, and one with a single one."""
    frame = make_frame({"a": 16, "b": 12, "two": 2, "one": 1})
    place = frame.groupby("task").cumcount()
    frame["split"] = np.select([place % 4 < 2, place % 4 == 2], ["train", "validation"], "test")
    frame.loc[frame["task"] == "two", "split"] = ["train", "validation"]
    frame = frame.assign(content=None, document_id=[str(i) for i in range(len(frame))], floor_nll_nats=np.nan)
    return tokenize(Corpus("made", ("a", "b", "two", "one"), frame, ()), make_tokenizer(), max_tokens=16)


def config_of(*settings: str):
    return load_config(
        ["train.max_epochs=4", "train.batch_size=8", "train.learning_rate=0.05", "lora.rank=2",
         "lora.target_modules=all-linear", "train.device=cpu", "train.patience=9", *settings]
    )  # fmt: skip


@pytest.mark.parametrize("tau", ["0", "30", "inf"])
def test_each_task_gets_an_adapter_that_its_document_has_moved(tau, tmp_path):
    corpus, base = small_corpus(), make_base(dtype=torch.float32)
    run_trial(Trial("x", config_of(f"prior.tau={tau}")), corpus, lambda: base, tmp_path)
    scores = read_results(tmp_path).task_scores
    splits = scores.groupby("task")["split"].agg(set).to_dict()
    assert splits["one"] == {"train"}
    assert splits["two"] == {"train", "validation"}
    assert splits["a"] == {"train", "validation", "test"}
    row = read_results(tmp_path).trials.iloc[0]
    test = scores[scores["split"] == "test"]
    assert row["test_num_tokens"] == test["num_tokens"].sum()
    assert row["test_macro_perplexity"] == pytest.approx(test["perplexity"].mean())
    validation = scores.loc[scores["split"] == "validation", "nll_nats"].sum()
    assert row["validation_nll_nats"] == pytest.approx(validation, rel=1e-6)
    if tau != "inf":
        assert min(scores.groupby("task")["distance_to_global"].max()) > 0


def test_at_tau_0_a_task_without_validation_stops_by_all_tasks_validation_documents():
    corpus = small_corpus()
    config = config_of("prior.tau=0", "train.patience=2", "train.max_epochs=30", "train.learning_rate=0.2")
    trainer = make_trainer(config, Pack(config, corpus, make_base(), make_accelerator(config)))
    validate(trainer.pack, [trainer])
    kept, sums = [trainer.best["task_KP"][3].clone()], [sum_of(trainer)]
    while trainer.stopped_by is None:
        run_epoch(trainer.pack, [trainer])
        kept.append(trainer.parameters()["task_KP"][3].clone())
        sums.append(sum_of(trainer))
    trainer.pack.close()
    alive = [n for n in range(len(sums)) if n - int(np.argmin(sums[: n + 1])) <= config.train.patience]
    best = int(np.argmin(sums[: alive[-1] + 1]))
    assert trainer.state.best_epochs[3] == best
    assert 0 < best < len(sums) - 1  # else the test would show nothing
    assert torch.equal(trainer.best["task_KP"][3], kept[best])
    own = corpus.documents["task"].to_numpy()[corpus.split("validation")]
    assert trainer.state.pooled == [False, False, False, True]
    assert set(own) == {0, 1, 2}
    assert trainer.state.validation_nats == pytest.approx(sum(trainer.state.best_nll_nats[:3]))


def sum_of(trainer) -> float:
    """Nats of all validation documents at the last epoch."""
    return next(row["nll_nats"] for row in reversed(trainer.state.curve) if row["split"] == "validation")


def test_a_small_tasks_document_moves_the_others_through_the_prior_alone():
    """At tau = 0 the other tasks' adapters are those of a corpus without it."""
    corpus, base = small_corpus(), make_base()
    with_one, config = fit(config_of("prior.tau=0"), corpus, base), config_of("prior.tau=0")
    keep = corpus.documents["task"].to_numpy() != 3
    rows = np.flatnonzero(keep)
    pieces = [slice(corpus.offsets[n], corpus.offsets[n + 1]) for n in rows]
    without = TokenizedCorpus(
        "made", corpus.tasks[:3], corpus.documents.iloc[rows].reset_index(drop=True),
        np.concatenate([corpus.tokens[piece] for piece in pieces]),
        np.concatenate([corpus.scored[piece] for piece in pieces]),
        np.concatenate([[0], np.cumsum([corpus.offsets[n + 1] - corpus.offsets[n] for n in rows])]),
    )  # fmt: skip
    alone = fit(config, without, base)
    # N differs, and with it the step of each task by a factor that Adam does not see.
    torch.testing.assert_close(with_one.theta_KP[:3], alone.theta_KP, rtol=0, atol=1e-3)
