"""New tasks under a Theta that is held: each is the MAP by its own documents, whoever else is in the file."""

import math
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from tiny import make_base, make_frame, make_tokenizer

from bora_sweep.config import load_config
from bora_sweep.data.batches import ADD_STEPS, batches_of_task, collate, task_batches
from bora_sweep.data.corpus import Corpus
from bora_sweep.data.tokens import TokenizedCorpus, tokenize
from bora_sweep.model.adapted import AdaptedModel
from bora_sweep.model.layout import make_layout
from bora_sweep.model.likelihood import Likelihood
from bora_sweep.train.fit import fit
from bora_sweep.train.methods.add import converged_at
from bora_sweep.train.state import Fit, Start

SIZES = {"tiny": 1, "few": 5, "some": 9, "more": 30, "most": 120}
HELD_OUT = ("more", "most")


def frame_of() -> pd.DataFrame:
    """Tasks of very unlike sizes; the two large ones hold out a quarter each to validate and to test."""
    frame = make_frame(SIZES, seed=1)
    place, large = frame.groupby("task").cumcount(), frame["task"].isin(HELD_OUT)
    frame["split"] = np.select([large & (place % 4 == 2), large & (place % 4 == 3)], ["validation", "test"], "train")
    return frame.assign(content=None, document_id=[str(i) for i in range(len(frame))], floor_nll_nats=np.nan)


def corpus_of(*tasks: str) -> TokenizedCorpus:
    frame = frame_of()
    frame = frame[frame["task"].isin(tasks)].reset_index(drop=True)
    return tokenize(Corpus("made", tasks, frame, ()), make_tokenizer(), max_tokens=16)


def add(corpus: TokenizedCorpus, *settings: str, start: Start | None = None) -> Fit:
    config = load_config(
        ["method=add", "prior.tau=30", "train.batch_size=8", "train.learning_rate=0.02", "lora.rank=2",
         "train.max_epochs=12", "train.patience=3", "train.max_grad_norm=null", "train.device=cpu",
         "lora.target_modules=all-linear", *settings]
    )  # fmt: skip
    base = make_base()
    mean_P = Theta(base, config)
    return fit(config, corpus, base, start=start or Start(mean_P, mean_P.expand(corpus.num_tasks, -1)))


def Theta(base, config) -> torch.Tensor:
    """A Theta that is not the initial adapter, as that of a run."""
    layout = make_layout(base, config.lora)
    generator = torch.Generator().manual_seed(3)
    noise_P = torch.randn(layout.num_parameters, generator=generator, dtype=torch.float64)
    return layout.initial(base, 0, torch.float64) + 0.05 * noise_P


def test_tasks_that_are_added_together_get_what_each_gets_alone():
    """Also beside a task with many more documents, and the tasks that have none to validate on."""
    together = add(corpus_of(*SIZES))
    for d, task in enumerate(SIZES):
        alone = add(corpus_of(task))
        torch.testing.assert_close(together.theta_KP[d], alone.theta_KP[0], rtol=0, atol=1e-9)
        assert together.state.best_epochs[d] == alone.state.best_epochs[0] > 0
        assert (together.theta_KP[d] - together.mean_P).norm() > 0.01
    assert len(set(together.state.best_epochs)) > 2  # tasks end at epochs of their own


def test_the_order_of_the_tasks_does_not_matter():
    first, second = add(corpus_of("few", "more")), add(corpus_of("more", "few"))
    torch.testing.assert_close(first.theta_KP, second.theta_KP.flip(0), rtol=0, atol=1e-9)


@pytest.mark.parametrize("tau", ["0", "30", "inf"])
def test_theta_does_not_move(tau):
    corpus = corpus_of("few", "more")
    done = add(corpus, f"prior.tau={tau}")
    mean_P = Theta(make_base(), load_config(["lora.rank=2", "lora.target_modules=all-linear"]))
    assert torch.equal(done.mean_P, mean_P)
    moved_K = (done.theta_KP - mean_P).norm(dim=1)
    assert (moved_K == 0).all() if tau == "inf" else (moved_K > 0.01).all()
    assert (done.state.step == 0) == (tau == "inf")


@pytest.mark.parametrize("tau", [30.0, 3000.0])
def test_a_task_without_validation_documents_comes_near_its_own_map(tau):
    """nll_d + tau/2 ||theta_d - Theta||^2 has come most of the way to its minimum, as L-BFGS finds it."""
    corpus = corpus_of("few", "tiny")
    done = add(corpus, f"prior.tau={tau}", "train.max_epochs=100")
    adapted = AdaptedModel(make_base(), done.layout)
    for d in (0, 1):
        batch = collate(corpus, np.array([n for n in corpus.sequences("train") if corpus.task_C[n] == d]))
        objective = partial(negative_log_posterior, adapted, batch, done.mean_P, tau)
        with torch.no_grad():
            start, end = objective(done.mean_P), objective(done.theta_KP[d])
        lowest = minimum(objective, done.mean_P) - 1e-9
        assert lowest <= end < lowest + 0.15 * (start - lowest), d
    assert done.stopped_by == "steps"
    assert max(done.state.best_epochs) < 60


