"""Laws of tasks in groups, in float64: the step descends the objective, and each limit is the model that it must be."""

import math
from dataclasses import replace
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import all_but_first, make_base, make_corpus

from bora_sweep.config import Config, load_config
from bora_sweep.data.batches import collate
from bora_sweep.data.some_tasks import some_tasks
from bora_sweep.data.tokens import TokenizedCorpus
from bora_sweep.errors import InputError
from bora_sweep.model.grouped_hierarchy import GroupedHierarchy
from bora_sweep.model.likelihood import nll_nats
from bora_sweep.model.map_objective import three_level_objective
from bora_sweep.process import Interrupted
from bora_sweep.train.device import make_accelerator
from bora_sweep.train.fit import fit, fit_pack, run_epoch
from bora_sweep.train.make_trainer import make_trainer
from bora_sweep.train.pack import Pack
from bora_sweep.train.resume import start_or_resume
from bora_sweep.train.state import Fit, FitSpec, Start
from bora_sweep.train.step import step
from bora_sweep.train.trainer import Trainer

SETTINGS = [
    "lora.rank=2", "train.device=cpu", "train.batch_size=6", "train.max_epochs=3", "train.learning_rate=0.01",
]  # fmt: skip
GROUPED = ["data.group_column=group", "data.synthetic.num_groups=2"]
GROUP_K = np.array([0, 1, 0, 1])


def make_config(*settings: str, groups: bool = True) -> Config:
    return load_config([*SETTINGS, *(GROUPED if groups else []), *settings])


def taus(tau: float, tau_2: float) -> list[str]:
    return [f"prior.tau={tau}", f"prior.tau_2={tau_2}"]


def make_grouped(sizes: dict[str, int] | None = None) -> TokenizedCorpus:
    corpus = make_corpus(sizes or {"a": 14, "b": 10, "c": 8, "d": 10})
    return replace(corpus, groups=("x", "y"), group_K=GROUP_K)


def as_tasks(corpus: TokenizedCorpus) -> TokenizedCorpus:
    """The same documents, with groups in the place of tasks."""
    documents = corpus.documents.assign(task=GROUP_K[corpus.documents["task"]])
    return replace(corpus, tasks=corpus.groups, documents=documents, groups=(), group_K=None)


def grouped(fit: Trainer) -> GroupedHierarchy:
    assert isinstance(fit.hierarchy, GroupedHierarchy)
    return fit.hierarchy


def curve(done: Fit) -> list[tuple]:
    return [(r["epoch"], r["split"], r["nll_nats"], r["log_prior"]) for r in done.state.curve]


def same_fit(one: Fit, other: Fit) -> None:
    assert curve(one) == curve(other)
    assert torch.equal(one.mean_P, other.mean_P)
    assert all((one.nll_nats[split] == other.nll_nats[split]).all() for split in one.nll_nats)


def trainer_of(config: Config, corpus: TokenizedCorpus) -> Trainer:
    return make_trainer(config, Pack(config, corpus, make_base(), make_accelerator(config)))


@pytest.mark.parametrize("micro_batch_size", ["null", "5"])
def test_the_gradient_of_a_step_is_that_of_the_objective(micro_batch_size):
    """In noncentered coordinates Theta moves all that is below it, and Theta_g the tasks of its group."""
    tau, tau_2 = np.exp(np.random.default_rng().uniform(0, 8, 2)).tolist()
    alone = ["train.batch_size=64", "train.max_grad_norm=null", "train.solver=adamw"]
    config = make_config(*alone, *taus(tau, tau_2), f"train.micro_batch_size={micro_batch_size}")
    fit, group_K, gradients = trainer_of(config, make_grouped()), torch.from_numpy(GROUP_K), {}
    hierarchy = grouped(fit)
    with torch.no_grad():
        for bank in hierarchy.parameters():
            bank.add_(0.1 * torch.randn_like(bank))
    mean_P, theta_GP, theta_KP = hierarchy.mean_P.detach().clone(), hierarchy.theta_GP(), hierarchy.theta_KP()
    log_prior = hierarchy.log_prior().item()

    def note_gradients(*_: object) -> None:
        gradients.update((name, bank.grad.clone()) for name, bank in hierarchy.named_parameters())

    fit.optimizer.optimizer.register_step_pre_hook(note_gradients)
    nats, num_tokens = step(fit.pack, [fit], fit.pack.corpus.split("train"), 1)

    banks = [bank.requires_grad_() for bank in (theta_KP, theta_GP, mean_P)]
    nll = torch.zeros((), dtype=torch.float64)
    for n in fit.pack.corpus.split("train"):
        batch = collate(fit.pack.corpus, np.array([n]))
        tokens_BT, scored_BT = torch.from_numpy(batch.tokens_BT), torch.from_numpy(batch.scored_BT)
        nll = nll + nll_nats(fit.pack.adapted(tokens_BT, theta_KP[batch.task_B]), tokens_BT, scored_BT).sum()
    fit.pack.close()
    J = three_level_objective(nll, theta_KP, theta_GP, mean_P, group_K, (tau, tau_2), num_tokens)
    in_KP, in_GP, in_P = torch.autograd.grad(J, banks)
    assert (nats[0] - log_prior) / num_tokens == pytest.approx(J.item(), rel=1e-12)
    torch.testing.assert_close(gradients["task_KP"], in_KP, rtol=0, atol=1e-12)
    of_group_GP = in_GP + torch.zeros_like(in_GP).index_add_(0, group_K, in_KP)
    torch.testing.assert_close(gradients["group_GP"], of_group_GP, rtol=0, atol=1e-12)
    torch.testing.assert_close(gradients["mean_P"], in_P + of_group_GP.sum(0), rtol=0, atol=1e-12)


