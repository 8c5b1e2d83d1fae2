"""The Ray cluster of a sweep: how many trials it runs at once, and what is refused. Ray does not run here."""

import pytest
import ray

from bora_sweep.config import load_config
from bora_sweep.errors import InputError
from bora_sweep.tune.cluster import num_concurrent, process_resources, ray_cluster


@pytest.fixture
def make_cluster(monkeypatch):
    """A Ray with nodes of the given resources."""

    def make_cluster(*nodes: dict[str, float], lost: tuple[dict[str, float], ...] = ()) -> None:
        alive = [{"Alive": True, "Resources": node} for node in nodes]
        monkeypatch.setattr(ray, "nodes", lambda: alive + [{"Alive": False, "Resources": node} for node in lost])
        total = {name: sum(node.get(name, 0) for node in nodes) for name in ("CPU", "GPU")}
        monkeypatch.setattr(ray, "cluster_resources", lambda: total)

    return make_cluster


def concurrent(*settings: str) -> int:
    config = load_config(list(settings))
    return num_concurrent(config, process_resources(config))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ([], 6),
        (["ray.cpus_per_trial=2"], 2),  # a trial does not span nodes
        (["ray.workers_per_trial=4"], 1),  # but its processes do
        (["ray.max_concurrent=5"], 5),
        (["ray.cpus_per_trial=0.5", "ray.gpus_per_trial=0"], 12),
    ],
)
def test_trials_at_once_are_those_that_the_living_nodes_hold(settings, expected, make_cluster):
    make_cluster({"CPU": 3.0}, {"CPU": 3.0}, lost=({"CPU": 64.0},))
    assert concurrent(*settings) == expected


def test_a_trial_takes_a_whole_gpu_where_there_are_any(make_cluster):
    make_cluster({"CPU": 8.0, "GPU": 2.0})
    assert concurrent() == 2
    assert concurrent("ray.gpus_per_trial=0.5") == 4
    assert concurrent("ray.gpus_per_trial=0.6") == 2  # no trial has parts of two cards
    assert concurrent("ray.gpus_per_trial=0.3") == 6
    assert concurrent("ray.gpus_per_trial=0") == 8


@pytest.mark.parametrize("setting", ["ray.cpus_per_trial=1000", "ray.gpus_per_trial=0.5", "ray.workers_per_trial=3"])
def test_a_trial_that_no_node_can_hold_is_refused_unless_nodes_will_be_added(setting, make_cluster):
    make_cluster({"CPU": 2.0})
    with pytest.raises(InputError, match=f"{setting}.*this machine has 2 CPU.*lower the setting that asks for more"):
        concurrent(setting, "ray.max_concurrent=2")
    cluster = "ray.address=auto"
    with pytest.raises(InputError, match=f"{setting}.*no node at ray.address=auto has so much.*ray.max_concurrent"):
        concurrent(setting, cluster)
    assert concurrent(setting, cluster, "ray.max_concurrent=2") == 2


def test_an_address_where_nothing_listens_is_refused_without_asking_ray(monkeypatch):
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.setattr(ray, "init", lambda *_, **__: pytest.fail("Ray was asked"))
    config = load_config(["ray.address=127.0.0.1:1"])
    with pytest.raises(InputError, match=r"ray\.address=127\.0\.0\.1:1: nothing listens"), ray_cluster(config):
        pass
