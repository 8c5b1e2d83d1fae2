"""Steps that move the tasks of their batch alone, and where the rows of all the others are meanwhile."""

import errno
import functools
from pathlib import Path

import numpy as np
import pytest
import torch
from test_optim import HierarchicalRegression
from test_trainer import make_config, same_fit
from tiny import make_base, make_corpus

from bora_sweep.data.batches import batches_of_few_tasks, num_training_batches
from bora_sweep.errors import InputError
from bora_sweep.model.prior import log_prior
from bora_sweep.process import Interrupted
from bora_sweep.runs.storage import StorageFullError
from bora_sweep.train import checkpoint, row_bank
from bora_sweep.train.device import make_accelerator
from bora_sweep.train.fit import fit, fit_pack
from bora_sweep.train.make_trainer import make_trainer
from bora_sweep.train.memory import FitMemory
from bora_sweep.train.optim import make_optimizer, map_step
from bora_sweep.train.pack import Pack
from bora_sweep.train.present import PresentHierarchy, PresentTasks
from bora_sweep.train.row_bank import BEST, DELTA, RowBank
from bora_sweep.train.state import Fit, FitSpec, StepReport
from bora_sweep.train.step import step
from bora_sweep.trials.trial import Trial, run_trial

PLACES = ["device", "host", "disk"]


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    """Banks on a disk are in this test's folder."""
    monkeypatch.setenv("BORA_SWEEP_CACHE", str(tmp_path / "cache"))


def settings_of(place: str, *more: str) -> list[str]:
    return ["train.update=present", f"train.bank={place}", "train.batch_size=3", *more]


@functools.cache
def whole_fit(*settings: str) -> Fit:
    return fit(make_config(*settings), make_corpus(), make_base())


def seen_rows(bank: RowBank) -> dict[str, torch.Tensor]:
    bank.flush()
    return {name: rows.clone() for name, rows in bank.banks.items()}


@pytest.mark.parametrize("tau", [10.0, 1e3])
def test_however_rarely_a_task_is_seen_it_reaches_its_map(tau):
    """Task d is in n_d = 1, 2, 4 or 8 of the 8 batches of an epoch, each time with 1 / n_d of its likelihood."""
    torch.manual_seed(0)
    problem, rng = HierarchicalRegression(num_observations=40), np.random.default_rng(0)
    bank = RowBank(4, 3, "host", torch.device("cpu"), torch.float64)
    zero_P = torch.zeros(3, dtype=torch.float64)
    hierarchy = PresentHierarchy(zero_P, bank=bank, num_tasks=4, tau=tau, parametrization="noncentered")
    optimizer = make_optimizer(hierarchy, 0.02, "proximal", problem.num_observations)
    present, epochs, count_K = PresentTasks(hierarchy, optimizer), 300, np.array([1, 2, 4, 8])
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 8 * epochs)
    for _ in range(epochs):
        is_in_MK = np.stack([rng.permutation(8) < count for count in count_K], axis=1)
        batches = [np.flatnonzero(is_in_K) for is_in_K in is_in_MK]
        present.begin_epoch(batches)
        for task_B, following_B in zip(batches, [*batches[1:], None], strict=True):
            present.begin_step(task_B, following_B)
            theta_BP, tasks = hierarchy.theta_BP(torch.from_numpy(task_B)), torch.from_numpy(task_B)
            apart_BN = (problem.X_KNP[tasks] @ theta_BP[..., None])[..., 0] - problem.y_KN[tasks]
            nll_B = 0.5 * apart_BN.square().sum(1) / torch.from_numpy(count_K[task_B])
            (8 / problem.num_observations * nll_B.sum()).backward()
            map_step(hierarchy, optimizer, "proximal", problem.num_observations)
            bank.note_step()
            schedule.step()
    assert problem.distance(hierarchy, tau) < 0.02
    mean_P, theta_KP = problem.map(tau)
    assert (theta_KP - mean_P).abs().max() > 0.02


