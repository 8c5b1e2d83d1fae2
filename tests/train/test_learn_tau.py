"""`prior.tau=learn`: the question that is asked, how tau moves by it, and what a fit that learns it leaves."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny import make_base, make_frame, make_tokenizer

from bora_sweep.config import LEARNT_START, Config, load_config, with_values
from bora_sweep.data.corpus import Corpus
from bora_sweep.data.tokens import TokenizedCorpus, tokenize
from bora_sweep.errors import InputError
from bora_sweep.model.grouped_hierarchy import GroupedHierarchy
from bora_sweep.model.prior import log_prior
from bora_sweep.process import Interrupted
from bora_sweep.runs.results import read_results
from bora_sweep.train.device import make_accelerator
from bora_sweep.train.evaluate import score_documents
from bora_sweep.train.fit import fit, run_epoch
from bora_sweep.train.make_trainer import make_trainer
from bora_sweep.train.methods import learn_tau
from bora_sweep.train.methods.learn_tau import (
    GAIN,
    SMALLER,
    LearnTauTrainer,
    deviations_times,
    moved_scales,
    standard_errors,
)
from bora_sweep.train.pack import Pack
from bora_sweep.trials.trial import Trial, run_trial
from bora_sweep.tune.points import LEARNT, preset_points, trial_config


def config_of(*settings: str) -> Config:
    return load_config(
        ["train.max_epochs=4", "train.batch_size=4", "train.learning_rate=0.03", "lora.rank=2", "train.patience=4",
         "lora.target_modules=all-linear", "train.device=cpu", "prior.tau=learn", *settings]
    )  # fmt: skip


@pytest.fixture(scope="module")
def corpus() -> TokenizedCorpus:
    frame = make_frame({"a": 16, "b": 12, "c": 8})
    place = frame.groupby("task").cumcount()
    frame["split"] = np.select([place % 4 < 2, place % 4 == 2], ["train", "validation"], "test")
    frame = frame.assign(content=None, document_id=[str(i) for i in range(len(frame))], floor_nll_nats=np.nan)
    return tokenize(Corpus("made", ("a", "b", "c"), frame, ()), make_tokenizer(), max_tokens=16)


@pytest.fixture(scope="module")
def base():
    return make_base(dtype=torch.float64)


def test_gains_in_standard_errors():
    rng = np.random.default_rng(0)
    z = [standard_errors(rng.normal(size=200)) for _ in range(2000)]
    assert np.mean(z) == pytest.approx(0, abs=0.07)
    assert np.std(z) == pytest.approx(1, abs=0.05)
    assert standard_errors(np.zeros(3)) == 0
    assert standard_errors(np.array([2.0, 2.0, 2.0, 2.0])) == 2


def test_scales_keep_their_mean_and_are_drawn_to_each_other():
    rng = np.random.default_rng(1)
    scale_G = np.exp(rng.normal(size=6)).tolist()
    moved = moved_scales(scale_G, rng.normal(size=6))
    assert np.log(moved).mean() == pytest.approx(0, abs=1e-12)
    z_G = np.array([9.0, -9.0, 0, 0, 0, 0])
    for _ in range(200):
        scale_G = moved_scales(scale_G, z_G)
    limit = GAIN * (1 - learn_tau.PULL) / learn_tau.PULL
    assert np.log(scale_G) == pytest.approx(limit * np.array([1, -1, 0, 0, 0, 0]), rel=1e-3, abs=1e-3)


@pytest.mark.parametrize(
    ("num_batches", "question", "steps"),
    [(9, 3, 8), (4, 1, 4), (1, 9, 1), (1600, 4, 200), (35, 12.25, 16), (35, 99, 35), (100, 1, 12)],
)
def test_questions_are_once_an_epoch_or_more_and_cost_less_than_training(num_batches, question, steps):
    found = learn_tau.interval(num_batches, question)
    assert found == steps
    assert found == num_batches or question / found <= learn_tau.SCORING


@pytest.mark.parametrize(("true_tau", "noise"), [(4.0, 1.0), (0.5, 3.0), (30.0, 0.5)])
def test_in_the_conjugate_model_deviations_come_to_a_ninth_above_those_that_predict_best(true_tau, noise):
    """delta_d ~ N(0, 1/tau), n observations of variance s^2 each: the posterior mean is n / (n + tau s^2) times their
    mean. Held-out text is likeliest at the true tau, which is also the maximum of the marginal likelihood."""
    rng = np.random.default_rng(2)
    num_tasks, n = 100_000, 6
    delta_K = rng.normal(size=num_tasks) / math.sqrt(true_tau)
    mean_K = delta_K + noise / math.sqrt(n) * rng.normal(size=num_tasks)
    held_out_K = delta_K + noise / 5 * rng.normal(size=num_tasks)  # the mean of 25 observations
    tau = 300.0
    for number in range(100):
        at_K = n / (n + tau * noise**2) * mean_K
        now_K, smaller_K = (0.5 * ((held_out_K - factor * at_K) / noise) ** 2 for factor in (1, SMALLER))
        gain = GAIN / (1 + number / 20)  # so many tasks know the answer; at the full gain tau would move to and fro
        tau *= math.exp(gain * math.tanh(standard_errors(now_K - smaller_K) / 2))
    best = 1 / (np.square(mean_K).mean() - noise**2 / n)  # closed form, Gaussian marginal of variance 1/tau + s^2/n
    assert best == pytest.approx(true_tau, rel=0.1)
    factor_at_learnt, factor_at_best = (n / (n + tau * noise**2) for tau in (tau, best))
    assert factor_at_learnt == pytest.approx(factor_at_best / 0.9, rel=0.02)


@pytest.mark.parametrize("settings", [(), ("prior.parametrization=centered",), ("train.update=present",)])
def test_smaller_deviations_are_what_documents_are_scored_with(corpus, base, settings):
    config = config_of(*settings)
    with Pack(config, corpus, base, make_accelerator(config)) as pack:
        trainer = make_trainer(config, pack)
        assert isinstance(trainer, LearnTauTrainer)
        torch.manual_seed(0)
        mean_P = trainer.hierarchy.mean_P.detach() + 0.1 * torch.randn_like(trainer.hierarchy.mean_P)
        theta_KP = mean_P + 0.3 * torch.randn(3, len(mean_P), dtype=mean_P.dtype)
        trainer.hierarchy.set_adapters_(mean_P, theta_KP)
        with deviations_times(trainer, 0.8):
            scaled_N = score_documents(pack, [trainer], "validation")[0]
        as_they_are_N = score_documents(pack, [trainer], "validation")[0]
        trainer.hierarchy.set_adapters_(mean_P, mean_P + 0.8 * (theta_KP - mean_P))
        np.testing.assert_allclose(scaled_N, score_documents(pack, [trainer], "validation")[0], rtol=1e-12)
        assert np.abs(scaled_N - as_they_are_N).max() > 1e-3


def test_without_a_move_it_is_the_fit_at_the_start(corpus, base, monkeypatch):
    monkeypatch.setattr(learn_tau, "GAIN", 0.0)
    learnt = fit(config_of(), corpus, base)
    at_start = fit(config_of(f"prior.tau={LEARNT_START}"), corpus, base)
    assert torch.equal(learnt.theta_KP, at_start.theta_KP)
    assert learnt.state.best_tau == LEARNT_START


@pytest.mark.parametrize("groups", ["all", "matrix", "layer", "task"])
@pytest.mark.parametrize("solver", ["proximal", "adamw"])
def test_the_step_has_the_tau_that_was_learnt(corpus, base, groups, solver):
    """After a question the optimiser's precision, and the density of the prior, are those of the state."""
    config = config_of(f"prior.groups={groups}", f"train.solver={solver}")
    with Pack(config, corpus, base, make_accelerator(config)) as pack:
        trainer = make_trainer(config, pack)
        assert isinstance(trainer, LearnTauTrainer)
        torch.manual_seed(0)
        theta_KP = torch.randn_like(trainer.hierarchy.theta_KP())
        trainer.hierarchy.set_adapters_(trainer.hierarchy.mean_P.detach(), theta_KP)
        trainer._ask()
        assert trainer.state.tau not in (None, LEARNT_START)
        scales = [trainer.state.scales[name] for name in trainer.group_names]
        assert (
            len(trainer.group_names)
            == len(trainer.state.scales)
            == {"all": 0, "matrix": 2, "layer": 2, "task": 3}[groups]
        )
        tau_KP = torch.full_like(theta_KP, trainer.state.tau)
        if groups == "task":
            tau_KP *= torch.tensor(scales, dtype=torch.float64)[:, None]
        elif groups != "all":
            tau_KP *= torch.tensor(scales, dtype=torch.float64)[pack.layout.parameter_groups(groups)[1]]
        expected = log_prior(trainer.hierarchy.delta_KP(), 0.0, tau_KP)
        torch.testing.assert_close(trainer.hierarchy.log_prior(), expected, rtol=1e-12, atol=0)
        (group,) = [g for g in trainer.optimizer.param_groups if g["params"][0] is trainer.hierarchy.task_KP]
        used = torch.as_tensor(group["prior_precision"], dtype=torch.float64) * trainer.prior_tokens
        wanted = tau_KP if solver == "proximal" else torch.zeros_like(tau_KP)
        torch.testing.assert_close(used.expand_as(tau_KP), wanted, rtol=1e-12, atol=0)


