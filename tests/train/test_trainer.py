"""Laws of a fit, in float64: the limits, the estimate of the gradient, resuming, and what may not change a result."""

import copy
import functools
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig as PeftConfig
from peft import get_peft_model
from peft.optimizers import create_loraplus_optimizer
from tiny import VOCABULARY, all_but_first, make_base, make_corpus
from torch._dynamo.exc import FailOnRecompileLimitHit
from torch.nn import functional as F

from bora_sweep.config import Config, load_config
from bora_sweep.data.batches import collate, training_batches
from bora_sweep.data.tokens import TokenizedCorpus
from bora_sweep.errors import InputError
from bora_sweep.model import adapted as adapted_module
from bora_sweep.model.layout import make_layout
from bora_sweep.process import Interrupted
from bora_sweep.train import device, evaluate
from bora_sweep.train import fit as fit_module
from bora_sweep.train import step as step_module
from bora_sweep.train.checkpoint import record_oom
from bora_sweep.train.device import make_accelerator, set_up_gpu
from bora_sweep.train.evaluate import score, score_documents
from bora_sweep.train.fit import finish, fit, run_epoch, validate
from bora_sweep.train.make_trainer import make_trainer
from bora_sweep.train.pack import Pack
from bora_sweep.train.resume import start_or_resume
from bora_sweep.train.state import Fit, Start, StepReport
from bora_sweep.train.step import step
from bora_sweep.train.trainer import Trainer
from bora_sweep.trials.outcome import write_result

SETTINGS = ["lora.rank=2", "train.device=cpu", "train.batch_size=6", "train.max_epochs=3", "train.learning_rate=0.01"]


GOLDEN = [
    4.3046200144, 4.2319664403, 4.2166910025, 4.1414858812, 3.8588036869,
    4.1667341486, 4.2641380407, 3.8908008875, 4.1974525241, 3.7566220106,
]  # fmt: skip


def make_config(*settings: str) -> Config:
    return load_config([*SETTINGS, *settings])


def trainer_of(config: Config, corpus: TokenizedCorpus, base) -> Trainer:
    return make_trainer(config, Pack(config, corpus, base, make_accelerator(config)))


def curve(state) -> list[tuple]:
    return [(r["epoch"], r["split"], r["nll_nats"], r["log_prior"]) for r in state.curve]


def same_fit(one, other) -> None:
    assert curve(one.state) == curve(other.state)
    assert torch.equal(one.theta_KP, other.theta_KP)
    assert torch.equal(one.mean_P, other.mean_P)
    assert all((one.nll_nats[split] == other.nll_nats[split]).all() for split in one.nll_nats)


@functools.cache
def whole_fit(*settings: str) -> tuple[Fit, list[StepReport]]:
    """An uninterrupted fit in one piece, and its steps. Several tests compare theirs with it."""
    steps: list[StepReport] = []
    return fit(make_config(*settings), make_corpus(), make_base(), on_step=steps.append), steps


@pytest.mark.parametrize("parametrization", ["noncentered", "centered"])
def test_the_steps_of_an_epoch_average_to_the_gradient_of_the_whole(parametrization):
    corpus, base = make_corpus(), make_base()
    trainer = trainer_of(make_config(f"prior.parametrization={parametrization}", "prior.tau=3"), corpus, base)
    with torch.no_grad():
        for bank in trainer.hierarchy.parameters():
            bank.add_(0.3 * torch.randn_like(bank))
    batches = training_batches(corpus, 5, seed=0, epoch=1)
    assert len({len(batch) for batch in batches}) > 1  # the last is smaller

    def gradient(documents, weight):
        trainer.hierarchy.zero_grad()
        nll = score(trainer.pack, [trainer], collate(corpus, documents))[0].sum()
        (weight * nll / trainer.pack.protocol.objective_tokens).backward()
        return torch.cat([bank.grad.flatten() for bank in trainer.hierarchy.parameters() if bank.grad is not None])

    mean = sum(gradient(batch, len(batches)) for batch in batches) / len(batches)
    torch.testing.assert_close(mean, gradient(corpus.split("train"), 1))


def full_batch(*settings: str) -> Config:
    """One step an epoch, on all documents, unclipped, so that fits of parts of the data can be compared."""
    return make_config("train.batch_size=1000", "train.max_grad_norm=null", *settings)


def run_epochs(trainer: Trainer, count: int) -> Trainer:
    """Train, past any early stop, with Adam's eps so small that the scale of the objective does not show."""
    for group in trainer.optimizer.param_groups:
        group["eps"] = 1e-30
    for _ in range(count):
        run_epoch(trainer.pack, [trainer])
    trainer.pack.close()
    return trainer


