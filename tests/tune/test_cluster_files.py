"""The files that clusters are made from: what the installed Ray asks of them, and what it does not think to ask."""

import re
import tomllib
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
from ray.autoscaler.v2.utils import ResourceRequestUtil

from bora_sweep.config import Config, load_config

REPOSITORY = Path(__file__).resolve().parents[2]
AWS, GCP, LOCAL = "cluster.yaml", "conf/cluster/gcp.yaml", "conf/cluster/local.yaml"
KUBERNETES, ROLES = "conf/cluster/kubernetes.yaml", "conf/cluster/aws_roles.yaml"
PINNED = dict(re.findall(r"^(\S+)==(\S+)$", (REPOSITORY / "constraints.txt").read_text(), re.MULTILINE))

is_spot = {
    AWS: lambda node: node.get("InstanceMarketOptions") == {"MarketType": "spot"},
    GCP: lambda node: node.get("scheduling", {}).get("provisioningModel") == "SPOT",
}
clouds = pytest.mark.parametrize("name", [AWS, GCP])
ray_up_files = pytest.mark.parametrize("name", [AWS, GCP, LOCAL])


def read(name: str) -> dict[str, Any]:
    return yaml.safe_load((REPOSITORY / name).read_text())


@ray_up_files
def test_ray_accepts_the_file(name):
    validate_config(prepare_config(read(name)))


@ray_up_files
def test_no_command_of_ray_s_own_defaults_is_left(name):
    # Ray's defaults install another Ray, and show the dashboard to the network.
    prepared, own = prepare_config(read(name)), read(name)
    for kind in ("head", "worker"):
        assert prepared[f"{kind}_start_ray_commands"] == own[f"{kind}_start_ray_commands"]
        assert prepared[f"{kind}_setup_commands"] == own["setup_commands"]


@clouds
def test_the_head_is_one_of_the_types_and_gets_no_trial(name):
    types, head = read(name)["available_node_types"], read(name)["head_node_type"]
    assert types[head]["resources"]["CPU"] == 0
    assert types[head]["max_workers"] == 0
    assert not is_spot[name](types[head]["node_config"])


@clouds
def test_workers_come_and_go_and_are_spot_while_there_is_any(name):
    types = read(name)["available_node_types"]
    assert {worker: is_spot[name](types[worker]["node_config"]) for worker in ("spot", "on_demand")} == {
        "spot": True,
        "on_demand": False,
    }
    assert types["spot"]["resources"] == types["on_demand"]["resources"]
    assert {types[worker]["min_workers"] for worker in ("spot", "on_demand")} == {0}
    assert launched(name, {}) == {"spot"}
    assert launched(name, {"spot": 0.0}) == {"on_demand"}


def launched(name: str, availability: dict[str, float]) -> set[str]:
    """The types of worker that Ray's autoscaler starts for as many trials as conf/gpu_cluster.yaml runs at once."""
    config = AutoscalingConfig(prepare_config(read(name)), skip_content_hash=True)
    request = SchedulingRequest(
        disable_launch_config_check=True,
        node_type_configs=config.get_node_type_configs(),
        max_num_nodes=config.get_max_num_nodes(),
        resource_requests=ResourceRequestUtil.group_by_count(
            [ResourceRequestUtil.make(trial_resources()) for _ in range(gpu_cluster().ray.max_concurrent or 0)]
        ),
        recoverable_resource_availabilities=availability,
    )
    reply = ResourceDemandScheduler(event_logger=None).schedule(request)
    assert not reply.infeasible_resource_requests
    assert sum(launch.count for launch in reply.to_launch) == config.get_max_num_worker_nodes()
    return {launch.instance_type for launch in reply.to_launch}


def gpu_cluster() -> Config:
    return load_config([str(REPOSITORY / "conf/gpu_cluster.yaml")])


def trial_resources() -> dict[str, float]:
    config = gpu_cluster().ray
    assert config.gpus_per_trial is not None
    return {"CPU": config.cpus_per_trial, "GPU": config.gpus_per_trial}


def test_trials_run_in_bfloat16_on_gpus_that_compute_in_it():
    assert gpu_cluster().model.dtype == "bfloat16"
    has_bfloat16 = {AWS: ("InstanceType", r"g6\.|g5\.|p4|p5"), GCP: ("machineType", r"g2-|a2-|a3-")}
    for name, (key, kinds) in has_bfloat16.items():
        types = read(name)["available_node_types"]
        assert all(re.match(kinds, types[worker]["node_config"][key]) for worker in ("spot", "on_demand"))


@ray_up_files
def test_nodes_install_what_is_pinned_and_extras_that_there_are(name):
    (install,) = [command for command in read(name)["setup_commands"] if "pip install" in command]
    assert " -c constraints.txt " in install
    extras = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = re.search(r"-e '\.\[(.*)]'", install)
    assert named is not None
    assert set(named[1].split(",")) <= set(extras)


