"""How the processes of a fit part: results first, and no process ends by a signal, however busy the machine is."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bora_sweep.train.distributed import process_group

KINDS = ("all end", "all are stopped", "all end", "all are refused", "one fails")
PAIRS = """
import ctypes, gc, os, socket, sys, time
from datetime import timedelta
from importlib.util import module_from_spec, spec_from_file_location
import torch
from bora_sweep.errors import InputError
from bora_sweep.process import Interrupted

spec = spec_from_file_location("process_group", sys.argv.pop())  # alone: the less is in memory, the sooner it forks
process_group = module_from_spec(spec)
spec.loader.exec_module(process_group)

def refuse():
    raise InputError("no")

def part_of_a_fit(rank, kind, file):
    if kind == "one fails":
        process_group.GRACE = timedelta(seconds=0.2)
    with process_group.joined_processes():
        process_group.sum_(torch.ones(1000))
        if kind == "one fails" and rank == 1:
            raise RuntimeError("alone")
        process_group.sum_(torch.ones(1000))
        if kind == "all are refused":
            process_group.from_rank_zero(refuse)
        if rank == 0:  # after the last that all do
            time.sleep(0.1)
            os.write(file, b"written ")
        if kind == "all are stopped":
            raise Interrupted
    os.write(file, b"ended ")

def end(rank, kind, file, is_whole):
    sys.stderr = open(os.devnull, "w")
    if is_whole:  # an uncaught error, and all that an interpreter does at its end
        part_of_a_fit(rank, kind, file)
        sys.exit()
    try:
        part_of_a_fit(rank, kind, file)
    except BaseException:
        ctypes.CDLL(None).exit(1)
    ctypes.CDLL(None).exit(0)  # what C++ does at its end, where threads are missed, and no more: it is sooner done

folder, ends, kinds = sys.argv[1], int(sys.argv[2]), sys.argv[3:]
gc.freeze()
for number in range(ends):
    kind, pids = kinds[number % len(kinds)], []
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    for rank in (0, 1):
        pids.append(os.fork())
        if not pids[-1]:
            os.environ.update(RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
            file = os.open(f"{folder}/{number}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            end(rank, kind, file, is_whole=number % 9 == 0)
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    print(kind, *codes, open(f"{folder}/{number}").read(), sep=";")
"""
EXPECTED = {
    "all end": ("0", "0", "written ended ended "),
    "all are stopped": ("1", "1", "written "),
    "all are refused": ("1", "1", ""),
    "one fails": ("1", "1", ""),
}


@pytest.fixture
def busy_cores():
    """More that wants to compute than there are cores."""
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(os.cpu_count() or 1)]
    yield
    for process in busy:
        process.kill()
        process.wait()


@pytest.mark.usefixtures("busy_cores")
@pytest.mark.parametrize("ends", [5, pytest.param(50, marks=pytest.mark.slow)])
def test_two_processes_end_whole_under_load(ends: int, tmp_path: Path):
    environment = os.environ | {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    arguments = [sys.executable, "-c", PAIRS, str(tmp_path), str(ends), *KINDS, process_group.__file__]
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, check=True)
    ended = [line.split(";") for line in done.stdout.splitlines()]
    assert len(ended) == ends
    for kind, *found in ended:
        assert tuple(found) == EXPECTED[kind], kind