def test_tau_0_equals_separate_fits():
    sizes = {"a": 16, "b": 10, "c": 8}
    together = make_corpus(sizes)
    base = make_base()
    joint = run_epochs(trainer_of(full_batch("prior.tau=0"), together, base), 6)
    for index, task in enumerate(sizes):
        only = together.documents["task"].to_numpy() == index
        alone = run_epochs(trainer_of(full_batch("prior.tau=inf"), take(together, only, task), base), 6)
        theta_P = alone.hierarchy.mean_P.detach()
        torch.testing.assert_close(joint.hierarchy.theta_KP()[index], theta_P, rtol=0, atol=1e-9)


def rewritten(corpus: TokenizedCorpus, task: int, lengthen: int = 0) -> TokenizedCorpus:
    """The corpus with other words in one task's documents, each longer by some tokens."""
    rng = np.random.default_rng(7)
    pieces = np.split(corpus.tokens, corpus.offsets[1:-1])
    own = corpus.documents["task"].to_numpy() == task
    for n in np.flatnonzero(own):
        words = rng.integers(3, 40, len(pieces[n]) - 2 + lengthen, dtype=np.int32)
        pieces[n] = np.concatenate([pieces[n][:1], words, pieces[n][-1:]])
    documents = corpus.documents.assign(num_tokens=[len(piece) - 1 for piece in pieces])
    offsets = np.concatenate([[0], np.cumsum([len(piece) for piece in pieces])])
    return TokenizedCorpus(
        corpus.name, corpus.tasks, documents, np.concatenate(pieces), all_but_first(offsets), offsets
    )


@pytest.mark.parametrize(
    ("method", "lengthen", "patience"), [("map", 0, 8), ("map", 0, 2), ("map", 5, 2), ("fine_tuned", 0, 8)]
)
def test_at_tau_0_a_tasks_data_changes_nothing_of_any_other(method, lengthen, patience):
    """To the bit; but matrix products of other sizes (longer texts, a task that has stopped) round differently."""
    config = make_config("prior.tau=0", "train.max_epochs=8", f"train.patience={patience}", f"method={method}")
    corpus, base = make_corpus({"a": 16, "b": 40, "c": 12}), make_base()
    start_P = 0.1 * torch.randn(make_layout(base, config.lora).num_parameters, dtype=torch.float64)
    start = Start(start_P, start_P.expand(3, -1)) if method == "fine_tuned" else None
    one, other = (fit(config, text, base, start=start) for text in (corpus, rewritten(corpus, 1, lengthen)))
    assert not torch.equal(one.theta_KP[1], other.theta_KP[1])
    for task in (0, 2):
        assert one.state.best_epochs[task] == other.state.best_epochs[task]
        if patience == 8:
            assert torch.equal(one.theta_KP[task], other.theta_KP[task])
        torch.testing.assert_close(one.theta_KP[task], other.theta_KP[task], rtol=0, atol=1e-11)


def test_at_tau_0_each_task_stops_by_itself_and_then_costs_nothing():
    corpus = make_corpus({"a": 16, "b": 40, "c": 12})
    config = make_config("prior.tau=0", "train.learning_rate=0.1", "train.max_epochs=30", "train.patience=2")
    trainer = trainer_of(config, corpus, make_base())
    validate(trainer.pack, [trainer])
    validation = [score_documents(trainer.pack, [trainer], "validation")[0]]
    while trainer.stopped_by is None:
        run_epoch(trainer.pack, [trainer])
        validation.append(score_documents(trainer.pack, [trainer], "validation")[0])
    done = finish(trainer.pack, trainer)
    trainer.pack.close()
    task_N = corpus.documents["task"].to_numpy()[corpus.split("validation")]
    by_epoch = np.array([np.bincount(task_N, nll) for nll in validation])
    assert done.stopped_by == "patience"
    assert len(set(done.state.best_epochs)) > 1
    for task, best in enumerate(done.state.best_epochs):
        assert best == by_epoch[: best + 3, task].argmin()
        assert done.nll_nats["validation"][task_N == task].sum() == pytest.approx(by_epoch[best, task], rel=1e-12)
    tokens = [row["num_tokens"] for row in done.state.curve if row["split"] == "train"]
    assert tokens[0] == corpus.num_tokens("train")
    assert tokens[-1] < tokens[0]