def test_rows_that_a_step_exchanges_have_the_tau_that_was_learnt(corpus, base):
    config = config_of("train.update=present")
    with Pack(config, corpus, base, make_accelerator(config)) as pack:
        trainer = make_trainer(config, pack)
        assert isinstance(trainer, LearnTauTrainer)
        run_epoch(pack, [trainer])
        run_epoch(pack, [trainer])
        assert trainer.state.tau not in (None, LEARNT_START)
        used = {id(g["params"][0]): g["prior_precision"] for g in trainer.optimizer.param_groups}
        assert used.pop(id(trainer.hierarchy.mean_P)) == 0
        assert list(used.values()) == [trainer.state.tau / trainer.prior_tokens]


@pytest.fixture(scope="module")
def grouped(corpus) -> TokenizedCorpus:
    return replace(corpus, groups=("x", "y"), group_K=np.array([0, 1, 0]))


GROUPS = ("data.group_column=group", "data.path=made.csv")


def test_with_a_level_of_groups_both_precisions_are_learnt(grouped, base, tmp_path):
    row = run_trial(Trial("fit", config_of(*GROUPS)), grouped, lambda: base, tmp_path)
    assert row["tau_learnt"]
    assert len({row["tau"], row["tau_2"], LEARNT_START}) == 3
    assert json.loads(row["config_json"])["prior"]["tau_2"] == row["tau_2"]


