"""`method=fedsa` beside an explicit A of all tasks and a B of each, in float64."""

from dataclasses import replace
from itertools import count

import numpy as np
import pytest
import torch
from tiny import make_base, make_corpus
from torch import Tensor

from bora_sweep.config import Config, load_config
from bora_sweep.data.batches import collate
from bora_sweep.data.tokens import TokenizedCorpus
from bora_sweep.model.likelihood import nll_nats
from bora_sweep.process import Interrupted
from bora_sweep.train.device import make_accelerator
from bora_sweep.train.fit import fit
from bora_sweep.train.make_trainer import make_trainer
from bora_sweep.train.methods.fedsa import FedsaTrainer
from bora_sweep.train.pack import Pack
from bora_sweep.train.step import step
from bora_sweep.tune.points import Point, trial_config

SETTINGS = [
    "method=fedsa", "prior.tau=0", "lora.rank=2", "train.device=cpu", "train.batch_size=64", "train.max_epochs=3",
    "train.learning_rate=0.01", "train.max_grad_norm=null",
]  # fmt: skip


def make_config(*settings: str) -> Config:
    return load_config([*SETTINGS, *settings])


def trainer_of(config: Config, corpus: TokenizedCorpus, family: str = "opt") -> FedsaTrainer:
    trainer = make_trainer(config, Pack(config, corpus, make_base(family), make_accelerator(config)))
    assert isinstance(trainer, FedsaTrainer)
    return trainer


def is_A(trainer: FedsaTrainer) -> Tensor:
    """Whether each coordinate is of an A, by the layout's parts."""
    layout = trainer.pack.layout
    return torch.cat(
        [torch.full((size,), part.kind == "A") for part, size in zip(layout.parts, layout.sizes, strict=True)]
    )


@torch.no_grad()
def move_(trainer: FedsaTrainer) -> None:
    """Away from B = 0, where A has no gradient."""
    shared_P, hierarchy = is_A(trainer), trainer.hierarchy
    generator = torch.Generator().manual_seed(7)
    for bank, moves_P in ((hierarchy.mean_P, shared_P), (hierarchy.task_KP, ~shared_P)):
        bank.add_(moves_P * 0.1 * torch.randn(bank.shape, generator=generator, dtype=bank.dtype))


def mean_nll(trainer: FedsaTrainer, theta_KP: Tensor) -> Tensor:
    """Nats per scored token of the training split."""
    nats, num_tokens = torch.zeros((), dtype=torch.float64), 0
    for n in trainer.pack.corpus.split("train"):
        batch = collate(trainer.pack.corpus, np.array([n]))
        tokens_BT, scored_BT = torch.from_numpy(batch.tokens_BT), torch.from_numpy(batch.scored_BT)
        nats = nats + nll_nats(trainer.pack.adapted(tokens_BT, theta_KP[batch.task_B]), tokens_BT, scored_BT).sum()
        num_tokens += int(scored_BT.sum())
    return nats / num_tokens


def train_step(trainer: FedsaTrainer) -> None:
    step(trainer.pack, [trainer], trainer.pack.corpus.split("train"), 1)


def with_other_words(corpus: TokenizedCorpus, task: int) -> TokenizedCorpus:
    """Other words in the documents of one task."""
    of_task_n = np.repeat(corpus.task_C == task, np.diff(corpus.offsets))
    tokens = corpus.tokens.copy()
    other = of_task_n & (tokens > 2)
    tokens[other] = 3 + (tokens[other] + 11) % 40
    return replace(corpus, tokens=tokens)


@pytest.mark.parametrize("settings", [["train.solver=adamw"], ["train.micro_batch_size=5"], ["lora.variant=rslora"]])
def test_the_gradient_is_that_of_one_a_and_a_b_for_each_task(settings):
    trainer, gradients = trainer_of(make_config(*settings), make_corpus()), {}
    move_(trainer)
    shared_P, hierarchy = is_A(trainer), trainer.hierarchy
    A_P, B_KP = hierarchy.mean_P.detach().clone(), hierarchy.theta_KP().clone()

    def note_gradients(*_: object) -> None:
        gradients.update((name, bank.grad.clone()) for name, bank in hierarchy.named_parameters())

    trainer.optimizer.optimizer.register_step_pre_hook(note_gradients)
    train_step(trainer)
    A_P.requires_grad_()
    B_KP.requires_grad_()
    in_A_P, in_B_KP = torch.autograd.grad(mean_nll(trainer, torch.where(shared_P, A_P, B_KP)), (A_P, B_KP))
    trainer.pack.close()
    assert in_A_P[shared_P].abs().max() > 1e-4
    torch.testing.assert_close(gradients["mean_P"], in_A_P, rtol=0, atol=1e-12)
    torch.testing.assert_close(gradients["task_KP"], in_B_KP, rtol=0, atol=1e-12)


