"""A long sweep of short trials, while workers and nodes are killed at random: is anything lost, doubled or left behind?

    python benchmarks/soak.py [--trials 200] [--every 8] [--seed 0]

On a cluster of three nodes of one CPU each, on this machine. First undisturbed, then the same with a worker or a whole
node killed every few seconds (a node is replaced). Compared are every trial's scores; counted are processes and shared
memory that remain; and the driver's memory is watched. Written to `benchmarks/results/soak.md` and `.json`.
"""

import argparse
import contextlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
from provenance import record

from bora_sweep.runs.results import read_results, trial_rows

REPOSITORY = Path(__file__).resolve().parents[1]
NODES = 3
SMALL = [
    str(REPOSITORY / "conf" / "embedded.yaml"),
    "data.synthetic.num_tasks=3",
    "data.synthetic.max_documents=20",
    "train.max_epochs=3",
    "train.device=cpu",
    "search.baselines=[independent,shared]",
    "search.num_trials=0",
    "ray.max_failures=50",
]
CALM_SECONDS = 20.0  # before the first kill: workers start
LOOK_SECONDS = 5.0  # between two looks at the driver's memory
AFTER_SECONDS = 70.0  # helper processes of a killed node end by themselves

MARK = "BORA_SWEEP_SOAK"
"""In the environment of all that a soak starts: others may run Ray on the machine."""
QUIET = {MARK: str(os.getpid()), "OMP_NUM_THREADS": "1", "RAY_worker_niceness": "0"}
LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}

Memory = list[tuple[int, float]]
"""Trials finished, and MiB of the driver then."""


@contextlib.contextmanager
def cluster() -> Iterator[tuple[subprocess.Popen, dict]]:
    """The process that holds the cluster, and its address and raylets."""
    command = [sys.executable, str(REPOSITORY / "tests" / "faults" / "nodes.py"), str(NODES)]
    environment = {**os.environ, **QUIET}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        yield process, json.loads(process.stdout.readline())
        process.stdin.close()
        process.wait(120)


def sweep(run: Path, address: str, taus: list[float]) -> subprocess.Popen:
    """Begin it."""
    listed = f"search.taus=[{','.join(f'{tau:.6g}' for tau in taus)}]"
    settings = [*SMALL, listed, f"ray.address={address}", f"output={run}"]
    with log_of(run).open("w") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "bora_sweep.cli", "sweep", *settings],
            stdout=log,
            stderr=log,
            env={**os.environ, **QUIET, **LOOPBACK},
        )


def log_of(run: Path) -> Path:
    """What the sweep says."""
    return run.with_name(f"{run.name}.log")


def kill_something(chance: random.Random, holder: subprocess.Popen, raylets: list[int]) -> str:
    """A worker, or in one of four cases a node, which is replaced."""
    assert holder.stdin is not None
    assert holder.stdout is not None
    if chance.random() < 0.25:
        place = chance.randrange(len(raylets))
        psutil.Process(raylets[place]).kill()
        holder.stdin.write("another\n")
        holder.stdin.flush()
        raylets[place] = int(holder.stdout.readline())
        return "node"
    workers = [
        child
        for child in psutil.Process(holder.pid).children(recursive=True)
        if "ImplicitFunc" in " ".join(child.cmdline())
    ]
    if not workers:
        return "nobody"
    chance.choice(workers).kill()
    return "worker"


def undisturbed(run: Path, taus: list[float]) -> Memory:
    """The sweep as it should be."""
    with cluster() as (_, told):
        return followed(sweep(run, told["address"], taus), run, lambda: None)


def disturbed(run: Path, taus: list[float], every: float, seed: int) -> tuple[dict[str, int], Memory]:
    """The sweep under fire, and how often what was killed."""
    chance, killed = random.Random(seed), {"worker": 0, "node": 0, "nobody": 0}
    with cluster() as (holder, told):
        due = time.monotonic() + CALM_SECONDS

        def fire() -> None:
            nonlocal due
            if time.monotonic() > due:
                due = time.monotonic() + chance.uniform(0.5, 1.5) * every
                with contextlib.suppress(psutil.Error):
                    killed[kill_something(chance, holder, told["raylets"])] += 1

        memory = followed(sweep(run, told["address"], taus), run, fire)
    return killed, memory