def test_a_task_that_a_batch_lacks_changes_no_bit():
    config = make_config(*settings_of("host"))
    with Pack(config, make_corpus(), make_base(), make_accelerator(config)) as pack:
        trainer = make_trainer(config, pack)
        batches = trainer.batches(epoch=1)
        trainer.begin_epoch(batches)
        assert trainer.bank is not None
        lacked = 0
        for sequence_B in batches:
            before = seen_rows(trainer.bank)
            step(pack, [trainer], sequence_B, len(batches))
            after, is_in_K = seen_rows(trainer.bank), np.isin(np.arange(3), pack.corpus.task_C[sequence_B])
            for name in (DELTA, "exp_avg", "exp_avg_sq", "step"):
                unchanged_K = (before[name] == after[name]).all(dim=1).numpy()
                assert (unchanged_K != is_in_K).all(), name
            lacked += int((~is_in_K).sum())
        assert lacked > 0


@pytest.mark.parametrize("tau", ["0", "10"])
@pytest.mark.parametrize("more", [(), ("train.tasks_per_batch=1",)], ids=["", "few tasks"])
def test_where_the_rows_are_changes_no_bit(tau, more):
    device, host, disk = (whole_fit(*settings_of(place, f"prior.tau={tau}", *more)) for place in PLACES)
    same_fit(device, host)
    same_fit(device, disk)
    assert device.state.best_epoch > 0


def test_where_each_batch_has_all_tasks_it_is_the_fit_of_all_tasks():
    same_fit(whole_fit("prior.tau=10"), whole_fit("prior.tau=10", "train.update=all", "train.bank=device"))
    for tau in ("0", "10"):
        everything = f"prior.tau={tau}", "train.batch_size=1000"
        one, other = whole_fit(*everything), whole_fit(*everything, "train.bank=host")
        torch.testing.assert_close(one.theta_KP, other.theta_KP, rtol=0, atol=1e-12)
        torch.testing.assert_close(one.mean_P, other.mean_P, rtol=0, atol=1e-12)


def test_at_tau_inf_there_are_no_rows():
    same_fit(whole_fit("prior.tau=inf"), whole_fit("prior.tau=inf", "train.bank=host"))


@pytest.mark.parametrize("place", PLACES)
def test_fits_of_a_pack_have_rows_of_their_own(place):
    settings = [make_config(*settings_of(place, f"prior.tau={tau}")) for tau in ("3", "300", "inf")]
    packed = dict(fit_pack([FitSpec(config) for config in settings], make_corpus(), make_base()))
    for number, tau in enumerate(("3", "300", "inf")):
        solo = whole_fit(*settings_of(place, f"prior.tau={tau}"))
        torch.testing.assert_close(packed[number].theta_KP, solo.theta_KP, rtol=0, atol=1e-9)


def test_the_prior_is_that_of_all_tasks():
    config = make_config(*settings_of("disk", "prior.groups=matrix", "prior.group_scales={A: 2.0, B: 0.5}"))
    with Pack(config, make_corpus(), make_base(), make_accelerator(config)) as pack:
        trainer = make_trainer(config, pack)
        hierarchy = trainer.hierarchy
        mean_P = torch.randn_like(hierarchy.mean_P.detach())
        theta_KP = torch.randn(3, len(mean_P), dtype=torch.float64)
        trainer.begin_at(mean_P, theta_KP)
        torch.testing.assert_close(hierarchy.theta_KP(), theta_KP)
        torch.testing.assert_close(hierarchy.log_prior(), log_prior(theta_KP, mean_P, hierarchy.precision))
        hierarchy.hold(np.array([2, 0]))
        torch.testing.assert_close(hierarchy.theta_BP(torch.tensor([2, 0, 2])), theta_KP[[2, 0, 2]])
        with pytest.raises(IndexError):
            hierarchy.theta_BP(torch.tensor([1]))


class _StopAfter:
    """Asks a fit to stop at the `calls`-th question."""

    def __init__(self, calls: int) -> None:
        self.left = calls

    def __call__(self) -> None:
        self.left -= 1
        if self.left == 0:
            raise Interrupted


