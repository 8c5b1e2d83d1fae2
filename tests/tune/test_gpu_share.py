"""Trials that share a GPU: what each process may take of its memory. The GPU is made up."""

from types import SimpleNamespace

import pytest
import torch

from bora_sweep.config import load_config
from bora_sweep.errors import InputError
from bora_sweep.tune import gpu_share, worker
from bora_sweep.tune.gpu_share import CUDA_BYTES, limit_gpu_memory

TOTAL = 22 << 30


@pytest.fixture
def gpu(monkeypatch) -> list[float]:
    """The fractions that a made-up GPU is asked for, by a process that has asked for none."""
    asked: list[float] = []
    monkeypatch.setattr(gpu_share, "_set_here", {"share": 1.0})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=TOTAL))
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", asked.append)
    return asked


def limit(*settings: str) -> None:
    limit_gpu_memory(load_config(list(settings)))


@pytest.mark.parametrize(("gpus", "trials"), [("0.5", 2), ("0.25", 4), ("0.3", 3)])
def test_the_trials_of_a_gpu_fit_it_with_what_cuda_takes_for_each(gpus, trials, gpu):
    limit(f"ray.gpus_per_trial={gpus}")
    (fraction,) = gpu
    assert trials * (fraction * TOTAL + CUDA_BYTES) <= TOTAL
    assert fraction * TOTAL + CUDA_BYTES == pytest.approx(float(gpus) * TOTAL)


def test_the_share_is_set_once_and_given_back_where_a_trial_has_a_whole_gpu(gpu):
    limit("ray.gpus_per_trial=0.5")
    limit("ray.gpus_per_trial=0.5")
    assert len(gpu) == 1
    limit("ray.gpus_per_trial=1")
    limit("ray.gpus_per_trial=2")
    assert gpu[1:] == [1.0]
    limit("ray.gpus_per_trial=0.25")
    assert len(gpu) == 3


@pytest.mark.parametrize("gpus", ["null", "0", "1", "2"])
def test_a_process_with_whole_gpus_or_none_is_left_alone(gpus, gpu):
    limit(f"ray.gpus_per_trial={gpus}")
    assert gpu == []


def test_where_no_gpu_is_used_none_is_touched(gpu, monkeypatch):
    limit("ray.gpus_per_trial=0.5", "train.device=cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    limit("ray.gpus_per_trial=0.5")
    assert gpu == []


def test_a_part_that_cuda_fills_alone_is_refused(gpu):
    with pytest.raises(InputError, match=r"ray.gpus_per_trial=0.02: this part of a GPU of 22.0 GiB is less"):
        limit("ray.gpus_per_trial=0.02")
    assert gpu == []


@pytest.mark.parametrize("gpus", ["1.5", "2.25"])
def test_more_gpus_than_one_are_whole(gpus):
    with pytest.raises(InputError, match=f"ray.gpus_per_trial={gpus}: .*; set "):
        load_config([f"ray.gpus_per_trial={gpus}"])


@pytest.mark.parametrize("gpus", ["-1.0", "nan", "inf"])
def test_a_number_of_gpus_is_one(gpus):
    with pytest.raises(InputError, match=f"ray.gpus_per_trial={gpus}: need 0 or more"):
        load_config([f"ray.gpus_per_trial={gpus}"])


def test_each_process_of_a_trial_takes_its_share_before_it_loads_the_base(gpu, monkeypatch):
    config = load_config(["ray.gpus_per_trial=0.5"])
    seen = []
    monkeypatch.setattr(worker, "cached_base", lambda *_: seen.append(len(gpu)))
    monkeypatch.setattr(worker, "run_pack", lambda trials, corpus, load, run, **_: load() or {})  # noqa: ARG005
    monkeypatch.setattr(worker, "choose_pack", lambda *_: 1)
    fit = {"trial_id": "000", "point": {"number": 0, "tau": 10.0}, "seed_index": 0, "start": None}
    params = {"fits": [{**fit, "point": {**fit["point"], "method": "map"}}]}
    idle = {"check_stop": lambda: None, "on_epoch": lambda _: None}
    worker.fit_trials(params, config, None, "run", **idle)
    assert seen == [1]
    worker.fit_trials(params, config, None, "run", **idle)
    packed = load_config(["ray.gpus_per_trial=0.5", "search.pack=auto"])
    measured = worker.with_measured(packed, None, "run", 4)  # type: ignore[arg-type]
    assert measured is not None
    assert measured[0].search.pack == 1
    assert len(gpu) == 1