def test_a_tau_2_that_is_given_is_held(grouped, base):
    done = fit(config_of(*GROUPS, "prior.tau_2=7"), grouped, base)
    assert done.state.best_tau_2 is None
    assert done.state.best_tau != LEARNT_START


def test_groups_nearer_to_the_whole_are_what_documents_are_scored_with(grouped, base):
    config = config_of(*GROUPS)
    with Pack(config, grouped, base, make_accelerator(config)) as pack:
        trainer = make_trainer(config, pack)
        assert isinstance(trainer, LearnTauTrainer)
        hierarchy = trainer.hierarchy
        assert isinstance(hierarchy, GroupedHierarchy)
        torch.manual_seed(0)
        with torch.no_grad():
            for bank in hierarchy.parameters():
                bank.add_(0.2 * torch.randn_like(bank))
        factors = {}
        for name, factor in (("task_KP", "deviation_factor"), ("group_GP", "group_factor")):
            setattr(hierarchy, factor, 0.8)
            scaled_N = score_documents(pack, [trainer], "validation")[0]
            setattr(hierarchy, factor, None)
            bank = dict(hierarchy.named_parameters())[name]
            with torch.no_grad():
                bank.mul_(0.8)
            factors[name] = scaled_N
            np.testing.assert_allclose(scaled_N, score_documents(pack, [trainer], "validation")[0], rtol=1e-12)
            with torch.no_grad():
                bank.div_(0.8)
        assert np.abs(factors["task_KP"] - factors["group_GP"]).max() > 1e-3
        trainer._ask()
        used = {id(g["params"][0]): g["prior_precision"] for g in trainer.optimizer.param_groups}
        assert used[id(hierarchy.task_KP)] == trainer.state.tau / trainer.prior_tokens
        assert used[id(hierarchy.group_GP)] == trainer.state.tau_2 / trainer.prior_tokens


def test_a_tau_of_each_task_that_is_the_same_is_one_tau(corpus, base):
    one = fit(config_of("prior.tau=20"), corpus, base)
    each = fit(config_of("prior.tau=20", "prior.groups=task"), corpus, base)
    torch.testing.assert_close(each.theta_KP, one.theta_KP, rtol=1e-9, atol=1e-12)
    tighter = fit(config_of("prior.tau=20", "prior.groups=task", "prior.group_scales={b: 1e6}"), corpus, base)
    distance_K = (tighter.theta_KP - tighter.mean_P).norm(dim=1)
    assert distance_K[1] < 1e-3 * distance_K[0]


@pytest.mark.parametrize("groups", ["all", "task"])
def test_an_interrupted_fit_resumes_with_the_numbers_it_would_have_had(corpus, base, tmp_path, groups):
    config = config_of(f"prior.groups={groups}", "train.checkpoint_minutes=1e-9")
    whole = fit(config, corpus, base, tmp_path / "whole")
    steps = 0

    def stop_once() -> None:
        nonlocal steps
        steps += 1
        if steps == 9:
            raise Interrupted

    with pytest.raises(Interrupted):
        fit(config, corpus, base, tmp_path / "cut", check_stop=stop_once)
    resumed = fit(config, corpus, base, tmp_path / "cut")
    assert torch.equal(resumed.theta_KP, whole.theta_KP)
    assert resumed.state.best_tau == whole.state.best_tau
    assert resumed.state.best_scales == whole.state.best_scales
    assert [row["learnt_tau"] for row in resumed.state.curve] == [row["learnt_tau"] for row in whole.state.curve]


