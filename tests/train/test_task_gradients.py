"""Sums of documents' scores over folds, as one document after the other gives them."""

import numpy as np
import torch
from tiny import make_base, make_corpus

from bora_sweep.config import load_config
from bora_sweep.data.batches import collate
from bora_sweep.model.adapted import AdaptedModel
from bora_sweep.model.layout import make_layout
from bora_sweep.model.likelihood import Likelihood
from bora_sweep.train.methods import task_gradients
from bora_sweep.train.methods.document_gradients import DocumentPass
from bora_sweep.train.methods.task_gradients import fold_sums

CONFIG = load_config(["train.device=cpu", "train.batch_size=3", "lora.rank=2"])


def setting():
    base, corpus = make_base("opt"), make_corpus()
    layout = make_layout(base, CONFIG.lora)
    theta_P = torch.randn(layout.num_parameters, generator=torch.Generator().manual_seed(0), dtype=base.dtype) / 4
    return base, corpus, layout, theta_P


def scores_one_by_one(base, corpus, layout, theta_P):
    adapted = AdaptedModel(base, layout)
    likelihood = Likelihood(adapted, [])
    train = corpus.sequences("train")
    passes = (DocumentPass(likelihood, collate(corpus, train[[n]]), theta_P, 1, (0,)) for n in range(len(train)))
    score_CP = torch.cat([one.nll_and_score()[1] for one in passes]).numpy()
    adapted.remove_hooks()
    return train, score_CP


def test_folds_hold_each_document_once(monkeypatch):
    monkeypatch.setattr(task_gradients, "_whiten_", lambda *_: None)
    base, corpus, layout, theta_P = setting()
    seen = []
    sums = fold_sums(CONFIG, corpus, base, layout, theta_P, seen.append)
    train, score_CP = scores_one_by_one(base, corpus, layout, theta_P)
    for task in range(corpus.num_tasks):
        of_task = corpus.task_C[train] == task
        np.testing.assert_allclose(sums.score_KFQ[task].sum(0), score_CP[of_task].sum(0), rtol=1e-4, atol=1e-5)
        assert sums.tokens_KF[task].sum() == corpus.num_tokens_C[train][of_task].sum()
        assert np.count_nonzero(sums.tokens_KF[task]) == min(task_gradients.NUM_FOLDS, of_task.sum())
    assert sum(seen) == len(train)


def test_whitened_sums_do_not_know_how_loud_a_part_is(monkeypatch):
    base, corpus, layout, theta_P = setting()
    sums = fold_sums(CONFIG, corpus, base, layout, theta_P)
    monkeypatch.setattr(task_gradients, "_whiten_", lambda *_: None)
    plain = fold_sums(CONFIG, corpus, base, layout, theta_P)
    assert sums.score_KFQ.shape == plain.score_KFQ.shape
    power = [(part**2).sum() for part in np.split(sums.score_KFQ, np.cumsum(layout.sizes)[:-1], axis=2)]
    loud = [(part**2).sum() for part in np.split(plain.score_KFQ, np.cumsum(layout.sizes)[:-1], axis=2)]
    assert max(power) / min(power) < max(loud) / min(loud)


def test_folded_sides_keep_inner_products_on_average(monkeypatch):
    base, corpus, layout, theta_P = setting()
    monkeypatch.setattr(task_gradients, "_whiten_", lambda *_: None)
    whole = fold_sums(CONFIG, corpus, base, layout, theta_P).score_KFQ.sum(1)
    monkeypatch.setattr(task_gradients, "WIDEST", 8)
    grams = []
    for seed in range(30):
        config = load_config(["train.device=cpu", "train.batch_size=64", "lora.rank=2", f"train.seed={seed}"])
        folded = fold_sums(config, corpus, base, layout, theta_P).score_KFQ.sum(1)
        assert folded.shape[1] < whole.shape[1]
        grams.append(folded @ folded.T)
    grams, true_KK = np.array(grams), whole @ whole.T
    error_KK = grams.std(0) / np.sqrt(len(grams))
    assert (np.abs(grams.mean(0) - true_KK) < 4.5 * error_KK + 1e-6).all()
