"""What a machine has for fits: within a container its limit, and on every system the number of cores."""

import os

import psutil
import pytest

from bora_sweep import machine
from bora_sweep.config import load_config
from bora_sweep.machine import this_machine

CONFIG = load_config(["train.device=cpu"])


@pytest.mark.parametrize(
    ("limit", "is_limit"), [("1073741824\n", True), ("max\n", False), ("9223372036854771712", False)]
)
def test_a_container_has_no_more_memory_than_its_limit(limit, is_limit, tmp_path, monkeypatch):
    (tmp_path / "memory.max").write_text(limit)
    monkeypatch.setattr(machine, "CONTAINER_LIMITS", (tmp_path / "memory.max", tmp_path / "no such file"))
    memory = psutil.virtual_memory()._replace(available=2**33)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    assert this_machine(CONFIG).free_bytes == (2**30 if is_limit else 2**33)


def test_cores_are_counted_where_the_system_has_no_affinity(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    found = this_machine(CONFIG)
    assert (found.cores, found.at_once, found.cards) == (6, int(6 / CONFIG.ray.cpus_per_trial), ())
