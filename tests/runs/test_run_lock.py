"""Who holds a run: a process by its number and its start, where such numbers are given; never a number alone."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress

import psutil
import pytest

from bora_sweep.errors import InputError
from bora_sweep.runs import run_lock as locks
from bora_sweep.runs.process_identity import this_process
from bora_sweep.runs.run_lock import DRIVER_FILE, read_driver, run_lock
from bora_sweep.runs.storage import exists, write_bytes

SLEEP = [sys.executable, "-c", "input()"]


def write(run, **told) -> None:
    (run / DRIVER_FILE).write_text(json.dumps({"command": "fit", "alive_at": time.time(), **this_process(), **told}))


def is_free(run) -> bool:
    with suppress(InputError), run_lock(run, "fit"):
        return True
    return False


@pytest.fixture
def other():
    with subprocess.Popen(SLEEP, stdin=subprocess.PIPE) as process:
        yield process
        process.kill()


@pytest.fixture
def short(monkeypatch):
    """Signs of life come fast, and are missed soon."""
    monkeypatch.setattr(locks, "HEARTBEAT", 0.1)
    monkeypatch.setattr(locks, "DEAD_AFTER", 0.6)


def started(pid: int) -> float:
    return psutil.Process(pid).create_time() - psutil.boot_time()


@pytest.mark.parametrize("how", ["of an older release", "of another start"])
def test_a_killed_driver_that_had_this_process_number_does_not_hold_the_run(how, tmp_path):
    write(tmp_path, started=this_process()["started"] - 100)
    if how == "of an older release":
        told = {
            key: json.loads((tmp_path / DRIVER_FILE).read_text())[key] for key in ("command", "alive_at", "host", "pid")
        }
        (tmp_path / DRIVER_FILE).write_text(json.dumps(told))
    assert not read_driver(tmp_path).is_alive
    assert is_free(tmp_path)
    assert not (tmp_path / DRIVER_FILE).exists()


def test_a_number_that_went_to_another_process_does_not_hold_the_run_and_a_live_driver_does(tmp_path, other):
    write(tmp_path, pid=other.pid, started=started(other.pid) - 100)
    assert is_free(tmp_path)
    write(tmp_path, pid=other.pid, started=started(other.pid), alive_at=time.time() - 1000)
    assert not is_free(tmp_path)  # it has been silent for long, as after a machine's sleep, and can still write
    other.kill()
    while psutil.Process(other.pid).status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.01)
    assert is_free(tmp_path)  # nobody has asked for its exit code yet


def test_a_process_of_another_user_lives_though_nothing_of_it_may_be_seen(monkeypatch, tmp_path):
    def forbidden(*_):
        raise PermissionError

    def hidden(pid):
        raise psutil.AccessDenied(pid)

    write(tmp_path, pid=os.getppid(), started=1.0)
    monkeypatch.setattr(os, "kill", forbidden)
    monkeypatch.setattr(psutil, "Process", hidden)
    assert read_driver(tmp_path).is_alive


def test_the_lock_of_a_killed_driver_is_free_at_once_in_whatever_container(tmp_path):
    hold = (
        "import sys; from pathlib import Path; from bora_sweep.runs.run_lock import run_lock\n"
        "with run_lock(Path(sys.argv[1]), 'fit'):\n    print('holds', flush=True); input()"
    )
    with subprocess.Popen([sys.executable, "-c", hold, str(tmp_path)], stdin=-1, stdout=-1, text=True) as process:
        assert process.stdout.readline() == "holds\n"
        told = json.loads((tmp_path / DRIVER_FILE).read_text())
        assert told["locked"]
        (tmp_path / DRIVER_FILE).write_text(json.dumps({**told, "pids": "another", "pid": 1}))
        assert not is_free(tmp_path)
        process.kill()
        process.wait()
    assert is_free(tmp_path)


@contextmanager
def beating(run, **told):
    ended = threading.Event()

    def beat():
        while not ended.wait(0.1):
            write(run, **told)

    thread = threading.Thread(target=beat)
    thread.start()
    yield
    ended.set()
    thread.join()


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize(
    "told", [{"pids": "another"}, {"boot": "another"}, {"host": "elsewhere", "alive_at": time.time() + 9999}]
)
def test_where_it_cannot_be_seen_a_sign_of_life_is_waited_for(told, tmp_path):
    write(tmp_path, **told)
    assert is_free(tmp_path)
    write(tmp_path, **told)
    with beating(tmp_path, **{"alive_at": time.time(), **told, "n": 1}):
        assert not is_free(tmp_path)


def test_a_driver_that_was_taken_for_dead_leaves_the_others_file(tmp_path):
    with run_lock(tmp_path, "fit"):
        write(tmp_path, pid=1, host="elsewhere")
    assert read_driver(tmp_path).host == "elsewhere"


def test_a_second_driver_is_refused_by_name_until_the_first_is_gone(storage_folder):
    with run_lock(storage_folder):
        with pytest.raises(InputError, match=rf"process {os.getpid()} on"), run_lock(storage_folder):
            pass
        assert exists(storage_folder / DRIVER_FILE)
    assert not exists(storage_folder / DRIVER_FILE)
    dead = subprocess.Popen(["true"])
    dead.wait()
    own = {"host": socket.gethostname(), "pid": dead.pid, "alive_at": time.time()}
    write_bytes(storage_folder / DRIVER_FILE, json.dumps(own).encode())
    with run_lock(storage_folder):
        pass
    for host, age, refused in (("elsewhere", 5.0, True), ("elsewhere", 500.0, False)):
        write_bytes(
            storage_folder / DRIVER_FILE, json.dumps({"host": host, "pid": 1, "alive_at": time.time() - age}).encode()
        )
        if refused:
            with pytest.raises(InputError, match="elsewhere"), run_lock(storage_folder):
                pass
        else:
            with run_lock(storage_folder):
                pass