def test_at_tau_0_a_task_that_is_left_alone_takes_a_step_for_every_batch():
    corpus = make_corpus({"a": 30, "b": 30, "c": 6})
    trainer = trainer_of(make_config("prior.tau=0", "train.batch_size=4"), corpus, make_base())
    validate(trainer.pack, [trainer])
    trainer.state.epoch, trainer.state.best_epochs = 10, [0, 0, 10]
    batches = trainer.batches(11)
    assert len(batches) == -(-len(corpus.split("train")) // 4)
    assert sum(len(batch) == 0 for batch in batches) >= len(batches) - 4
    before = trainer.hierarchy.theta_KP().clone()
    run_epoch(trainer.pack, [trainer])
    trainer.pack.close()
    assert trainer.state.step == len(batches)
    assert torch.equal(trainer.hierarchy.theta_KP()[:2], before[:2])
    assert not torch.equal(trainer.hierarchy.theta_KP()[2], before[2])


@pytest.mark.parametrize("parametrization", ["noncentered", "centered"])
def test_groups_of_parameters_have_a_tau_of_their_own(parametrization):
    corpus, base = make_corpus(), make_base()
    adamw = ["train.solver=adamw", f"prior.parametrization={parametrization}", "prior.tau=4"]
    plain, alike, firm = (
        fit(make_config(*adamw, *more), corpus, base)
        for more in (
            [],
            ["prior.groups=layer"],
            ["prior.groups=matrix", "prior.group_scales={B: 1e6}"],
        )
    )
    torch.testing.assert_close(alike.theta_KP, plain.theta_KP, rtol=0, atol=1e-12)
    names, index_P = firm.layout.parameter_groups("matrix")
    is_B = index_P == names.index("B")
    spread = [(done.theta_KP - done.mean_P)[:, is_B].norm() for done in (plain, firm)]
    assert spread[1] < 0.5 * spread[0]


def test_a_group_without_parameters_is_refused():
    config = make_config("prior.groups=layer", "prior.group_scales={layer_7: 2}")
    with pytest.raises(InputError, match=r"layer_7.*there are layer_0, layer_1"):
        trainer_of(config, make_corpus(), make_base())


def test_tasks_can_count_alike_in_the_likelihood():
    """The weights are the tasks', in a gradient: N / (D N_d) for a nat of task d."""
    corpus, base = make_corpus(), make_base()
    trainer = trainer_of(make_config("train.task_weights=tasks"), corpus, base)
    documents = corpus.documents.iloc[corpus.split("train")]
    tokens_D = documents.groupby("task")["num_tokens"].sum().to_numpy()
    expected = tokens_D.sum() / (3 * tokens_D)
    torch.testing.assert_close(trainer.weight_K, torch.from_numpy(expected))
    assert (expected * tokens_D).sum() == pytest.approx(tokens_D.sum())
    with torch.no_grad():
        trainer.hierarchy.mean_P.add_(0.3 * torch.randn_like(trainer.hierarchy.mean_P))
    gradients = []
    trainer.descend = lambda _: gradients.append(trainer.hierarchy.mean_P.grad.clone())  # type: ignore
    step(trainer.pack, [trainer], corpus.split("train"), 1)
    trainer.hierarchy.zero_grad()
    nll_B = score(trainer.pack, [trainer], collate(corpus, corpus.split("train")))[0][0]
    mean_D = torch.stack(
        [nll_B[torch.from_numpy(documents["task"].to_numpy() == d)].sum() / tokens_D[d] for d in range(3)]
    )
    mean_D.mean().backward()
    torch.testing.assert_close(gradients[0], trainer.hierarchy.mean_P.grad)
    trainer.pack.close()


def test_a_warm_start_begins_where_the_other_fit_ended():
    corpus, base = make_corpus(), make_base()
    first = fit(make_config("prior.tau=20"), corpus, base)
    start = Start(first.mean_P, first.theta_KP)
    for kind in ("noncentered", "centered"):
        again = trainer_of(make_config("prior.tau=20", f"prior.parametrization={kind}"), corpus, base)
        assert start_or_resume(again, start=start)
        validate(again.pack, [again])
        again.pack.close()
        assert again.state.best_nll_nats[0] == pytest.approx(sum(first.state.best_nll_nats), rel=1e-12)
    shared = fit(
        make_config("prior.tau=inf", "train.max_epochs=1"), corpus, base, start=replace(start, is_candidate=False)
    )
    assert shared.state.best_epoch == 1
    assert [row["epoch"] for row in shared.state.curve] == [1, 1]


@pytest.mark.parametrize(
    "settings", [["method=fine_tuned", "prior.tau=0"], ["prior.tau=20"], ["method=average", "prior.tau=inf"]]
)
def test_a_fit_that_begins_elsewhere_ends_at_its_own_best_and_never_above_its_start(settings):
    corpus, base = make_corpus(), make_base()
    shared = fit(make_config("prior.tau=inf", "train.max_epochs=8", "train.learning_rate=0.05"), corpus, base)
    begun = sum(shared.state.best_nll_nats)
    assert begun < 0.99 * fit(make_config("method=zero_shot"), corpus, base).nll_nats["validation"].sum()
    done = fit(make_config(*settings), corpus, base, start=Start(shared.mean_P, shared.theta_KP))
    assert done.nll_nats["validation"].sum() == pytest.approx(sum(done.state.best_nll_nats), rel=1e-12)
    assert sum(done.state.best_nll_nats) <= begun * (1 + 1e-12)


def test_pfedme_moves_theta_once_an_epoch_to_the_mean_of_the_tasks():
    corpus, base = make_corpus(), make_base()
    trainer = trainer_of(make_config("method=pfedme", "prior.tau=20"), corpus, base)
    before = trainer.hierarchy.mean_P.detach().clone()
    seen = []
    validate(trainer.pack, [trainer])
    run_epoch(trainer.pack, [trainer], lambda _: seen.append(trainer.hierarchy.mean_P.detach().clone()))
    trainer.pack.close()
    assert all(torch.equal(mean_P, before) for mean_P in seen)
    torch.testing.assert_close(trainer.hierarchy.mean_P.detach(), trainer.hierarchy.theta_KP().mean(0))
    assert not torch.equal(trainer.hierarchy.mean_P, before)


def take(corpus, keep, task):
    """The documents of one task as a corpus of its own."""
    rows = np.flatnonzero(keep)
    pieces = [corpus.tokens[corpus.offsets[n] : corpus.offsets[n + 1]] for n in rows]
    return TokenizedCorpus(
        name=task,
        tasks=(task,),
        documents=corpus.documents.iloc[rows].assign(task=0).reset_index(drop=True),
        tokens=np.concatenate(pieces),
        scored=np.concatenate([corpus.scored[corpus.offsets[n] : corpus.offsets[n + 1]] for n in rows]),
        offsets=np.concatenate([[0], np.cumsum([len(piece) for piece in pieces])]),
    )


@pytest.mark.parametrize("variant", ["lora", "lora_plus"])
def test_tau_inf_equals_one_peft_lora_trained_on_everything(variant):
    corpus, base, config = make_corpus(), make_base(), make_config("prior.tau=inf", f"lora.variant={variant}")
    trainer = trainer_of(config, corpus, base)
    theta_P, layout = trainer.hierarchy.mean_P.detach().clone(), trainer.pack.layout
    for _ in range(2):
        run_epoch(trainer.pack, [trainer])
    trainer.pack.close()

    peft = get_peft_model(
        copy.deepcopy(base), PeftConfig(r=2, lora_alpha=2, target_modules="all-linear", task_type="CAUSAL_LM")
    ).to(torch.float64).eval()  # fmt: skip
    weights = []
    for name, parts in layout.split(theta_P).items():
        module: Any = peft.get_submodule(f"base_model.model.{name}")
        for kind, start in parts.items():
            weight = module.get_submodule(f"lora_{kind}.default").weight
            weight.data.copy_(start)
            weights.append(weight)
    kind, ratio = torch.optim.AdamW, config.lora.learning_rate_ratio if variant == "lora_plus" else 1.0
    optimizer = create_loraplus_optimizer(peft, kind, lr=0.01, loraplus_lr_ratio=ratio, weight_decay=0.0)
    for epoch in (1, 2):
        batches = training_batches(corpus, 6, seed=0, epoch=epoch)
        for documents in batches:
            optimizer.zero_grad()
            for n in documents:
                tokens = torch.from_numpy(corpus.tokens[corpus.offsets[n] : corpus.offsets[n + 1]]).long()[None]
                nll = F.cross_entropy(peft(input_ids=tokens).logits[0, :-1], tokens[0, 1:], reduction="sum")
                (nll * len(batches) / corpus.num_tokens("train")).backward()
            torch.nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()
    expected = torch.cat([weight.detach().flatten() for weight in weights])
    torch.testing.assert_close(trainer.hierarchy.mean_P.detach(), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    "settings",
    [
        ["prior.tau=10"],
        ["prior.tau=0"],
        ["prior.tau=inf"],
        ["prior.tau=10", "prior.parametrization=centered"],
        ["prior.tau=10", "method=vi"],
        ["prior.tau=0", "train.patience=2", "train.learning_rate=0.03"],
        ["prior.tau=10", "train.global_update=mean", "lora.variant=lora_plus", "prior.groups=matrix"],
        ["prior.tau=10", "train.solver=adamw", "train.schedule=cosine", "train.warmup_steps=3"],
    ],
)
def test_a_resumed_fit_equals_an_uninterrupted_one(tmp_path, settings):
    corpus, config = make_corpus(), make_config("train.max_epochs=4", *settings)
    whole = fit(config, corpus, make_base())

    class KilledError(Exception):
        pass

    def die_in_epoch_3(report) -> None:
        if report.epoch == 3 and report.batch == 2:
            raise KilledError

    with pytest.raises(KilledError):
        fit(config, corpus, make_base(), tmp_path, on_step=die_in_epoch_3)
    epochs = []
    resumed = fit(config, corpus, make_base(), tmp_path, on_epoch=lambda state: epochs.append(state.epoch))
    assert epochs == [3, 4]
    same_fit(resumed, whole)


@pytest.mark.parametrize(
    ("setting", "calls"),
    [("prior.tau=10", calls) for calls in (1, 2, 5, 9, 14)]
    + [(setting, calls) for setting in ("prior.tau=0", "prior.tau=inf", "method=vi") for calls in (5, 14)],
)
def test_a_fit_that_is_asked_to_stop_at_any_step_goes_on_as_if_it_had_not_been(setting, calls, tmp_path):
    """Within an epoch, and while validation is scored: no step is lost, none is made twice."""
    corpus, config = make_corpus(), make_config(setting)
    whole, steps = whole_fit(setting)
    left = iter(range(calls))

    def stop() -> None:
        if next(left, None) is None:
            raise Interrupted

    cut = []
    with pytest.raises(Interrupted):
        fit(config, corpus, make_base(), tmp_path, on_step=cut.append, check_stop=stop)
    resumed = fit(config, corpus, make_base(), tmp_path, on_step=cut.append)
    same_fit(resumed, whole)
    assert [(report.epoch, report.batch) for report in cut] == [(report.epoch, report.batch) for report in steps]


@pytest.mark.parametrize(("setting", "rows"), [("prior.tau=0", 3), ("prior.tau=10", 1), ("method=vi", 3)])
def test_a_batch_that_does_not_fit_in_memory_goes_in_parts_with_the_same_result(setting, rows, monkeypatch):
    corpus, config = make_corpus(), make_config(setting)
    whole, _ = whole_fit(setting)

    def small(pack, fits, batch):
        if len(batch.task_B) > rows:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return score(pack, fits, batch)

    monkeypatch.setattr(step_module, "score", small)
    monkeypatch.setattr(evaluate, "score", small)
    parted = fit(config, corpus, make_base())
    assert parted.state.micro_batch_size == rows
    assert "out of memory with 6 documents" in parted.state.notes[0]
    for split in ("validation", "test"):
        assert parted.nll_nats[split] == pytest.approx(whole.nll_nats[split], rel=1e-9)
    torch.testing.assert_close(parted.theta_KP, whole.theta_KP, rtol=1e-6, atol=1e-9)
    assert parted.state.num_read == whole.state.num_read
    monkeypatch.setattr(
        step_module, "score", lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError("CUDA out of memory"))
    )
    with pytest.raises(torch.OutOfMemoryError):
        fit(config, corpus, make_base())


