"""A long sweep of short trials, while workers and nodes are killed at random: is anything lost, doubled or left behind?

    python benchmarks/soak.py [--trials 200] [--every 8] [--seed 0]

On a cluster of three nodes of one CPU each, on this machine. First undisturbed, then the same with a worker or a whole
node killed every few seconds (a node is replaced). Compared are every trial's scores; counted are processes and shared
memory that remain; and the driver's memory is watched. Written to `benchmarks/results/soak.md`.
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
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
from provenance import RESULTS, provenance

from bora_sweep.results import read_results, trial_rows

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


@contextlib.contextmanager
def cluster() -> Iterator[tuple[subprocess.Popen, dict]]:
    """The process that holds the cluster, and its address and raylets."""
    command = [sys.executable, str(REPOSITORY / "tests" / "faults" / "nodes.py"), str(NODES)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        yield process, json.loads(process.stdout.readline())
        process.stdin.close()
        process.wait(120)


def sweep(run: Path, address: str, taus: list[float]) -> subprocess.Popen:
    """Begin it."""
    listed = f"search.taus=[{','.join(f'{tau:.6g}' for tau in taus)}]"
    command = [
        sys.executable,
        "-m",
        "bora_sweep.cli",
        "sweep",
        *SMALL,
        listed,
        f"ray.address={address}",
        f"output={run}",
    ]
    quiet = {**os.environ, "OMP_NUM_THREADS": "1", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=quiet)


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


def disturbed(run: Path, taus: list[float], every: float, seed: int) -> tuple[dict[str, int], list[tuple[int, float]]]:
    """The sweep under fire: how often what was killed, and (trials finished, MiB of the driver) on the way."""
    chance, killed, memory = random.Random(seed), {"worker": 0, "node": 0, "nobody": 0}, []
    with cluster() as (holder, told):
        process = sweep(run, told["address"], taus)
        due = time.monotonic() + CALM_SECONDS
        while process.poll() is None:
            time.sleep(0.2)
            if time.monotonic() < due:
                continue
            due = time.monotonic() + chance.uniform(0.5, 1.5) * every
            with contextlib.suppress(psutil.Error):
                memory.append((finished(run), psutil.Process(process.pid).memory_info().rss / 2**20))
                killed[kill_something(chance, holder, told["raylets"])] += 1
        assert process.returncode == 0, f"the sweep ended with {process.returncode}"
    return killed, memory


def finished(run: Path) -> int:
    """Trials that have."""
    return sum(row["status"] == "finished" for row in trial_rows(run))


def left_over(before: set[int]) -> tuple[list[str], list[str]]:
    """Processes of Ray's that were not there before, and files in shared memory."""
    time.sleep(70)  # helpers of a killed node end by themselves
    processes = [p.name() for p in psutil.process_iter() if p.pid not in before and "ray" in p.name().lower()]
    return processes, [path.name for path in Path("/dev/shm").glob("*")]


def growth(memory: list[tuple[int, float]]) -> float:
    """MiB of the driver for each trial, by a line through the second half."""
    half = memory[len(memory) // 2 :]
    return float(np.polyfit([n for n, _ in half], [mib for _, mib in half], 1)[0])


def main() -> None:
    """Both sweeps, and the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=200, help="tau = 0 and inf among them")
    parser.add_argument("--every", type=float, default=8.0, help="seconds between two kills, on average")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    taus = np.geomspace(1, 1e5, asked.trials - 2).tolist()
    before, shared_before = {p.pid for p in psutil.process_iter()}, set(Path("/dev/shm").glob("*"))
    with tempfile.TemporaryDirectory(prefix="bora-sweep-soak-") as scratch:
        runs = {name: Path(scratch) / name for name in ("calm", "disturbed")}
        seconds = {}
        started = time.monotonic()
        with cluster() as (_, told):
            code = sweep(runs["calm"], told["address"], taus).wait()
            assert code == 0, f"the undisturbed sweep ended with {code}"
        seconds["calm"] = time.monotonic() - started
        started = time.monotonic()
        killed, memory = disturbed(runs["disturbed"], taus, asked.every, asked.seed)
        seconds["disturbed"] = time.monotonic() - started
        calm, other = (read_results(run) for run in runs.values())
    trials = other.trials
    assert len(trials) == asked.trials == trials["trial_id"].nunique()
    assert set(trials["status"]) == {"finished"}
    attempts = trials["attempts"].to_numpy()
    key = ["trial_id", "task", "split", "document_id"]
    scores = [results.document_scores.sort_values(key).reset_index(drop=True) for results in (calm, other)]
    assert scores[0][key].equals(scores[1][key])
    assert np.array_equal(scores[0]["nll_nats"], scores[1]["nll_nats"])
    processes, shared = left_over(before)
    shared = sorted(set(shared) - {path.name for path in shared_before})
    text = f"""# A soak

{asked.trials} trials on {NODES} nodes of one CPU each; {killed["worker"]} workers and {killed["node"]} nodes were \
killed, one every {asked.every:g} s on average, seed {asked.seed}.

| | undisturbed | under fire |
| --- | ---: | ---: |
| trials finished | {asked.trials} | {len(trials)}, each once |
| wall seconds | {seconds["calm"]:.0f} | {seconds["disturbed"]:.0f} |
| trials taken up again | 0 | {(attempts > 1).sum()}, at most {attempts.max()} attempts |
| documents scored otherwise than undisturbed | | 0 of {len(scores[0]):,}, to the bit |
| the driver's memory per trial, MiB | | {growth(memory):.3f}, {memory[-1][1]:.0f} at the end |
| Ray's processes left | | {len(processes)} {", ".join(processes)} |
| files left in /dev/shm | | {len(shared)} {", ".join(shared)} |

{provenance()}
"""
    print(text)
    (RESULTS / "soak.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