@pytest.mark.parametrize(("place", "tau"), [("host", "10"), ("disk", "0")])
def test_the_best_epoch_before_a_stop_is_not_lost(place, tau, tmp_path):
    """The fit gets no better after it, so that what it ends with is in the checkpoint alone."""
    settings = settings_of(
        place, f"prior.tau={tau}", "train.learning_rate=0.3", "train.max_epochs=6", "lora.target_modules=null"
    )
    whole = whole_fit(*settings)
    assert whole.state.best_epoch < whole.state.epoch

    def stop(report: StepReport) -> None:
        if report.epoch > whole.state.best_epoch:
            raise Interrupted

    with pytest.raises(Interrupted):
        fit(make_config(*settings), make_corpus(), make_base(), tmp_path, on_step=stop)
    assert list(tmp_path.glob("checkpoint-*"))
    same_fit(whole, fit(make_config(*settings), make_corpus(), make_base(), tmp_path))


def test_a_checkpoint_has_the_rows_that_have_changed_since_the_last_and_no_others():
    torch.manual_seed(0)
    bank = RowBank(6, 5, "host", torch.device("cpu"), torch.float64)
    bank.set(DELTA, torch.randn(2, 5), np.array([1, 4]))
    bank.set(BEST, torch.randn(1, 5), np.array([3]))
    assert (bank.changes()["tasks"].tolist(), bank.changes()["best.tasks"].tolist()) == ([1, 4], [3])
    bank.written()
    bank.hold_for_step(np.array([5, 0, 5])).banks[DELTA].fill_(7.0)
    bank.note_step()
    bank.keep_best(np.array([0, 4]))
    found = bank.changes()
    assert (found["tasks"].tolist(), found["best.tasks"].tolist()) == ([0, 5], [0, 4])
    assert (found[DELTA] == 7.0).all()
    assert torch.equal(found[BEST], bank.banks[DELTA][[0, 4]])


def test_what_is_planned_for_the_device_is_what_lies_there():
    """Theta with two moments, and the rows of two batches with theirs; on the host all rows and the best ones."""
    config, base = make_config(*settings_of("host", "prior.tau=10", "train.tasks_per_batch=2")), make_base()
    with Pack(config, make_corpus(), base, make_accelerator(config)) as pack:
        trainer = make_trainer(config, pack)
        assert trainer.bank is not None
        trainer.begin_epoch([np.array([0])])
        rows = [trainer.bank.hold_for_step(np.array([0, 1]), np.array([1, 2])), trainer.bank._next[1].result()]
        held = sum(bank.nbytes for part in rows for name, bank in part.banks.items() if name != "step")
        planned, theta = FitMemory(config, base, pack.layout, 16), trainer.hierarchy.mean_P.nbytes
        assert planned.step(3, 3).banks == held + 3 * theta
        whole = [bank for name, bank in trainer.bank.banks.items() if name != "step"]
        assert planned.host_bytes(3) == sum(bank.nbytes for bank in whole)


@pytest.mark.parametrize("calls", [3, 5, 12])
@pytest.mark.parametrize(("place", "tau"), [("host", "10"), ("disk", "0"), ("device", "10")])
def test_a_fit_that_is_asked_to_stop_goes_on_as_if_it_had_not_been(place, tau, calls, tmp_path):
    settings = settings_of(place, f"prior.tau={tau}", "train.schedule=cosine")
    with pytest.raises(Interrupted):
        fit(make_config(*settings), make_corpus(), make_base(), tmp_path, check_stop=_StopAfter(calls))
    same_fit(whole_fit(*settings), fit(make_config(*settings), make_corpus(), make_base(), tmp_path))


SAVED = "train.checkpoint_minutes=1e-9"
"""A checkpoint after each step."""


@pytest.mark.parametrize("at", range(1, 40, 3))
def test_a_kill_between_any_two_writes_loses_nothing(at, tmp_path, monkeypatch):
    """Some writes are of rows, some of the checkpoint that names them."""
    settings, written, write = settings_of("host", "prior.tau=10", SAVED), [], checkpoint.atomic_write

    def killed(path, work):
        if len(written) == at:
            raise KeyboardInterrupt
        written.append(path.name)
        write(path, work)

    monkeypatch.setattr(checkpoint, "atomic_write", killed)
    with pytest.raises(KeyboardInterrupt):
        fit(make_config(*settings), make_corpus(), make_base(), tmp_path)
    monkeypatch.setattr(checkpoint, "atomic_write", write)
    same_fit(whole_fit(*settings), fit(make_config(*settings), make_corpus(), make_base(), tmp_path))
    assert {name[:4] for name in written[:2]} <= {"rows", "chec"}