def negative_log_posterior(adapted: AdaptedModel, batch, mean_P, tau: float, theta_P: torch.Tensor) -> torch.Tensor:
    place_M = torch.from_numpy(np.flatnonzero(batch.scored_BT))
    likelihood = Likelihood(adapted, [_OneAdapter(theta_P)])  # type: ignore[list-item]
    task_B = torch.zeros(len(batch.task_B), dtype=torch.long)
    nll = likelihood(torch.from_numpy(batch.tokens_BT), place_M, task_B).sum()
    return nll + tau / 2 * (theta_P - mean_P).square().sum()


def minimum(objective, start_P: torch.Tensor) -> torch.Tensor:
    theta_P = start_P.clone().requires_grad_()
    solver = torch.optim.LBFGS([theta_P], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        solver.zero_grad()
        value = objective(theta_P)
        value.backward()
        return value

    solver.step(closure)
    return objective(theta_P).detach()


class _OneAdapter:
    """What `Likelihood` asks of a hierarchy, for one adapter."""

    def __init__(self, theta_P: torch.Tensor) -> None:
        self.theta_P = theta_P

    def theta_BP(self, task_B: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
        return self.theta_P.to(dtype or self.theta_P.dtype).expand(len(task_B), -1)


@pytest.mark.parametrize(
    ("nats", "epoch"),
    [
        ([10, 5, 4.9, 4.8], 2),  # a fall of 5.1, of which the last epoch brought 0.1
        ([10, 9, 8, 7, 6], 5),  # as fast as at first
        ([10, 11, 9], 1),  # no fall at all
        ([10, 9, 8, 7, 6, 5, 4, 3, 2.8], 9),  # of 8 epochs the last two count: 1.2 of 7.2
        ([10, 9, 8, 7, 6, 5, 4, 3.9, 3.8], 7),
        ([10, float("nan")], 1),
        ([10], 1),
    ],
)
def test_an_objective_has_converged_where_a_quarter_of_its_steps_brought_little(nats, epoch):
    for scale in (1.0, 1e6):
        assert converged_at(scale * np.array(nats)[:, None]).tolist() == [epoch]


def test_a_prior_that_is_weak_is_bounded_by_the_steps_of_the_run():
    """The steps are rounded up to an epoch; 0 steps leave the task at Theta."""
    corpus = corpus_of("few", "some")
    for steps, epochs in ((0, 0), (1, 1), (ADD_STEPS, 1), (ADD_STEPS + 1, 2)):
        done = add(corpus, f"train.steps_without_validation={steps}", "prior.tau=0.001")
        assert done.state.best_epochs == [epochs, epochs]
        assert done.state.step == epochs * ADD_STEPS
        assert done.stopped_by == "steps"


def test_without_validation_documents_theta_is_no_candidate():
    """No sum over no documents chooses epoch 0."""
    done = add(corpus_of("few", "tiny"))
    assert min(done.state.best_epochs) > 0
    assert done.nll_nats["validation"].size == done.nll_nats["test"].size == 0


def test_a_task_that_is_fitted_anew_starts_from_its_adapter():
    corpus = corpus_of("more", "few")
    mean_P = Theta(make_base(), load_config(["lora.rank=2", "lora.target_modules=all-linear"]))
    theta_KP = torch.stack([mean_P + 0.3, mean_P])
    done = add(corpus, "train.steps_without_validation=0", start=Start(mean_P, theta_KP))
    torch.testing.assert_close(done.theta_KP[1], mean_P, rtol=0, atol=0)
    first = next(row for row in done.state.curve if row["split"] == "validation")
    at_theta = add(corpus, "train.steps_without_validation=0").state.curve[0]
    assert first["epoch"] == at_theta["epoch"] == 0
    assert first["nll_nats"] != pytest.approx(at_theta["nll_nats"], rel=1e-3)


def test_each_pass_of_a_task_is_all_of_its_documents_once():
    corpus = corpus_of(*SIZES)
    for d in range(len(SIZES)):
        own = [n for n in corpus.sequences("train") if corpus.task_C[n] == d]
        per_pass = batches_of_task(corpus, d, 8)
        assert per_pass == max(1, round(len(own) / 8))
        steps = [batch for epoch in range(1, 13) for batch in task_batches(corpus, 8, 0, epoch, np.array([d]))]
        assert len(steps) == 12 * ADD_STEPS
        passes = [steps[i : i + per_pass] for i in range(0, len(steps) - per_pass + 1, per_pass)]
        for parts in passes:
            assert sorted(np.concatenate(parts).tolist()) == own
        if per_pass > 1:
            assert any((a != b).any() for a, b in zip(passes[0], passes[1], strict=True) if len(a) == len(b))


def test_a_learning_rate_that_falls_does_so_over_the_steps_of_an_add():
    done = add(corpus_of("few"), "train.schedule=linear", "prior.tau=0")
    rates = [row["learning_rate"] for row in done.state.curve if row["split"] == "train"]
    expected = [0.02 * (1 - epoch / 12) for epoch in range(1, len(rates) + 1)]
    assert rates == pytest.approx(expected)
    assert not math.isnan(rates[0])