@ray_up_files
def test_nodes_are_set_up_alike(name):
    mine, aws = read(name), read(AWS)
    for key in ("file_mounts", "rsync_exclude"):
        assert mine[key] == aws[key]
    others = [[command for command in file["setup_commands"] if "pip install" not in command] for file in (mine, aws)]
    assert others[0] == others[1]


@ray_up_files
def test_what_is_copied_is_there_and_holds_nothing_that_is_large_or_private(name):
    file = read(name)
    sources = [Path(source) for source in file["file_mounts"].values() if not source.startswith("~")]
    assert sources
    assert all((REPOSITORY / source).exists() for source in sources)
    assert {".git", ".venv", "runs"} <= set(file["rsync_exclude"])
    assert {".git", ".venv", "runs"} <= set((REPOSITORY / ".dockerignore").read_text().split())


@ray_up_files
def test_nothing_listens_for_the_world_and_nothing_is_obeyed_without_the_token(name):
    file = read(name)
    (head,) = [command for command in file["head_start_ray_commands"] if "--head" in command]
    assert "--dashboard-host=127.0.0.1" in head
    text = "\n".join(line.partition("#")[0] for line in (REPOSITORY / name).read_text().splitlines())
    for opening in ("0.0.0.0", "::/0", "IpPermissions", "dashboard-host=0", "canIpForward", "ssh_proxy"):
        assert opening not in text
    assert file["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    assert any("RAY_AUTH_MODE=token" in command and ".bashrc" in command for command in file["setup_commands"])


def test_the_kubernetes_job_is_one():
    job = read(KUBERNETES)
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    assert job["metadata"]["name"]
    spec = job["spec"]
    assert re.fullmatch(r"bora-sweep sweep [\w ./=:-]+", spec["entrypoint"]), "a plain command, nothing for a shell"
    assert spec["shutdownAfterJobFinishes"] is True
    cluster = spec["rayClusterSpec"]
    assert cluster["rayVersion"] == PINNED["ray"]
    for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]:
        assert isinstance(group["rayStartParams"], dict)
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
        for container in group["template"]["spec"]["containers"]:
            assert container["image"]
            assert {"cpu", "memory"} <= set(container["resources"]["limits"])
    for group in cluster["workerGroupSpecs"]:
        assert group["groupName"]
        assert 0 <= group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]


def test_the_kubernetes_workers_hold_a_trial_and_the_head_none():
    cluster = read(KUBERNETES)["spec"]["rayClusterSpec"]
    assert cluster["enableInTreeAutoscaling"] is True
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    (workers,) = cluster["workerGroupSpecs"]
    limits = workers["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert float(limits["cpu"]) >= trial_resources()["CPU"]
    assert float(limits["nvidia.com/gpu"]) >= trial_resources()["GPU"]
    assert workers["maxReplicas"] == gpu_cluster().ray.max_concurrent


def test_kubernetes_shows_nothing_to_the_world_and_asks_for_a_token():
    text = (REPOSITORY / KUBERNETES).read_text()
    cluster = yaml.safe_load(text)["spec"]["rayClusterSpec"]
    assert cluster["authOptions"]["mode"] == "token"
    assert cluster["headGroupSpec"]["serviceType"] == "ClusterIP"
    assert not set(re.findall(r"\b(NodePort|hostNetwork|hostPort|loadBalancerIP)\b", text))


def test_the_image_holds_the_pinned_ray_and_packages():
    text = (REPOSITORY / "conf/cluster/Dockerfile").read_text()
    assert f"FROM rayproject/ray:{PINNED['ray']}-py311-gpu\n" in text
    assert "-c constraints.txt" in text


def test_a_role_for_each_machine_and_none_for_workers_but_the_bucket():
    for tag in ("!Ref", "!Sub", "!GetAtt"):
        CloudFormation.add_constructor(tag, partial(lambda tag, _, node: f"{tag} {node.value}", tag))
    text = (REPOSITORY / ROLES).read_text()
    assert not any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text)), "CloudFormation takes no aliases"
    resources = yaml.load(text, CloudFormation)["Resources"]
    worker = resources["WorkerRole"]["Properties"]
    assert worker["ManagedPolicyArns"] == ["!Ref BucketPolicy"]
    assert "Policies" not in worker
    made = {
        part["Properties"]["InstanceProfileName"]
        for part in resources.values()
        if part["Type"] == "AWS::IAM::InstanceProfile"
    }
    types = read(AWS)["available_node_types"].values()
    assert {node["node_config"]["IamInstanceProfile"]["Name"] for node in types} == made


class CloudFormation(yaml.SafeLoader):
    """YAML with CloudFormation's short tags."""