@pytest.mark.parametrize("damage", ["a bit", "gone", "another"])
def test_a_checkpoint_whose_rows_are_damaged_is_not_believed(damage, tmp_path):
    settings = settings_of("host", "prior.tau=10", SAVED)
    with pytest.raises(Interrupted):
        fit(make_config(*settings), make_corpus(), make_base(), tmp_path, check_stop=_StopAfter(8))
    *_, before, newest = sorted(tmp_path.glob("rows-*"))
    if damage == "gone":
        newest.unlink()
    elif damage == "another":
        newest.write_bytes(before.read_bytes())
    else:
        content = bytearray(newest.read_bytes())
        content[-5] ^= 1
        newest.write_bytes(content)
    resumed = fit(make_config(*settings), make_corpus(), make_base(), tmp_path)
    same_fit(whole_fit(*settings), resumed)
    assert newest.name in resumed.state.notes[0]


def test_checkpoints_write_what_moved_and_old_files_go(tmp_path):
    """A file goes once later ones have all its rows; an epoch has them all."""
    sizes, most = [], 0

    def note() -> None:
        nonlocal most
        most = max(most, len(list(tmp_path.glob("rows-*"))))
        sizes.extend(file.stat().st_size for file in tmp_path.glob("rows-*"))

    settings = settings_of("host", "prior.tau=10", SAVED, "train.tasks_per_batch=1", "train.batch_size=1")
    fit(make_config(*settings), make_corpus(), make_base(), tmp_path, check_stop=note)
    assert min(sizes) < 0.6 * max(sizes)  # of one task, and of three
    assert most <= 8


def test_a_fit_goes_on_with_its_tasks_in_another_order(tmp_path):
    corpus, settings = make_corpus(), settings_of("host", "prior.tau=10", SAVED)
    with pytest.raises(Interrupted):
        fit(make_config(*settings), corpus, make_base(), tmp_path, check_stop=_StopAfter(8))
    order = [2, 0, 1]
    names = tuple(corpus.tasks[task] for task in order)
    documents = corpus.documents.assign(task=[order.index(task) for task in corpus.documents["task"]])
    other = type(corpus)(**{**vars(make_corpus()), "tasks": names, "documents": documents})
    with pytest.raises(Interrupted):  # the rows are written in the new order
        fit(make_config(*settings), other, make_base(), tmp_path, check_stop=_StopAfter(3))
    resumed, whole = fit(make_config(*settings), other, make_base(), tmp_path), whole_fit(*settings)
    torch.testing.assert_close(resumed.theta_KP, whole.theta_KP[order], rtol=0, atol=1e-9)


def test_what_a_kill_right_after_the_end_left_goes_with_a_resume(tmp_path):
    trial = Trial("fit", make_config(*settings_of("host", "prior.tau=10", "model.dtype=float64")))
    before = run_trial(trial, make_corpus(), make_base, tmp_path)
    folder = tmp_path / "trials" / "fit"
    for name in ("checkpoint-000000006", "rows-000000001"):
        (folder / f"{name}.safetensors").touch()
        (folder / f".{name}.safetensors.1.part").touch()
    again = run_trial(trial, make_corpus(), make_base, tmp_path)
    assert {name: again[name] for name in before} == before
    assert [file.name for file in folder.iterdir()] == ["adapters.safetensors"]


def test_a_full_disk_is_one_message_and_takes_nothing(monkeypatch):
    def full(*_) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(row_bank.os, "posix_fallocate", full)
    with pytest.raises(StorageFullError, match=r"bank of train.bank=disk, .* bytes free"):
        RowBank(10, 100, "disk", torch.device("cpu"), torch.float32)


