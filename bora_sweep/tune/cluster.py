"""The Ray cluster that a sweep runs on, and what a trial reserves of it."""

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import ray

from bora_sweep.config import Config
from bora_sweep.errors import InputError, one_line
from bora_sweep.tune.ray_folder import ensure_auth_token, ray_folder, refuse_shadowing_files

CONNECT_SECONDS = 20.0
"""For an answer at `ray.address`."""


@contextmanager
def ray_cluster(config: Config) -> Iterator[None]:
    """Within, Ray is connected: to the cluster at `ray.address`, else to a new local one that ends with the context.

    A Ray that is connected already is used as it is.

    Raises:
        InputError: Ray does not start, nothing answers at `ray.address`, or a file hides a module from Ray's workers.
    """
    if ray.is_initialized():
        yield
        return
    refuse_shadowing_files()
    with ExitStack() as stack:
        folder = None if config.ray.address is not None else stack.enter_context(ray_folder())
        stack.callback(ray.shutdown)
        umask = os.umask(0o077)  # otherwise Ray's token file is readable for all
        try:
            _start(folder) if folder is not None else _connect(str(config.ray.address))
        finally:
            os.umask(umask)
        yield


def _start(folder: str) -> None:
    ensure_auth_token()
    try:
        ray.init(
            "local", include_dashboard=False, log_to_driver=False, logging_level=logging.CRITICAL, _temp_dir=folder
        )
    except Exception as error:
        raise InputError(
            f"Ray does not start on this machine ({one_line(error, limit=300)}); it keeps its files in {folder}, which "
            "RAY_TMPDIR moves"
        ) from error


def _connect(address: str) -> None:
    refuse_unreachable(address)
    try:
        ray.init(address, log_to_driver=False, logging_level=logging.CRITICAL)
    except (ConnectionError, ValueError) as error:
        raise InputError(
            f"ray.address={address}: no Ray answers there ({one_line(error, limit=200)}); is it up, and if it asks for "
            "a token, is RAY_AUTH_MODE=token exported here?"
        ) from error


def refuse_unreachable(address: str) -> None:
    """Refuse a `host:port` at which nothing listens: Ray would try it again for a quarter of an hour.

    Raises:
        InputError: Nothing listens there.
    """
    host, _, port = address.rpartition(":")
    if not (host and port.isdigit() and "/" not in host):
        return
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()
    except OSError as error:
        raise InputError(
            f"ray.address={address}: nothing listens there ({error}); is that Ray up, and reached from here?"
        ) from error


def process_resources(config: Config) -> dict[str, float]:
    """What one process of a trial reserves, by Ray's names; by default a whole GPU where the cluster has any."""
    gpus = config.ray.gpus_per_trial
    if gpus is None:
        gpus = 1.0 if ray.cluster_resources().get("GPU", 0) else 0.0
    return {"CPU": config.ray.cpus_per_trial, "GPU": gpus}


def num_concurrent(config: Config, resources: dict[str, float]) -> int:
    """Number of trials that run at once.

    Args:
        config: `ray.max_concurrent` is the number, where it is set; `ray.workers_per_trial` are a trial's processes.
        resources: What one process of a trial reserves.

    Raises:
        InputError: No trial fits on the nodes that are there, and `ray.max_concurrent` does not promise more: Tune
            would wait for ever.
    """
    max_concurrent, address = config.ray.max_concurrent, config.ray.address
    needed = {name: amount for name, amount in resources.items() if amount > 0}
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    num_processes = sum(min(_num_shares(node, name, amount) for name, amount in needed.items()) for node in nodes)
    if num_trials := num_processes // config.ray.workers_per_trial:
        return max_concurrent or num_trials
    if address is not None and max_concurrent is not None:
        return max_concurrent
    settings = [f"ray.{name.lower()}s_per_trial={amount:g}" for name, amount in needed.items()]
    if config.ray.workers_per_trial > 1:
        settings.insert(0, f"ray.workers_per_trial={config.ray.workers_per_trial}")
    largest = ", ".join(f"{max(node.get(name, 0) for node in nodes):g} {name}" for name in needed)
    if address is None:
        raise InputError(f"{', '.join(settings)}: this machine has {largest}; lower the setting that asks for more")
    raise InputError(
        f"{', '.join(settings)}: no node at ray.address={address} has so much, the most is {largest}; lower the "
        "setting that asks for more; or, where an autoscaler will start larger nodes, set ray.max_concurrent to the "
        "trials that run at once"
    )


def _num_shares(node: dict[str, float], name: str, amount: float) -> int:
    """How often `amount` of a resource is on a node. A fraction of a GPU is on one card."""
    if name == "GPU" and amount < 1:
        return int(node.get(name, 0)) * int(1 / amount)
    return int(node.get(name, 0) / amount)
