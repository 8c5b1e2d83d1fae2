"""Files of a run on a local disk and in an object store: whole or not there, waited for, and never with a secret."""

import errno
import os
import re
import subprocess
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch

from bora_sweep.cli import main
from bora_sweep.config import load_config
from bora_sweep.data.known_documents import read_documents, write_documents
from bora_sweep.errors import InputError
from bora_sweep.runs import storage
from bora_sweep.runs.folder import create_run
from bora_sweep.runs.results import read_results, trial_rows, write_table
from bora_sweep.runs.run_lock import DRIVER_FILE, run_lock
from bora_sweep.runs.storage import (
    StorageFullError,
    atomic_write,
    exists,
    folder_at,
    list_files,
    read_bytes,
    remove,
    write_bytes,
)
from bora_sweep.train import fit as fit_module
from bora_sweep.train.checkpoint import load_adapters, load_checkpoint, save_adapters, save_checkpoint

SMALL = ["model.max_tokens=16", "lora.rank=2", "train.max_epochs=2", "train.device=cpu", "train.learning_rate=0.02"]


def test_files_come_back_as_they_were_written(storage_folder):
    assert not exists(storage_folder / "a")
    assert list_files(storage_folder, "*") == []
    write_bytes(storage_folder / "b", b"2")
    write_bytes(storage_folder / "a", b"1")
    write_bytes(storage_folder / "a", b"3")
    assert [path.name for path in list_files(storage_folder, "*")] == ["a", "b"]
    assert read_bytes(storage_folder / "a") == b"3"
    remove(storage_folder / "a")
    remove(storage_folder / "a")
    assert not exists(storage_folder / "a")
    with pytest.raises(FileNotFoundError):
        read_bytes(storage_folder / "a")


def test_a_file_whose_writing_fails_is_what_it_was(storage_folder, monkeypatch):
    write_bytes(storage_folder / "a", b"before")

    def fail(file: Path) -> None:
        file.write_bytes(b"half")
        raise RuntimeError("no more")

    monkeypatch.setattr(storage, "RETRY_SECONDS", 0.0)
    with pytest.raises(RuntimeError):
        atomic_write(storage_folder / "a", fail)
    assert read_bytes(storage_folder / "a") == b"before"
    assert [path.name for path in list_files(storage_folder, "*")] == ["a"]


def test_checkpoints_adapters_and_tables_live_on_either(storage_folder):
    bank = torch.randn(3, 4)
    for step in (1, 2, 3):
        save_checkpoint(storage_folder / "trials" / "007", step, {"bank": bank + step}, {"step": step})
    assert len(list_files(storage_folder / "trials" / "007", "checkpoint-*")) == 2
    tensors, state, _ = load_checkpoint(storage_folder / "trials" / "007")
    assert (state["step"], torch.equal(tensors["bank"], bank + 3)) == (3, True)
    save_adapters(storage_folder / "trials" / "007", {"mean_P": bank}, {"tasks": ["a"]})
    assert torch.equal(load_adapters(storage_folder / "trials" / "007")[0]["mean_P"], bank)
    write_table(storage_folder, "trials", "007", [{"status": "finished", "tau": 3.0}])
    (row,) = trial_rows(storage_folder)
    assert (row["trial_id"], row["tau"]) == ("007", 3.0)
    assert read_results(str(storage_folder)).trials["run"].tolist() == [str(storage_folder)]
    record = pd.DataFrame({"task": ["a"], "document_id": ["0"], "fingerprint": ["f"], "split": ["test"]})
    write_documents(storage_folder, record.assign(loose_fingerprint="f", carried=False))
    assert read_documents(folder_at(str(storage_folder)))["split"].tolist() == ["test"]


def test_a_fit_and_its_report_in_an_object_store_that_goes_away_in_its_midst(
    store, corpus_file, model_folder, tmp_path, capsys, monkeypatch
):
    saved = iter(range(100))

    def save(*content) -> None:
        if next(saved) == 1:
            store.stop()
            threading.Timer(2.0, store.start).start()
        save_checkpoint(*content)

    monkeypatch.setattr(fit_module, "save_checkpoint", save)
    run = f"{store.bucket}/fit-{tmp_path.name}"
    code = main(["fit", f"data.path={corpus_file}", f"model.name={model_folder}", *SMALL, f"output={run}"])
    printed = capsys.readouterr()
    assert code == 0, printed.err
    assert next(saved) > 1
    assert main(["report", run]) == 0
    assert exists(folder_at(run) / "report" / "report.md")
    assert main(["fit", "--resume", f"output={run}"]) == 0
    assert not exists(folder_at(run) / DRIVER_FILE)
    local = tmp_path / "run"
    assert main(["fit", f"data.path={corpus_file}", f"model.name={model_folder}", *SMALL, f"output={local}"]) == 0
    remote, here = (
        read_results(storage_folder).document_scores["nll_nats"].tolist() for storage_folder in (run, local)
    )
    assert remote == here