def test_a_folder_that_holds_no_files_is_one_message(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("BORA_SWEEP_CACHE", str(tmp_path / "file"))
    with pytest.raises(InputError, match=r"train.bank=disk: .* cannot be written to .*; set BORA_SWEEP_CACHE"):
        RowBank(10, 100, "disk", torch.device("cpu"), torch.float32)


def test_a_bank_on_disk_leaves_no_file(tmp_path):
    bank = RowBank(10, 100, "disk", torch.device("cpu"), torch.float32)
    bank.set(BEST, torch.ones(10, 100))
    assert bank.banks[BEST].sum() == 1000
    assert [file for file in Path(tmp_path / "cache").rglob("*") if file.is_file()] == []


def test_the_device_holds_the_rows_of_two_batches_however_many_tasks_there_are():
    """Bytes of all that is on the device for the tasks and Theta, with 64 tasks and with 10,000, and equal batches."""
    peak = {}
    for num_tasks in (64, 10_000):
        rng, size = np.random.default_rng(0), 4096
        bank = RowBank(num_tasks, size, "host", torch.device("cpu"), torch.float32)
        zero_P = torch.zeros(size)
        hierarchy = PresentHierarchy(zero_P, bank=bank, num_tasks=num_tasks, tau=10.0, parametrization="noncentered")
        optimizer = make_optimizer(hierarchy, 0.1, "proximal", 1000)
        present = PresentTasks(hierarchy, optimizer)
        batches = [rng.permutation(num_tasks)[:32] for _ in range(4)]
        present.begin_epoch(batches)
        most = 0
        for task_B, following_B in zip(batches, [*batches[1:], None], strict=True):
            present.begin_step(task_B, following_B)
            hierarchy.theta_BP(torch.from_numpy(task_B)).sum().backward()
            held = [*bank.on_device(), hierarchy.row_K, hierarchy.mean_P, hierarchy.mean_P.grad, hierarchy.task_KP.grad]
            moments = [tensor for state in optimizer.state.values() for tensor in state.values()]
            storages = {tensor.untyped_storage().data_ptr(): tensor.nbytes for tensor in (*held, *moments)}
            most = max(most, sum(storages.values()))
            map_step(hierarchy, optimizer, "proximal", 1000)
            bank.note_step()
        peak[num_tasks] = most
    assert peak[10_000] < 1.1 * peak[64]
    assert peak[64] > 7 * 32 * 4096 * 4  # three numbers of two batches' rows, and one gradient


@pytest.mark.parametrize("tasks_per_batch", [1, 2, 3])
def test_batches_of_few_tasks_partition_the_training_split(tasks_per_batch):
    corpus = make_corpus()
    for epoch in (1, 2):
        batches = batches_of_few_tasks(corpus, 3, tasks_per_batch, seed=0, epoch=epoch)
        assert sorted(np.concatenate(batches)) == sorted(corpus.sequences("train"))
        assert max(len(np.unique(corpus.task_C[batch])) for batch in batches) <= tasks_per_batch
        assert max(map(len, batches)) <= 3
        assert len(batches) == num_training_batches(corpus, 3, tasks_per_batch)
    first, second = (batches_of_few_tasks(corpus, 3, tasks_per_batch, seed=0, epoch=epoch) for epoch in (1, 2))
    assert [batch.tolist() for batch in first] != [batch.tolist() for batch in second]


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (["train.bank=host", "train.update=all"], "train.update=all moves every task"),
        (["train.update=present", "prior.parametrization=centered"], "train.update=present: .*centered all"),
        (["train.bank=disk", "method=vi"], "train.bank=disk: .*method=vi all"),
        (["train.update=present", "train.global_update=mean"], "train.global_update=mean all"),
        (["train.update=present", "train.solver=adamw"], "train.solver=adamw all"),
        (["train.tasks_per_batch=65"], "need 1 to train.batch_size=64"),
        (["train.tasks_per_batch=0"], "train.tasks_per_batch=0"),
    ],
)
def test_what_a_step_of_few_tasks_cannot_do_is_refused(settings, says):
    with pytest.raises(InputError, match=says):
        make_config("train.batch_size=64", *settings)
