"""Where kernels run, and what happens where Triton cannot compile them."""

import logging
import sys
from collections.abc import Iterator

import pytest
import torch

from bora_sweep import kernels
from bora_sweep.kernels import has_kernels_for


@pytest.fixture
def gpu(monkeypatch) -> Iterator[torch.device]:
    """A device that counts as a GPU of which Triton has heard, and is none."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    kernels._compiles_for.cache_clear()
    yield torch.device("cpu")
    kernels._compiles_for.cache_clear()


def test_a_cpu_has_no_kernels():
    assert not has_kernels_for(torch.zeros(1))


@pytest.mark.skipif(torch.cuda.is_available(), reason="Triton has a GPU here")
def test_where_triton_fails_the_log_says_so_once_and_there_are_no_kernels(gpu, caplog):
    with caplog.at_level(logging.WARNING):
        assert not any(kernels._compiles_for(gpu) for _ in range(2))
    [record] = caplog.records
    assert "Triton does not run" in record.message


def test_where_triton_is_not_installed_the_log_says_so(gpu, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.delitem(sys.modules, "bora_sweep.kernels.adam", raising=False)
    assert not kernels._compiles_for(gpu)
    assert "import of triton" in caplog.text


def test_an_older_gpu_has_no_kernels_and_triton_is_not_asked(gpu, monkeypatch, caplog):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (6, 1))
    assert not kernels._compiles_for(gpu)
    assert not caplog.records