@pytest.mark.parametrize("tau", [3.0, math.inf, 0.0])
def test_at_tau_2_inf_groups_do_not_matter(tau):
    corpus = make_grouped()
    one = fit(make_config(*taus(tau, math.inf)), corpus, make_base())
    other = fit(make_config(f"prior.tau={tau}", groups=False), replace(corpus, groups=(), group_K=None), make_base())
    same_fit(one, other)
    assert torch.equal(one.theta_KP, other.theta_KP)
    assert one.theta_GP is None


def test_at_tau_0_no_task_knows_of_its_group():
    corpus = make_grouped()
    one, other = (fit(make_config(*taus(0, tau_2)), corpus, make_base()) for tau_2 in (5.0, math.inf))
    same_fit(one, other)
    assert torch.equal(one.theta_KP, other.theta_KP)


@pytest.mark.parametrize("tau_2", [4.0, 0.0])
def test_at_tau_inf_groups_are_the_tasks_of_the_two_level_model(tau_2):
    """tau_2 = 0: one LoRA for each group, on its own."""
    corpus = make_grouped()
    one = fit(make_config(*taus(math.inf, tau_2)), corpus, make_base())
    other = fit(make_config(f"prior.tau={tau_2}", groups=False), as_tasks(corpus), make_base())
    same_fit(one, other)
    assert one.state.best_epochs == other.state.best_epochs
    assert one.theta_GP is not None
    assert torch.equal(one.theta_GP, other.theta_KP)
    assert torch.equal(one.theta_KP, one.theta_GP[GROUP_K])


def test_at_large_tau_2_and_at_large_tau_the_limits_are_near():
    corpus, base = make_grouped(), make_base()
    for given, limit in (((3.0, 1e12), (3.0, math.inf)), ((1e12, 3.0), (math.inf, 3.0))):
        one, other = (fit(make_config(*taus(*values)), corpus, base) for values in (given, limit))
        torch.testing.assert_close(one.theta_KP, other.theta_KP, rtol=0, atol=1e-6)


def test_at_tau_2_0_each_group_is_a_two_level_fit_of_its_own():
    """One step an epoch, unclipped, and Adam's eps so small that the scale of the objective does not show."""

    def run(config: Config, corpus: TokenizedCorpus) -> Trainer:
        trainer = trainer_of(config, corpus)
        for group in trainer.optimizer.param_groups:
            group["eps"] = 1e-30
        for _ in range(5):
            run_epoch(trainer.pack, [trainer])
        trainer.pack.close()
        return trainer

    whole = ["train.batch_size=1000", "train.max_grad_norm=null"]
    corpus = make_grouped()
    together = run(make_config(*whole, *taus(3, 0)), corpus)
    for g in range(2):
        tasks = np.flatnonzero(g == GROUP_K)
        own = replace(some_tasks(corpus, tasks.tolist()), groups=(), group_K=None)
        alone = run(make_config(*whole, "prior.tau=3", groups=False), own).hierarchy
        torch.testing.assert_close(grouped(together).theta_GP()[g], alone.mean_P.detach(), rtol=0, atol=1e-9)
        torch.testing.assert_close(together.hierarchy.theta_KP()[tasks], alone.theta_KP(), rtol=0, atol=1e-9)
        assert (alone.theta_KP() - alone.mean_P).abs().max() > 1e-3


def rewritten(corpus: TokenizedCorpus, tasks: np.ndarray) -> TokenizedCorpus:
    """The corpus with other words in the documents of these tasks."""
    rng, tokens = np.random.default_rng(7), corpus.tokens.copy()
    for n in np.flatnonzero(np.isin(corpus.documents["task"], tasks)):
        start, end = corpus.offsets[n : n + 2]
        tokens[start + 1 : end - 1] = rng.integers(3, 40, end - start - 2)
    assert (corpus.scored == all_but_first(corpus.offsets)).all()
    return replace(corpus, tokens=tokens)


@pytest.mark.parametrize("tau", [5.0, math.inf])
def test_at_tau_2_0_words_of_one_group_change_no_bit_of_another(tau):
    corpus = make_grouped()
    config = make_config(*taus(tau, 0), "train.max_epochs=6", "train.patience=6")
    one, other = (fit(config, text, make_base()) for text in (corpus, rewritten(corpus, np.array([1, 3]))))
    assert one.theta_GP is not None
    assert other.theta_GP is not None
    assert one.state.best_epochs[0] == other.state.best_epochs[0]
    assert torch.equal(one.theta_GP[0], other.theta_GP[0])
    assert torch.equal(one.theta_KP[[0, 2]], other.theta_KP[[0, 2]])
    assert not torch.equal(one.theta_KP[[1, 3]], other.theta_KP[[1, 3]])