@pytest.mark.parametrize(("kills", "rows"), [(1, 3), (2, 1), (9, 1)])
def test_a_fit_whose_process_was_killed_for_its_memory_begins_again_in_smaller_parts(kills, rows, tmp_path):
    corpus, config = make_corpus(), make_config("prior.tau=10")
    whole, _ = whole_fit("prior.tau=10")
    for _ in range(kills):
        record_oom(tmp_path)
    parted = fit(config, corpus, make_base(), tmp_path)
    assert parted.state.micro_batch_size == rows
    said = f"killed for its memory with 6 documents in a forward pass; went on with {rows}"
    assert parted.state.notes == [said]
    torch.testing.assert_close(parted.theta_KP, whole.theta_KP, rtol=1e-6, atol=1e-9)


@pytest.mark.slow
def test_a_batch_that_the_hosts_memory_does_not_hold_goes_in_parts():
    """In a process whose address space may grow by a little: 64 long documents take three times as much."""
    code = """
import resource
from transformers import OPTConfig, OPTForCausalLM
from tiny import WORDS, make_frame, make_tokenizer
from bora_sweep.config import load_config
from bora_sweep.data.corpus import Corpus
from bora_sweep.data.tokens import tokenize
from bora_sweep.train.fit import fit

frame = make_frame({"a": 80}).assign(text=" ".join(2 * WORDS), split=["train"] * 64 + ["validation", "test"] * 8)
frame = frame.assign(document_id=frame.index.astype(str), floor_nll_nats=0.0)
corpus = tokenize(Corpus("made", ("a",), frame.assign(content=None), ()), make_tokenizer(), 64)
base = OPTForCausalLM(OPTConfig(
    vocab_size=48, hidden_size=256, word_embed_proj_dim=256, ffn_dim=1024, num_hidden_layers=4, num_attention_heads=4,
    max_position_embeddings=64, dropout=0.0, pad_token_id=1,
)).eval()
settings = ["train.device=cpu", "prior.tau=inf", "lora.rank=2", "train.max_epochs=1"]
fit(load_config([*settings, "train.batch_size=4"]), corpus, base)  # libraries have then loaded what they will
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (24 << 20), resource.RLIM_INFINITY))
done = fit(load_config([*settings, "train.batch_size=64"]), corpus, base)
print(done.state.micro_batch_size, done.state.epoch, *done.state.notes, sep="|")
"""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([*sys.path, str(Path(__file__).parents[1])])
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert ran.returncode == 0, ran.stderr
    rows, epoch, *notes = ran.stdout.split("|")
    assert int(rows) < 64
    assert epoch == "1"
    assert "out of memory with 64 documents" in notes[0]


