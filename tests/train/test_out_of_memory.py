"""Lack of memory for what no smaller pass would spare: found before the first pass, and told in one message."""

import math

import pytest
import torch
from sweeps import SMALL
from tensor_memory import LargestTensor
from tiny import make_base, make_corpus

from bora_sweep.cli import main
from bora_sweep.config import load_config
from bora_sweep.errors import InputError, one_line
from bora_sweep.model.hierarchy import Hierarchy
from bora_sweep.runs.results import trial_rows
from bora_sweep.train import optim
from bora_sweep.train import step as step_module
from bora_sweep.train.device import make_accelerator
from bora_sweep.train.evaluate import score
from bora_sweep.train.fit import fit
from bora_sweep.train.make_trainer import make_trainer
from bora_sweep.train.methods.ivon import Ivon
from bora_sweep.train.optim import ProximalAdam
from bora_sweep.train.pack import Pack
from bora_sweep.train.resume import start_or_resume
from bora_sweep.train.step import step
from bora_sweep.trials.pack_size import choose_pack
from bora_sweep.trials.trial import Trial, run_trial

SETTINGS = ["lora.rank=2", "train.device=cpu", "train.batch_size=6", "train.max_epochs=2"]
KINDS = [
    ["prior.tau=10"],
    ["prior.tau=0"],
    ["prior.tau=inf"],
    ["prior.tau=10", "method=vi"],
    ["prior.tau=0", "train.independent=joint"],
    ["prior.tau=10", "prior.parametrization=centered"],
]
CUDA = (
    "CUDA out of memory. Tried to allocate 2.44 GiB. GPU 0 has a total capacity of 22.03 GiB of which 1.21 GiB is free."
    " Including non-PyTorch memory, this process has 20.81 GiB memory in use. Of the allocated memory 19.90 GiB is"
    " allocated by PyTorch, and 0.63 GiB is reserved by PyTorch but unallocated."
)
HOST = "[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."


def pack_of(*settings: str) -> Pack:
    config = load_config([*SETTINGS, *settings])
    return Pack(config, make_corpus(), make_base(), make_accelerator(config))


@pytest.mark.parametrize("settings", KINDS)
def test_all_moments_are_there_before_the_first_pass_and_no_step_makes_others(settings):
    with pack_of(*settings) as pack:
        trainer = make_trainer(pack.config, pack)
        banks = [bank for group in trainer.optimizer.param_groups for bank in group["params"]]
        assert banks

        def moments() -> dict:
            return {
                (number, name): (value.data_ptr(), value.shape, value.dtype, value.device)
                for number, bank in enumerate(banks)
                for name, value in trainer.optimizer.state[bank].items()
            }

        before = moments()
        assert {number for number, _ in before} == set(range(len(banks)))
        for number, bank in enumerate(banks):
            assert sum(shape == bank.shape for (n, _), (_, shape, *_) in before.items() if n == number) >= 2
        document_B = trainer.batches(1)[0]
        step(pack, [trainer], document_B, 1)
        assert moments() == before


def test_the_first_step_of_the_optimiser_takes_a_block_of_memory_and_no_more(monkeypatch):
    monkeypatch.setitem(optim.BLOCK, "cpu", 64)
    bank = torch.nn.Parameter(torch.randn(100, 16))
    optimizer = ProximalAdam([{"params": [bank], "prior_precision": 2.0}], lr=0.1)
    bank.grad = torch.randn(100, 16)
    with LargestTensor() as largest:
        optimizer.step()
    assert 0 < largest.numbers <= 64


@pytest.mark.parametrize("settings", KINDS)
def test_a_resumed_fit_keeps_its_moments_where_they_are(settings, tmp_path, monkeypatch):
    config = load_config([*SETTINGS, *settings])
    fit(config, make_corpus(), make_base(), tmp_path)
    for kind in (ProximalAdam, Ivon):
        monkeypatch.setattr(kind, "load_state_dict", lambda *_: pytest.fail("holds the moments twice"))
    with pack_of(*settings) as pack:
        trainer = make_trainer(config, pack)
        states = trainer.optimizer.state
        before = {(bank, name): value.data_ptr() for bank in states for name, value in states[bank].items()}
        assert start_or_resume(trainer, tmp_path) is False
        assert before == {(bank, name): value.data_ptr() for bank in states for name, value in states[bank].items()}
        assert all(value.any() for bank in states for value in states[bank].values())


def failing_after(calls: int, work, error: Exception):
    left = iter(range(calls))

    def fail(*args, **kwargs):
        if next(left, None) is None:
            raise error
        return work(*args, **kwargs)

    return fail


def check_message(message: str) -> None:
    assert "Theta and 3 tasks" in message
    size = pack_size()
    assert f"{size:,} parameters each" in message
    assert f"at least {4 * 4 * size * 8 / 1e9:.3g} GB" in message  # float64
    for key in ("lora.rank=2", "lora.target_modules", "memory", "ray.workers_per_trial=1"):
        assert key in message
    assert len(message) < 480