@pytest.mark.parametrize("parametrization", ["noncentered", "centered"])
def test_steps_are_those_of_adam_on_them(parametrization):
    settings = [f"prior.parametrization={parametrization}", "train.schedule=constant"]
    settings += ["train.solver=adamw"] if parametrization == "centered" else []
    trainer = trainer_of(make_config(*settings), make_corpus())
    shared_P, hierarchy = is_A(trainer), trainer.hierarchy
    A_P = hierarchy.mean_P.detach().clone().requires_grad_()
    B_KP = hierarchy.theta_KP().clone().requires_grad_()
    adam = torch.optim.Adam([A_P, B_KP], lr=0.01)
    for _ in range(4):
        adam.zero_grad()
        mean_nll(trainer, torch.where(shared_P, A_P, B_KP)).backward()
        adam.step()
        train_step(trainer)
    trainer.pack.close()
    expected_KP = torch.where(shared_P, A_P, B_KP).detach()
    assert (expected_KP - trainer.best["mean_P"])[:, shared_P].abs().max() > 0.01  # A has moved
    torch.testing.assert_close(hierarchy.theta_KP(), expected_KP, rtol=0, atol=1e-9)


def test_words_of_one_task_move_the_b_of_another_through_a_alone():
    corpus = make_corpus()
    one, other = (trainer_of(make_config(), each) for each in (corpus, with_other_words(corpus, 0)))
    shared_P, adapters = is_A(one), {}
    for trainer in (one, other):
        move_(trainer)
        train_step(trainer)
        first_KP = trainer.hierarchy.theta_KP().clone()
        train_step(trainer)
        adapters[trainer] = first_KP, trainer.hierarchy.theta_KP().clone()
        trainer.pack.close()
    (first_KP, second_KP), (other_first_KP, other_second_KP) = adapters[one], adapters[other]
    assert torch.equal(first_KP[1:, ~shared_P], other_first_KP[1:, ~shared_P])
    assert not torch.equal(first_KP[0, ~shared_P], other_first_KP[0, ~shared_P])
    assert not torch.equal(first_KP[1:, shared_P], other_first_KP[1:, shared_P])
    assert not torch.equal(second_KP[1:, ~shared_P], other_second_KP[1:, ~shared_P])


def test_all_adapters_have_one_a_and_theta_has_no_b():
    config, corpus = make_config("train.batch_size=5", "train.max_grad_norm=1"), make_corpus()
    done = fit(config, corpus, make_base())
    shared_P = is_A(trainer_of(config, corpus))
    assert (done.theta_KP[:, shared_P] == done.mean_P[shared_P]).all()
    assert (done.mean_P[~shared_P] == 0).all()
    for k in range(1, corpus.num_tasks):
        assert not torch.equal(done.theta_KP[0, ~shared_P], done.theta_KP[k, ~shared_P])


def test_with_one_task_it_is_the_fit_of_that_task():
    corpus, base = make_corpus({"a": 24}), make_base()
    for settings in (["train.batch_size=5"], ["train.batch_size=5", "lora.variant=lora_plus"]):
        one = fit(make_config(*settings), corpus, base)
        other = fit(make_config(*settings, "method=map", "prior.tau=inf"), corpus, base)
        torch.testing.assert_close(one.theta_KP, other.theta_KP, rtol=0, atol=1e-10)
        assert one.nll_nats["test"] == pytest.approx(other.nll_nats["test"], rel=1e-10)


def test_an_interrupted_fit_goes_on_with_the_numbers_that_it_would_have_had(tmp_path):
    config, corpus, calls = make_config("train.batch_size=5"), make_corpus(), count()

    def stop() -> None:
        if next(calls) == 8:
            raise Interrupted

    with pytest.raises(Interrupted):
        fit(config, corpus, make_base(), tmp_path, check_stop=stop)
    assert list(tmp_path.glob("checkpoint-*"))
    again, whole = fit(config, corpus, make_base(), tmp_path), fit(config, corpus, make_base())
    assert torch.equal(again.theta_KP, whole.theta_KP)
    assert torch.equal(again.mean_P, whole.mean_P)
    assert [row["nll_nats"] for row in again.state.curve] == [row["nll_nats"] for row in whole.state.curve]


def test_a_sweep_of_tasks_in_groups_fits_it_without_them():
    config = load_config([*SETTINGS[2:], "data.group_column=group", "data.synthetic.num_groups=2", "prior.tau_2=10"])
    chosen = trial_config(config, Point(4, 0.0, method="fedsa"), 0)
    assert (chosen.method, chosen.tau, chosen.has_group_level, chosen.is_separate) == ("fedsa", 0.0, False, False)