def test_the_same_seed_gives_the_same_fit_and_another_seed_another():
    corpus = make_corpus()
    one, again, other = (fit(make_config(f"train.seed={seed}"), corpus, make_base()) for seed in (1, 1, 2))
    same_fit(one, again)
    assert curve(one.state) != curve(other.state)


def test_micro_batches_change_no_result():
    corpus = make_corpus()
    whole, parts = (fit(make_config(f"train.micro_batch_size={size}"), corpus, make_base()) for size in ("null", "2"))
    torch.testing.assert_close(parts.theta_KP, whole.theta_KP, rtol=0, atol=1e-10)
    assert [r["nll_nats"] for r in parts.state.curve] == pytest.approx(
        [r["nll_nats"] for r in whole.state.curve], rel=1e-12
    )


def test_the_sum_over_a_split_is_the_sum_over_its_documents():
    corpus, base = make_corpus(), make_base()
    done = fit(make_config("train.max_epochs=1"), corpus, base)
    validation = [r for r in done.state.curve if r["split"] == "validation"][done.state.best_epoch]
    assert done.nll_nats["validation"].sum() == pytest.approx(validation["nll_nats"], rel=1e-12)
    trainer = trainer_of(make_config(), corpus, base)
    trainer.hierarchy.mean_P.data.copy_(done.mean_P)
    trainer.hierarchy.task_KP.data.copy_(done.theta_KP - done.mean_P)
    for n, nll in zip(corpus.split("test"), done.nll_nats["test"], strict=True):
        alone = score(trainer.pack, [trainer], collate(corpus, np.array([n])))[0]
        assert alone.item() == pytest.approx(nll, rel=1e-10)