def pack_size() -> int:
    with pack_of("prior.tau=10") as pack:
        return pack.layout.num_parameters


@pytest.mark.parametrize("error", [torch.OutOfMemoryError(CUDA), RuntimeError(HOST)], ids=["device", "host"])
@pytest.mark.parametrize(
    ("owner", "name", "calls", "when"),
    [
        (Hierarchy, "__init__", 0, "at the start of a fit"),
        (ProximalAdam, "_first_state", 1, "at the start of a fit"),
        (ProximalAdam, "_step", 3, "in the optimiser's step"),
        (Hierarchy, "_pull_KP", 1, "in the optimiser's step"),
    ],
)
def test_the_message_names_tasks_parameters_bytes_and_mends(owner, name, calls, when, error, monkeypatch):
    monkeypatch.setattr(owner, name, failing_after(calls, getattr(owner, name), error))
    config = load_config([*SETTINGS, "prior.tau=10", "train.solver=adamw"])
    base = make_base()
    with pytest.raises(torch.OutOfMemoryError, match=f"out of memory {when}") as raised:
        fit(config, make_corpus(), base)
    check_message(one_line(raised.value))
    assert "DefaultCPUAllocator" in str(raised.value) or "CUDA out of memory" in str(raised.value)
    assert all(not module._forward_hooks for module in base.modules())


def test_other_errors_of_a_step_stay_as_they_are(monkeypatch):
    config = load_config([*SETTINGS, "prior.tau=10"])
    for error in (RuntimeError("illegal memory access"), InputError("no")):
        with monkeypatch.context() as patch:
            patch.setattr(ProximalAdam, "_step", failing_after(1, ProximalAdam._step, error))
            with pytest.raises(type(error), match=f"^{error}$"):
                fit(config, make_corpus(), make_base())


def test_where_there_are_no_tasks_none_are_named(monkeypatch):
    monkeypatch.setattr(ProximalAdam, "_step", failing_after(1, ProximalAdam._step, torch.OutOfMemoryError(CUDA)))
    with pytest.raises(torch.OutOfMemoryError, match=r"adapters of Theta, .* or use more memory ") as raised:
        fit(load_config([*SETTINGS, "prior.tau=inf"]), make_corpus(), make_base())
    assert "workers_per_trial" not in str(raised.value)


def test_a_trial_records_it_and_goes_on_from_its_checkpoint(monkeypatch, tmp_path):
    config, corpus = load_config([*SETTINGS, "prior.tau=10"]), make_corpus()
    with monkeypatch.context() as patch:
        patch.setattr(ProximalAdam, "_step", failing_after(9, ProximalAdam._step, torch.OutOfMemoryError(CUDA)))
        with pytest.raises(torch.OutOfMemoryError):
            run_trial(Trial("000", config), corpus, make_base, tmp_path)
    (row,) = trial_rows(tmp_path)
    assert row["status"] == "failed"
    check_message(row["error"])
    assert list((tmp_path / "trials" / "000").glob("checkpoint-*"))
    run_trial(Trial("000", config), corpus, make_base, tmp_path)
    assert trial_rows(tmp_path)[0]["status"] == "finished"


def test_the_command_prints_it_and_exits_with_1(corpus_file, model_folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(ProximalAdam, "_step", failing_after(3, ProximalAdam._step, torch.OutOfMemoryError(CUDA)))
    run = tmp_path / "run"
    code = main(["fit", f"data.path={corpus_file}", f"model.name={model_folder}", *SMALL, f"output={run}"])
    printed = capsys.readouterr().err
    assert code == 1
    assert "failed: OutOfMemoryError: out of memory in the optimiser's step" in printed
    assert "Theta and 4 tasks" in printed
    assert "--resume" in printed


def test_a_pack_is_not_doubled_beyond_what_memory_holds(monkeypatch):
    config, corpus = load_config([*SETTINGS, "search.pack=auto"]), make_corpus()
    error = torch.OutOfMemoryError(CUDA)
    monkeypatch.setattr(Hierarchy, "__init__", failing_after(1, Hierarchy.__init__, error))
    assert choose_pack(config, corpus, make_base(), 8) == 1


def test_passes_that_share_memory_with_the_moments_shrink_at_the_first(monkeypatch):
    """A device with room for the banks and four rows: the first step makes smaller passes, and none is lost."""
    room = 4

    def small(pack, fits, batch):
        state = fits[0].optimizer.state
        held = sum(value.numel() for bank in state for value in state[bank].values())
        assert held >= 2 * sum(bank.numel() for bank in state)
        if len(batch.task_B) > room:
            raise torch.OutOfMemoryError(CUDA)
        return score(pack, fits, batch)

    monkeypatch.setattr(step_module, "score", small)
    done = fit(load_config([*SETTINGS, "prior.tau=10"]), make_corpus(), make_base())
    assert done.state.micro_batch_size == 3
    assert math.isfinite(done.state.validation_nats)
