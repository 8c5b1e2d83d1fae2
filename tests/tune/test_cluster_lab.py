"""`ray up` on three machines, a sweep that loses one of them, and `ray down`.

The machines are namespaces (cluster/lab.sh). `make test-cluster` runs it; it takes some minutes.
"""

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from bora_sweep.config import SyntheticConfig
from bora_sweep.model.embedded import base_model_folder
from bora_sweep.runs.results import read_results
from bora_sweep.tune import LOOPBACK

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(400)]

REPOSITORY = Path(__file__).resolve().parents[2]
HEAD, WORKERS = "10.77.0.2", ["10.77.0.3", "10.77.0.4"]
TOOLS = ["unshare", "nsenter", "mount", "ip", "ssh", "ssh-keygen", "sshd", "rsync"]
ENVIRONMENT = {
    **{name: value for name, value in os.environ.items() if name not in LOOPBACK},
    "PATH": f"{REPOSITORY}/.venv/bin:{os.environ['PATH']}:/usr/sbin:/sbin",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_UP_enable_autoscaler_v2": "0",
}


def why_not() -> str | None:
    """What this machine lacks for a lab."""
    if os.geteuid() != 0:
        return "needs root, to make network namespaces"
    if missing := [tool for tool in TOOLS if shutil.which(tool, path=ENVIRONMENT["PATH"]) is None]:
        return f"not installed: {', '.join(missing)} (Debian: apt install openssh-server rsync iproute2)"
    probe = ["unshare", "--net", "--pid", "--mount", "--uts", "--fork", "ip", "link", "add", "lab", "type", "bridge"]
    made = subprocess.run(probe, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    return f"no namespaces with a bridge here: {made.stderr.strip()}" if made.returncode else None


class Lab:
    """A running lab and the cluster file for it, in `folder`."""

    def __init__(self, folder: Path, process: subprocess.Popen):
        self.folder, self.process = folder, process
        self.file = folder / "local.yaml"
        self.environment = {**ENVIRONMENT, "HOME": f"{folder}/home", "RAY_TMPDIR": f"{folder}/ray"}

    def start(self, command: str, output: Path) -> subprocess.Popen:
        """Begin a shell command where an operator would, FILE being the cluster file."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        inside = ["nsenter", "--target", children.read_text().split()[0], "--net", "--pid", "--mount", "--uts"]
        with output.open("w") as file:  # a pipe would fill up
            return subprocess.Popen(
                [*inside, f"--wdns={REPOSITORY}", "bash", "-c", command.replace("FILE", str(self.file))],
                env=self.environment, stdin=subprocess.DEVNULL, stdout=file, stderr=file,
            )  # fmt: skip

    def run(self, command: str) -> str:
        """The command's output, once it has succeeded."""
        output = self.folder / "command.log"
        code = self.start(command, output).wait(240)
        assert code == 0, output.read_text()[-6000:]
        return output.read_text()


def wait_for(seconds: float, condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {seconds:.0f} s"
        time.sleep(1)


@pytest.fixture
def lab() -> Iterator[Lab]:
    if reason := why_not():
        pytest.skip(reason)
    # Not pytest's own folder, which it keeps: here are a key and a token.
    with tempfile.TemporaryDirectory(prefix="bora-lab-") as folder:
        command = [Path(__file__).resolve().parent / "cluster/lab.sh", folder, "3", "cat"]  # until its input is closed
        with subprocess.Popen(command, stdin=subprocess.PIPE, env=ENVIRONMENT) as process:
            wait_for(30, lambda: (Path(folder) / "ready").exists() or process.poll() is not None, "the lab")
            assert process.poll() is None, "the lab could not be made"
            lab = Lab(Path(folder), process)
            lab.file.write_text(yaml.safe_dump(cluster_file(Path(folder))))
            yield lab


def cluster_file(folder: Path) -> dict:
    """conf/cluster/local.yaml with the lab's addresses and key, and the packages that are here already."""
    file = yaml.safe_load((REPOSITORY / "conf/cluster/local.yaml").read_text())
    file["provider"] |= {"head_ip": HEAD, "worker_ips": WORKERS}
    file["auth"] = {"ssh_user": "root", "ssh_private_key": f"{folder}/key"}
    cache = base_model_folder(SyntheticConfig()).parent
    hurry = {
        "AUTOSCALER_UPDATE_INTERVAL_S": 1, "RAY_health_check_period_ms": 1000, "RAY_health_check_timeout_ms": 2000,
        "PYTHONPATH": "$HOME/bora_sweep", "BORA_SWEEP_CACHE": cache, "HF_HUB_OFFLINE": 1,
    }  # fmt: skip
    exports = " ".join(f"{name}={value}" for name, value in hurry.items())
    file["setup_commands"] = [
        f"ln -sfn {REPOSITORY.resolve()}/.venv ~/bora_sweep/.venv",
        *(command for command in file["setup_commands"] if ".bashrc" in command),
        f"grep -q BORA_SWEEP_CACHE ~/.bashrc || echo 'export {exports}' >> ~/.bashrc",
    ]
    return file


def test_a_sweep_on_machines_one_has_outlives_one_of_them(lab: Lab):
    run = lab.folder / "run"
    lab.run("ray get-auth-token --generate")
    lab.run("ray up --yes --no-config-cache FILE")

    # A trial takes a whole machine, so that each machine has one as soon as it is there.
    ray = f"ray.address=auto ray.cpus_per_trial={os.cpu_count()} ray.max_concurrent=3"
    small = "data.synthetic.num_tasks=3 data.synthetic.max_documents=20 train.max_epochs=8 train.patience=8"
    settings = f"conf/embedded.yaml {ray} output={run} search.num_trials=1 {small}"
    log = lab.folder / "sweep.log"
    sweep = lab.start(f"ray exec FILE 'cd bora_sweep && bora-sweep sweep {settings}'", log)
    wait_for(180, lambda: "3 local.cluster.node" in lab.run("ray exec FILE 'ray status'"), "three nodes")
    wait_for(180, lambda: sweep.poll() is not None or begun_on_a_worker(run), "a trial on a worker")
    lost = begun_on_a_worker(run)
    assert lost, log.read_text()[-6000:]
    trial, host = lost[0]
    lab.run(f"kill -KILL $(cat {lab.folder}/{host}.pid)")
    assert sweep.wait(240) == 0, log.read_text()[-6000:]

    trials = read_results(run).trials.set_index("trial_id")
    assert trials.index.is_unique
    assert len(trials) == 4  # zero-shot, both ends, one of the search
    assert set(trials["status"]) == {"finished"}
    assert trials.loc[trial, "host"] != host

    lab.run("ray exec FILE '! RAY_AUTH_MODE=disabled timeout 20 ray status'")
    lab.run("ray down --yes FILE")
    assert not lab.run("pgrep -x gcs_server || true")


def begun_on_a_worker(run: Path) -> list[tuple[str, str]]:
    """Trials under way on a machine that is not the head, past their first checkpoint, and its name."""
    if not (run / "results/trials").exists():
        return []
    trials = read_results(run).trials
    return [
        (row["trial_id"], row["host"])
        for row in trials.to_dict("records")
        if row["status"] == "running" and row["host"] != "node2" and any((run / "trials" / row["trial_id"]).glob("*"))
    ]