def test_the_best_epoch_is_kept_and_patience_ends_a_fit():
    corpus = make_corpus()
    done = fit(make_config("train.learning_rate=0.3", "train.max_epochs=40", "train.patience=3"), corpus, make_base())
    validation = [r["nll_nats"] for r in done.state.curve if r["split"] == "validation"]
    assert done.stopped_by == "patience"
    assert validation.index(min(validation)) == done.state.best_epoch == done.state.epoch - 3
    assert done.nll_nats["validation"].sum() == pytest.approx(min(validation), rel=1e-12)
    assert fit(make_config("train.max_epochs=1"), corpus, make_base()).stopped_by == "max_epochs"


@pytest.mark.parametrize("tau", [0, 10])
def test_the_last_epoch_that_patience_allows_counts(tau, monkeypatch):
    """Validation that improves at every second epoch alone never ends a fit whose patience is 2."""
    corpus = make_corpus()
    scores = iter([10.0, 11.0, 9.0, 12.0, 8.0, 9.0, 9.5, 7.0])
    size = len(corpus.split("validation"))

    def scripted(_, fits, split, *__) -> np.ndarray:
        return np.full((len(fits), size), next(scores, 0.0) if split == "validation" else 1)

    monkeypatch.setattr(fit_module, "score_documents", scripted)
    done = fit(make_config(f"prior.tau={tau}", "train.patience=2", "train.max_epochs=20"), corpus, make_base())
    assert (done.stopped_by, done.state.epoch) == ("patience", 6)
    assert set(done.state.best_epochs) == {4}


def test_zero_shot_is_the_base_model_as_it_is():
    corpus, base = make_corpus(), make_base()
    done = fit(make_config("method=zero_shot", "prior.tau=inf"), corpus, base)
    assert done.state.epoch == 0
    for n, nll in zip(corpus.split("test"), done.nll_nats["test"], strict=True):
        tokens = torch.from_numpy(corpus.tokens[corpus.offsets[n] : corpus.offsets[n + 1]]).long()[None]
        expected = F.cross_entropy(base(input_ids=tokens).logits[0, :-1], tokens[0, 1:], reduction="sum")
        assert nll == pytest.approx(expected.item(), rel=1e-10)


def test_a_loss_that_is_not_finite_ends_a_fit_at_its_best_epoch_and_names_step_tau_and_learning_rate():
    corpus = make_corpus()
    done = fit(make_config("train.learning_rate=1e300", "prior.tau=7"), corpus, make_base())
    assert all(part in done.state.diverged for part in ("step 2", "epoch 1", "tau=7", "1e+300"))
    assert (done.stopped_by, done.state.epoch, done.state.best_epoch) == ("divergence", 0, 0)
    before = fit(make_config("method=zero_shot"), corpus, make_base())
    assert done.nll_nats["test"] == pytest.approx(before.nll_nats["test"], rel=1e-12)


