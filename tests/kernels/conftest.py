"""Where the kernels are tested: in Triton's interpreter, and on a GPU where there is one."""

from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from importlib.util import find_spec
from multiprocessing import get_context
from typing import Any

import pytest
import torch
from torch.utils import _pytree as pytree

Run = Callable[..., Any]
"""Calls a function with arguments, of which the tensors are where kernels run, and returns what it returns."""


def pytest_runtest_setup() -> None:
    if find_spec("triton") is None:
        pytest.skip("Triton is not installed")


@pytest.fixture(scope="session", params=["interpreter", "cuda"])
def run(request: pytest.FixtureRequest) -> Iterator[Run]:
    """The interpreter has a process of its own: Triton decides at its import whether it interprets."""
    if request.param == "cuda":
        if not torch.cuda.is_available():
            pytest.skip("needs a GPU")
        yield _on_gpu
        return
    with pytest.MonkeyPatch.context() as patch, ProcessPoolExecutor(1, get_context("spawn")) as pool:
        patch.setenv("TRITON_INTERPRET", "1")
        yield lambda function, *arguments: pool.submit(function, *arguments).result()


def _on_gpu(function: Callable[..., Any], *arguments: Any) -> Any:
    there = pytree.tree_map_only(torch.Tensor, torch.Tensor.cuda, arguments)
    return pytree.tree_map_only(torch.Tensor, torch.Tensor.cpu, function(*there))