@pytest.mark.parametrize("groups", ["all", "matrix", "task"])
def test_a_trial_says_which_tau_it_found(corpus, base, tmp_path, groups):
    config = config_of(f"prior.groups={groups}")
    row = run_trial(Trial("fit", config), corpus, lambda: base, tmp_path)
    results = read_results(tmp_path)
    assert row["tau_learnt"]
    assert 0 < row["tau"] < math.inf
    assert row["tau"] != LEARNT_START
    at_best = results.curves.query("split == 'validation' and epoch == @row['best_epoch']")["learnt_tau"].item()
    assert row["tau"] == at_best
    fitted = json.loads(row["config_json"])["prior"]
    assert fitted["tau"] == row["tau"]
    assert len(fitted["group_scales"]) == {"all": 0, "matrix": 2, "task": 3}[groups]
    tau_of = results.task_scores.groupby("task")["tau"].first()
    scale_of = fitted["group_scales"] if groups == "task" else dict.fromkeys("abc", 1.0)
    assert tau_of.to_dict() == pytest.approx({task: row["tau"] * scale_of[task] for task in "abc"})
    again = run_trial(Trial("fit", config), corpus, lambda: base, tmp_path)
    assert again["ended_at"] == row["ended_at"]  # it has ended, though its configuration names a number now


def test_alike_tasks_get_a_larger_tau_than_unlike_ones():
    """Two groups of sentences that every task has in equal parts, or each task one of them alone."""
    base = make_base(dtype=torch.float64)

    def learnt(is_alike: bool) -> float:
        rng = np.random.default_rng(3)
        words = np.array([f"w{i}" for i in range(40)]).reshape(4, 10)
        frame = make_frame(dict.fromkeys("abcd", 24))
        own = [rng.integers(4) if is_alike else "abcd".index(task) for task in frame["task"]]
        frame["text"] = [" ".join(rng.choice(words[group], 12)) for group in own]
        frame["split"] = np.select([frame.index % 2 == 0, frame.index % 4 == 1], ["train", "validation"], "test")
        frame = frame.assign(content=None, document_id=[str(i) for i in range(len(frame))], floor_nll_nats=np.nan)
        made = tokenize(Corpus("made", tuple("abcd"), frame, ()), make_tokenizer(), max_tokens=16)
        config = config_of("train.max_epochs=14", "train.batch_size=8", "train.learning_rate=0.02")
        done = fit(config, made, base)
        assert done.state.best_tau is not None
        return done.state.best_tau

    assert learnt(is_alike=True) > 5 * learnt(is_alike=False)


@pytest.mark.parametrize(
    "setting",
    ["method=vi", "prior.penalty=tensor_norm", "search.unseen_folds=2", "train.likelihood=documents",
     "prior.tau=learned", "prior.tau=-1"],
)  # fmt: skip
def test_settings_that_need_a_number_are_refused(setting):
    with pytest.raises(InputError, match=r"prior\.tau"):
        load_config(["prior.tau=learn", setting])


@pytest.mark.parametrize("setting", ["prior.penalty=tensor_norm", "search.unseen_folds=2", "train.padding=scored"])
def test_a_baseline_that_learns_tau_is_refused_before_the_sweep_begins(setting):
    with pytest.raises(InputError, match=r"search\.baselines=.*needs a tau that is a number"):
        load_config(["search.baselines=[independent,shared,learnt]", setting])


def test_the_other_trials_of_a_sweep_with_that_baseline_are_as_they_were():
    config = load_config(["search.baselines=[zero_shot,independent,shared,learnt]"])
    methods = [trial_config(config, point, 0).method for point in preset_points(config)]
    assert methods == ["zero_shot", "map", "map", "map"]


@pytest.mark.parametrize(("given", "expected"), [([], None), (["prior.tau_2=7"], 7.0)])
def test_that_baseline_learns_tau_2_unless_it_is_given(given, expected):
    config = load_config([*GROUPS, "search.baselines=[independent,shared,learnt]", *given])
    (learnt,) = [point for point in preset_points(config) if point.method == LEARNT]
    assert trial_config(config, learnt, 0).prior.tau_2 == expected


def test_a_tau_of_each_task_needs_all_tasks_on_the_device():
    with pytest.raises(InputError, match=r"prior\.groups=task"):
        load_config(["prior.groups=task", "train.update=present"])


def test_a_scale_of_an_unknown_task_is_refused(corpus, base):
    config = with_values(config_of("prior.tau=3"), prior={"groups": "task", "group_scales": {"d": 2.0}})
    with pytest.raises(
        InputError, match=r"prior\.group_scales=\['d'\]: no such group of prior.groups=task; there are a"
    ):
        fit(config, corpus, base)