def test_bf16_and_accumulation_run_and_learn():
    done = fit(
        make_config("train.precision=bf16", "train.micro_batch_size=3"), make_corpus(), make_base(dtype=torch.float32)
    )
    validation = [r["nll_nats"] for r in done.state.curve if r["split"] == "validation"]
    assert validation[-1] < validation[0]


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_a_compiled_fit_equals_an_eager_one_and_its_graphs_serve_every_tau(backend, monkeypatch):
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    corpus, base = make_corpus(longest=4), make_base()  # each layer and each length of a document is compiled
    base.model.decoder.layers = base.model.decoder.layers[:1]
    torch._dynamo.reset()
    graphs = []
    for tau in (20, 500):
        settings = [f"prior.tau={tau}", "train.max_epochs=1"]
        eager, compiled = (fit(make_config(*settings, *more), corpus, base) for more in ([], ["train.compile=true"]))
        torch.testing.assert_close(compiled.theta_KP, eager.theta_KP, rtol=0, atol=1e-9)
        assert compiled.nll_nats["test"] == pytest.approx(eager.nll_nats["test"], rel=1e-9)
        assert not torch._dynamo.config.fail_on_recompile_limit_hit  # for a program's own functions
        graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert graphs[0] == graphs[1] > 0


@pytest.mark.slow
def test_each_rank_and_length_has_its_graph_and_none_is_left_out_in_silence(monkeypatch):
    """Four ranks in a process, where torch.compile by itself would stop compiling at the eighth graph."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    corpus, base = make_corpus(longest=12), make_base()
    base.model.decoder.layers = base.model.decoder.layers[:1]
    torch._dynamo.reset()
    graphs = []
    for rank in range(1, 5):
        fit(make_config(f"lora.rank={rank}", "train.max_epochs=1", "train.compile=true"), corpus, base)
        graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert np.all(np.diff(graphs) > 0)
    assert graphs[-1] > 8
    assert np.diff(graphs).max() <= 4  # with and without gradients, at the first length and at all others
    monkeypatch.setattr(adapted_module, "RECOMPILE_LIMIT", 1)
    with pytest.raises(FailOnRecompileLimitHit):
        fit(make_config("lora.rank=10", "train.max_epochs=1", "train.compile=true"), corpus, base)
    torch._dynamo.reset()


@pytest.mark.parametrize(
    "settings", [["train.length_bucket=8"], ["train.gradient_checkpointing=true"], ["train.length_bucket=1000"]]
)
@pytest.mark.parametrize("tau", ["0", "20", "inf"])
def test_buckets_and_checkpoints_do_not_change_a_fit(settings, tau):
    corpus, base = make_corpus(), make_base()
    plain, other = (fit(make_config(f"prior.tau={tau}", *more), corpus, base) for more in ([], settings))
    torch.testing.assert_close(other.theta_KP, plain.theta_KP, rtol=0, atol=1e-9)
    assert other.nll_nats["test"] == pytest.approx(plain.nll_nats["test"], rel=1e-9)


def test_a_base_in_bfloat16_has_no_autocast_beside_it():
    """Autocast would add a cast at each product, in the precision that the weights have."""
    for dtype, expected in ((torch.bfloat16, False), (torch.float32, True)):
        trainer = trainer_of(make_config("train.precision=bf16"), make_corpus(), make_base(dtype=dtype))
        with trainer.pack.autocast():
            assert torch.is_autocast_enabled("cpu") == expected


@pytest.mark.parametrize(("precision", "is_allowed"), [("no", False), ("tf32", True), ("bf16", False)])
def test_tf32_is_used_where_it_is_asked_for(precision, is_allowed):
    matmul: Any = torch.backends.cuda.matmul
    cudnn: Any = torch.backends.cudnn
    matmul.allow_tf32 = cudnn.allow_tf32 = not is_allowed
    set_up_gpu(precision)
    assert (matmul.allow_tf32, cudnn.allow_tf32) == (is_allowed, is_allowed)
    assert not torch.backends.cuda.cudnn_sdp_enabled()
    assert not matmul.allow_bf16_reduced_precision_reduction
    set_up_gpu("no")


def test_a_fit_that_goes_on_with_another_type_of_weights_says_so(tmp_path):
    corpus = make_corpus()
    interrupt = iter([None, None, None, Interrupted])

    def check_stop() -> None:
        if (error := next(interrupt, None)) is not None:
            raise error

    config = make_config("train.max_epochs=1")
    with pytest.raises(Interrupted):
        fit(config, corpus, make_base(dtype=torch.float32), tmp_path, check_stop=check_stop)
    done = fit(config, corpus, make_base(dtype=torch.bfloat16), tmp_path)
    assert done.dtype == "bfloat16"
    assert any("began with a base in float32 and went on with one in bfloat16" in note for note in done.state.notes)


def test_sequences_longer_than_the_model_are_refused():
    base = make_base()
    base.config.max_position_embeddings = 8
    with pytest.raises(InputError, match=r"model\.max_tokens"):
        trainer_of(make_config(), make_corpus(), base)


def test_large_tau_approaches_one_shared_adapter():
    corpus, base = make_corpus(), make_base()
    shared = fit(make_config("prior.tau=inf"), corpus, base)
    near = fit(make_config("prior.tau=1e9"), corpus, base)
    assert near.nll_nats["test"].sum() == pytest.approx(shared.nll_nats["test"].sum(), rel=1e-4)
    assert near.state.best_nll_nats == pytest.approx(shared.state.best_nll_nats, rel=1e-4)


def test_the_golden_curve():
    """Ten steps of a small model: a change of the numerics shows here. Made by this very test's fit."""
    settings = ["prior.tau=30", "train.batch_size=4", "train.max_epochs=2", "train.learning_rate=0.02"]
    config = make_config(*settings, "lora.target_modules=[q_proj,v_proj]")
    reports = []
    fit(config, make_corpus(), make_base(), on_step=reports.append)
    curve = [report.nll_nats / report.num_tokens for report in reports]
    assert curve == pytest.approx(GOLDEN, rel=1e-7)