@pytest.mark.slow
def test_a_store_that_is_away_for_a_while_is_waited_for(store, tmp_path, monkeypatch):
    path, pauses = folder_at(f"{store.bucket}/{tmp_path.name}") / "a", []

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 2:
            store.start()

    monkeypatch.setattr(storage, "time", SimpleNamespace(sleep=sleep, monotonic=time.monotonic))
    store.stop()
    write_bytes(path, b"1")
    assert len(pauses) == 2
    assert read_bytes(path) == b"1"


@pytest.mark.parametrize(("away", "comes_back"), [(60.0, True), (storage.RETRY_SECONDS + 1, False)])
def test_a_store_that_is_away_for_a_minute_is_waited_for_but_not_for_ever(away, comes_back, monkeypatch):
    now = 0.0

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds

    def ask() -> str:
        if now < away:
            raise ConnectionError("no route")
        return "there"

    monkeypatch.setattr(storage, "time", SimpleNamespace(sleep=sleep, monotonic=lambda: now))
    storage_folder = folder_at("memory://run")
    if comes_back:
        assert storage.retry(storage_folder, ask) == "there"
        assert now < away + storage.LONGEST_PAUSE
    else:
        with pytest.raises(ConnectionError):
            storage.retry(storage_folder, ask)
        assert now > storage.RETRY_SECONDS - 2 * storage.LONGEST_PAUSE


def test_a_disk_that_lost_its_connection_is_waited_for_and_other_errors_are_not(tmp_path, monkeypatch):
    answers = iter([errno.ESTALE, errno.EIO, None])
    monkeypatch.setattr(time, "sleep", lambda _: None)

    def work() -> str:
        number = next(answers)
        if number is not None:
            raise OSError(number, "away")
        return "there"

    assert storage.retry(tmp_path, work) == "there"
    answers = iter([errno.EACCES, None])
    with pytest.raises(OSError, match="away"):
        storage.retry(tmp_path, work)


@pytest.fixture
def full_disk(tmp_path):
    storage_folder = tmp_path / "small"
    storage_folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", storage_folder], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip(f"no tmpfs can be mounted here: {mounted.stderr.decode().strip()}")
    yield storage_folder
    subprocess.run(["umount", storage_folder], check=True)


def test_a_full_disk_is_one_message_leaves_no_half_file_and_the_fit_goes_on(
    full_disk, corpus_file, model_folder, tmp_path, capsys
):
    sources = [
        f"data.path={corpus_file}",
        f"model.name={model_folder}",
        *SMALL,
        "train.max_epochs=4",
        "lora.target_modules=[q_proj]",
    ]
    assert main(["fit", *sources, f"output={tmp_path / 'whole'}"]) == 0
    capsys.readouterr()
    ballast = full_disk / "ballast"
    ballast.write_bytes(bytes(200_000))
    run = full_disk / "run"
    assert main(["fit", *sources, f"output={run}"]) == 1
    said = capsys.readouterr().err
    assert "no space left" in said
    assert "--resume" in said
    assert "Traceback" not in said
    assert not list(run.rglob("*.part"))
    ballast.unlink()
    assert main(["fit", "--resume", f"output={run}"]) == 0
    whole, cut = (
        read_results(storage_folder).document_scores["nll_nats"].tolist()
        for storage_folder in (tmp_path / "whole", run)
    )
    assert whole == cut


def test_whatever_a_library_calls_a_full_disk_has_one_name(tmp_path):
    for error in (OSError(errno.ENOSPC, "x"), RuntimeError("I/O error: No space left on device (os error 28)")):

        def fail(_: Path, error=error) -> None:
            raise error

        with pytest.raises(StorageFullError, match="no space left"):
            atomic_write(tmp_path / "a", fail)


@pytest.mark.parametrize("address", ["s3://key:secret-word@bucket/run", "s3://bucket/run?X-Amz-Signature=abcdef0123"])
def test_an_address_with_a_password_is_refused_and_not_repeated(address):
    with pytest.raises(InputError) as caught:
        folder_at(address)
    assert "***" in str(caught.value)
    assert "secret-word" not in str(caught.value)
    assert "abcdef0123" not in str(caught.value)


def test_an_unknown_kind_of_storage_is_one_message():
    with pytest.raises(InputError, match="nosuch://"):
        folder_at("nosuch://bucket/run")


def test_status_is_told_of_a_run_on_either(storage_folder, capsys):
    create_run(load_config(), storage_folder)
    ended = {
        "status": "finished",
        "method": "map",
        "tau": 3.0,
        "validation_perplexity": 9.0,
        "lora_rank": 8,
        "epochs": 2,
    }
    write_table(storage_folder, "trials", "001", [ended])
    write_table(storage_folder, "trials", "002", [{"status": "running", "method": "map", "tau": 5.0, "epochs": 1}])
    with run_lock(storage_folder, "sweep"):
        assert main(["status", str(storage_folder)]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert f"process {os.getpid()} on" in printed
    assert "1 of 11 trials finished, 1 running, 9 waiting · best so far tau = 3, validation perplexity 9.00" in printed
    assert re.search(r"002 5 \S+ running 1 0:00:\d\d ago", printed)