def followed(process: subprocess.Popen, run: Path, fire: Callable[[], None]) -> Memory:
    """Until it ends, well."""
    memory, looked_at = [], time.monotonic()
    while process.poll() is None:
        time.sleep(0.2)
        fire()
        if time.monotonic() - looked_at > LOOK_SECONDS:
            looked_at = time.monotonic()
            with contextlib.suppress(psutil.Error):
                memory.append((finished(run), psutil.Process(process.pid).memory_info().rss / 2**20))
    assert process.returncode == 0, f"the sweep ended with {process.returncode}: {log_of(run).read_text()[-3000:]}"
    return memory


def finished(run: Path) -> int:
    """Trials that have."""
    return sum(row["status"] == "finished" for row in trial_rows(run))


def left_over() -> list[str]:
    """Processes of this soak that have not ended."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.pid != os.getpid() and process.environ().get(MARK) == QUIET[MARK]:
                found.append(process.name())
    return found


def growth(memory: Memory) -> float:
    """MiB of the driver for each trial, by a line through the second half."""
    half = memory[len(memory) // 2 :]
    return float(np.polyfit([n for n, _ in half], [mib for _, mib in half], 1)[0])


def compared(calm: Path, other: Path, count: int) -> tuple[np.ndarray, int]:
    """How often each trial was begun, and the documents scored; all must be there, once, with the same numbers."""
    tables = [read_results(run) for run in (calm, other)]
    trials = tables[1].trials
    assert len(trials) == count == trials["trial_id"].nunique()
    assert set(trials["status"]) == {"finished"}
    key = ["trial_id", "task", "split", "document_id"]
    one, two = (results.document_scores.sort_values(key).reset_index(drop=True) for results in tables)
    assert one[key].equals(two[key])
    assert np.array_equal(one["nll_nats"], two["nll_nats"])
    return trials["attempts"].to_numpy(), len(one)


def main() -> None:
    """Both sweeps, and the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=200, help="tau = 0 and inf among them")
    parser.add_argument("--every", type=float, default=8.0, help="seconds between two kills, on average")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    taus, shared_before = np.geomspace(1, 1e5, asked.trials - 2).tolist(), set(Path("/dev/shm").glob("*"))
    with tempfile.TemporaryDirectory(prefix="bora-sweep-soak-") as scratch:
        calm, other = Path(scratch) / "calm", Path(scratch) / "disturbed"
        times = [time.monotonic()]
        calm_memory = undisturbed(calm, taus)
        times.append(time.monotonic())
        killed, memory = disturbed(other, taus, asked.every, asked.seed)
        times.append(time.monotonic())
        attempts, documents = compared(calm, other, asked.trials)
    time.sleep(AFTER_SECONDS)
    processes, shared = left_over(), sorted(path.name for path in set(Path("/dev/shm").glob("*")) - shared_before)
    calm_seconds, seconds = np.diff(times)
    names = "", "undisturbed", "under fire"
    rows = [
        ("trials finished, each once", asked.trials, len(attempts)),
        ("workers killed", 0, killed["worker"]),
        ("nodes killed", 0, killed["node"]),
        ("trials taken up again", 0, int((attempts > 1).sum())),
        ("attempts at a trial, at most", 1, int(attempts.max())),
        ("documents scored", documents, documents),
        ("of them otherwise than undisturbed, by a bit", None, 0),
        ("wall seconds", round(calm_seconds), round(seconds)),
        ("the driver's memory at the end, MiB", calm_memory[-1][1], memory[-1][1]),
        ("its growth per trial, MiB", growth(calm_memory), growth(memory)),
        ("processes left", None, len(processes)),
        ("files left in /dev/shm", None, len(shared)),
    ]
    notes = [f"{NODES} nodes of one CPU each; a kill every {asked.every:g} s on average; seed {asked.seed}."]
    notes += [f"Left: {', '.join([*processes, *shared])}."] if processes or shared else []
    record("soak", "A soak", f"{asked.trials} trials", [dict(zip(names, row, strict=True)) for row in rows], notes)


if __name__ == "__main__":
    main()
