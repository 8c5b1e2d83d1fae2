"""A process is known by its number, its start, its machine and its container, and a folder is locked by one process."""

import json

import pytest

from bora_sweep.runs.process_identity import is_local, is_running, lock_folder, this_process


def test_this_process_is_here_and_lives():
    told = json.loads(json.dumps(this_process()))
    assert is_local(told)
    assert is_running(told)
    assert not is_local({**told, "host": "elsewhere"})
    assert not is_local({**told, "boot": "another"})
    assert not is_local({**told, "pids": "another"})


@pytest.mark.parametrize("pid", [0, -1, 10**12])
def test_what_is_no_process_number_is_nobody(pid):
    assert not is_running({**this_process(), "pid": pid})


def test_a_folder_is_locked_once(tmp_path):
    with lock_folder(tmp_path / "run") as can_lock:
        assert can_lock
        with pytest.raises(BlockingIOError), lock_folder(tmp_path / "run"):
            pass
    with lock_folder(tmp_path / "run"):
        pass