def test_fits_of_a_pack_may_differ_by_tau_2():
    corpus, base = make_grouped(), make_base()
    values = [(3.0, 0.5), (3.0, math.inf), (math.inf, 2.0), (30.0, 30.0)]
    configs = [make_config(*taus(*pair)) for pair in values]
    packed = dict(fit_pack([FitSpec(config) for config in configs], corpus, base))
    for place, config in enumerate(configs):
        alone = fit(config, corpus, base)
        torch.testing.assert_close(packed[place].theta_KP, alone.theta_KP, rtol=0, atol=1e-9)
        assert packed[place].nll_nats["test"] == pytest.approx(alone.nll_nats["test"], rel=1e-9)
    assert not make_config(*taus(3, 0)).can_be_packed


def interrupt(config: Config, corpus: TokenizedCorpus, folder: Path) -> None:
    """Leave a checkpoint of a fit that was cut off within its second epoch."""
    calls = count()

    def stop() -> None:
        if next(calls) == 8:
            raise Interrupted

    with pytest.raises(Interrupted):
        fit(config, corpus, make_base(), folder, check_stop=stop)
    assert list(folder.glob("checkpoint-*"))


@pytest.mark.parametrize("pair", [(5.0, 2.0), (5.0, 0.0), (math.inf, 2.0)])
def test_an_interrupted_fit_goes_on_with_the_numbers_that_it_would_have_had(pair, tmp_path):
    corpus, config = make_grouped(), make_config(*taus(*pair))
    interrupt(config, corpus, tmp_path)
    again, whole = fit(config, corpus, make_base(), tmp_path), fit(config, corpus, make_base())
    same_fit(again, whole)
    assert torch.equal(again.theta_KP, whole.theta_KP)
    assert torch.equal(again.theta_GP, whole.theta_GP)  # type: ignore[arg-type]


def test_the_best_epoch_has_its_own_groups():
    """At a rate that is too high the last epochs are worse, and what is returned scores as the best one did."""
    corpus = make_grouped()
    done = fit(make_config(*taus(1, 1), "train.learning_rate=0.3", "train.max_epochs=12"), corpus, make_base())
    assert 0 < done.state.best_epoch < done.state.epoch
    assert done.nll_nats["validation"].sum() == pytest.approx(sum(done.state.best_nll_nats), rel=1e-12)


@pytest.mark.parametrize("pair", [(5.0, 2.0), (math.inf, 2.0)])
def test_a_start_sets_each_group_to_its_map_given_the_tasks(pair):
    trainer = trainer_of(make_config(*taus(*pair)), make_grouped())
    trainer.pack.close()
    hierarchy, generator = grouped(trainer), torch.Generator().manual_seed(3)
    mean_P = torch.randn(hierarchy.mean_P.shape, generator=generator, dtype=torch.float64)
    theta_KP = torch.randn(4, len(mean_P), generator=generator, dtype=torch.float64)
    start_or_resume(trainer, start=Start(mean_P, theta_KP))
    if math.isinf(pair[0]):
        expected = torch.stack([theta_KP[[0, 2]].mean(0), theta_KP[[1, 3]].mean(0)])
        torch.testing.assert_close(hierarchy.theta_GP(), expected)
        return
    torch.testing.assert_close(hierarchy.theta_KP(), theta_KP)
    best, theta_GP = hierarchy.log_prior(), hierarchy.theta_GP()
    for _ in range(3):
        other_GP = theta_GP + 0.05 * torch.randn_like(theta_GP)
        nll, group_K = torch.zeros(()), torch.from_numpy(GROUP_K)
        assert -three_level_objective(nll, theta_KP, other_GP, mean_P, group_K, pair, 1) < best


def test_tasks_in_another_order_or_in_other_groups_on_a_resume(tmp_path):
    """A group keeps its row; a task that has moved to another group is refused."""
    corpus, config = make_grouped(), make_config(*taus(5, 2))
    interrupt(config, corpus, tmp_path)
    before = trainer_of(config, corpus)
    start_or_resume(before, tmp_path)
    order = [2, 0, 3, 1]
    place = np.argsort(order)
    documents = corpus.documents.assign(task=place[corpus.documents["task"]])
    turned = replace(corpus, tasks=tuple(corpus.tasks[k] for k in order), documents=documents, group_K=GROUP_K[order])
    after = trainer_of(config, turned)
    start_or_resume(after, tmp_path)
    assert grouped(before).theta_GP().abs().max() > 0
    assert torch.equal(grouped(before).theta_GP(), grouped(after).theta_GP())
    assert torch.equal(before.hierarchy.theta_KP()[order], after.hierarchy.theta_KP())
    moved = trainer_of(config, replace(corpus, group_K=np.array([0, 1, 1, 1])))
    with pytest.raises(InputError, match="task 'c' was in group 'x' and is in 'y'"):
        start_or_resume(moved, tmp_path)
    for trainer in (before, after, moved):
        trainer.pack.close()
