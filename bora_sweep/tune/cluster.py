"""The Ray that a sweep runs on: started on this machine or connected to, and what of it a trial reserves."""

import logging
import os
import socket
from contextlib import ExitStack, contextmanager

import ray

from bora_sweep.config import Config
from bora_sweep.errors import InputError, one_line
from bora_sweep.tune.ray_folder import keep_secret, ray_folder, refuse_shadows

KNOCK_SECONDS = 20.0  # for an answer at `ray.address`


@contextmanager
def _ray(config: Config):
    """A Ray for the sweep: the cluster at `ray.address`, else a private one that ends with it."""
    if ray.is_initialized():
        yield
        return
    refuse_shadows()
    with ExitStack() as stack:
        folder = None if config.ray.address is not None else stack.enter_context(ray_folder())
        stack.callback(ray.shutdown)
        umask = os.umask(0o077)  # Ray writes its token file readable to all otherwise
        try:
            _start(folder) if folder is not None else _connect(str(config.ray.address))
        finally:
            os.umask(umask)
        yield


def _start(folder: str) -> None:
    keep_secret()
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
    _refuse_silent(address)
    try:
        ray.init(address, log_to_driver=False, logging_level=logging.CRITICAL)
    except (ConnectionError, ValueError) as error:
        raise InputError(
            f"ray.address={address}: no Ray answers there ({one_line(error, limit=200)}); is it up, and if it asks for "
            "a token, is RAY_AUTH_MODE=token exported here?"
        ) from error


def _refuse_silent(address: str) -> None:
    """Refuse an address at which nothing listens: Ray would ask it again for a quarter of an hour.

    Raises:
        InputError: Nothing listens there.
    """
    host, _, port = address.rpartition(":")
    if not (host and port.isdigit() and "/" not in host):
        return
    try:
        socket.create_connection((host, int(port)), timeout=KNOCK_SECONDS).close()
    except OSError as error:
        raise InputError(
            f"ray.address={address}: nothing listens there ({error}); is that Ray up, and reached from here?"
        ) from error


def _resources(config: Config) -> dict[str, float]:
    """What one process of a trial reserves."""
    gpus = config.ray.gpus_per_trial
    if gpus is None:
        gpus = 1.0 if ray.cluster_resources().get("GPU", 0) else 0.0
    return {"CPU": config.ray.cpus_per_trial, "GPU": gpus}


def num_concurrent(config: Config, resources: dict[str, float]) -> int:
    """Trials that run at once.

    Raises:
        InputError: The nodes that are there can never hold a single one, and none is said to come: Tune would wait for
            ever.
    """
    workers = config.ray.workers_per_trial
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    needed = {name: amount for name, amount in resources.items() if amount > 0}
    processes = sum(min(int(node.get(name, 0) / amount) for name, amount in needed.items()) for node in nodes)
    room = processes // workers
    if room:
        return config.ray.max_concurrent or room
    if config.ray.address is not None and config.ray.max_concurrent is not None:
        return config.ray.max_concurrent
    asked = ", ".join(f"ray.{name.lower()}s_per_trial={amount:g}" for name, amount in needed.items())
    if workers > 1:
        asked = f"ray.workers_per_trial={workers}, {asked}"
    most = ", ".join(f"{max(node.get(name, 0) for node in nodes):g} {name}" for name in needed)
    if config.ray.address is None:
        raise InputError(f"{asked}: this machine has {most}; lower what it lacks")
    raise InputError(
        f"{asked}: no node at ray.address={config.ray.address} holds that, the most there is {most}; lower what it "
        "lacks, or, where an autoscaler will start such nodes, say by ray.max_concurrent how many trials run at once"
    )