def silenced(config: Config, corpus: TokenizedCorpus, base, tokens: set[int]) -> Trainer:
    """A trainer whose base gives no numbers for these tokens, as one whose weights overflow."""
    trainer = trainer_of(config, corpus, base)
    embedding = base.get_input_embeddings()
    embedding.register_forward_hook(
        lambda _, inputs, output: output.masked_fill(torch.isin(inputs[0], torch.tensor([*tokens]))[..., None], np.nan)
    )
    return trainer


@pytest.mark.parametrize("tau", ["0", "10"])
def test_a_fit_without_a_finite_validation_loss_has_diverged(tau):
    config, corpus = make_config(f"prior.tau={tau}"), make_corpus()
    trainer = silenced(config, corpus, make_base(), set(range(VOCABULARY)))
    validate(trainer.pack, [trainer])
    assert trainer.stopped_by == "divergence"
    assert "the validation loss is nan at step 0" in (trainer.state.diverged or "")


def test_a_task_without_a_finite_validation_loss_stops_no_other_at_tau_0():
    config, corpus = make_config("prior.tau=0"), make_corpus()
    trainer = silenced(config, corpus, make_base(), set())
    nll_N = np.ones(len(corpus.split("validation")))
    nll_N[corpus.documents["task"].to_numpy()[corpus.split("validation")] == 1] = np.nan
    trainer.update_best(nll_N, 0.0)
    assert trainer.state.diverged is None
    assert [np.isfinite(nats) for nats in trainer.state.best_nll_nats] == [True, False, True]


def test_scores_that_are_no_numbers_are_no_result(tmp_path):
    config, corpus, base = make_config("train.max_epochs=1"), make_corpus(), make_base()
    done = fit(config, corpus, base)
    done.nll_nats["test"][3] = np.nan
    with pytest.raises(
        InputError, match=r"1 document of validation and test have a score of nan, the first '\d+' of task"
    ):
        write_result(config, corpus, done, run=tmp_path, trial_id="fit", row={})
    assert not list(tmp_path.iterdir())


def test_a_gpu_runs_no_attention_that_plans_for_each_shape(monkeypatch):
    class OnGpu:
        device = torch.device("cuda")

    monkeypatch.setattr(device, "Accelerator", lambda **_: OnGpu())
    before = torch.backends.cuda.cudnn_sdp_enabled()
    try:
        torch.backends.cuda.enable_cudnn_sdp(True)
        make_accelerator(make_config("train.device=auto"))
        assert not torch.backends.cuda.cudnn_sdp_enabled()
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)


def test_a_step_is_cut_by_what_a_pass_costs_on_its_device(monkeypatch):
    corpus = make_corpus({"a": 200, "b": 100})
    trainer = trainer_of(make_config("train.batch_size=64", "train.batches=fixed"), corpus, make_base())
    batch = trainer.batches(1)[0]
    assert len(trainer.pack.forward_batches(batch)) > 1
    monkeypatch.setitem(device.PASS_TOKENS, "cpu", 10**6)
    assert len(trainer.pack.forward_batches(batch)) == 1
