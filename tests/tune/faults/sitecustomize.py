"""Python imports this at its start where its folder is on PYTHONPATH: training steps then pause, fail, hang or die.

FAULTS is JSON: `pause`, seconds before each step; `raise`, `hang`, `die`: values of tau whose steps do so; `eat`:
[tau, n, bytes], whose steps with more than n documents in a forward pass take memory until they have so much; `reset`:
[tau, file], a value of tau at whose start in a warm worker that one dies, the first time; the file says that it did.
"""

import json
import os
import signal
import sys
import time
from importlib.abc import MetaPathFinder
from importlib.util import find_spec
from typing import Any

FAULTS = json.loads(os.environ.get("FAULTS", "{}"))


class Finder(MetaPathFinder):
    def __init__(self, name, patch) -> None:
        self.name, self.patch = name, patch

    def find_spec(self, name, path=None, target=None):  # noqa: ARG002
        if name != self.name:
            return None
        sys.meta_path.remove(self)
        spec = find_spec(name)
        load = spec.loader.exec_module

        def load_and_patch(module) -> None:
            load(module)
            self.patch(module)

        spec.loader.exec_module = load_and_patch
        return spec


def patch_fit(module) -> None:
    module.step = with_faults(module.step)
    times: Any = sys.modules["bora_sweep.train.checkpoint_times"]
    times.FIRST_SECONDS = times.SPACING = 0.0  # each epoch ends with a checkpoint to resume from


def patch_trainable(module) -> None:
    tau, file = FAULTS["reset"]
    reset = module.FunctionTrainable.reset_config

    def faulty(self, new_config):
        if new_config["fits"][0]["point"]["tau"] == tau and not os.path.exists(file):
            open(file, "x").close()
            os.kill(os.getpid(), signal.SIGKILL)
        return reset(self, new_config)

    module.FunctionTrainable.reset_config = faulty


def with_faults(step):
    def faulty(pack, fits, *rest):
        tau = fits[0].config.prior.tau
        time.sleep(FAULTS.get("pause", 0.0))
        if tau in FAULTS.get("raise", []):
            raise RuntimeError(f"no luck at {tau}")
        if tau in FAULTS.get("hang", []):
            time.sleep(3600)
        if tau in FAULTS.get("die", []):  # as the kernel ends what takes too much memory
            os.kill(os.getpid(), signal.SIGKILL)
        if tau in FAULTS.get("eat", [])[:1]:
            eat(pack.rows, *FAULTS["eat"][1:])
        return step(pack, fits, *rest)

    return faulty


def eat(rows: int, most: int, num_bytes: int) -> None:
    blocks = []
    while rows > most and sum(map(len, blocks)) < num_bytes:
        blocks.append(bytearray(os.urandom(1)) * (1 << 27))
        time.sleep(0.05)
    if blocks:
        time.sleep(5)


sys.meta_path.insert(0, Finder("bora_sweep.train.fit", patch_fit))
if "reset" in FAULTS:
    sys.meta_path.insert(0, Finder("ray.tune.trainable.function_trainable", patch_trainable))
