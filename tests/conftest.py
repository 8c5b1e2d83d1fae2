"""What all tests share: no network, a Ray, a tiny model and corpus on disk, figures that are not rendered."""

import logging
import os
from collections.abc import Iterator
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # before the hub's client is imported: no test asks a network

import pytest
import torch
from matplotlib.figure import Figure
from stores import storage_folder, store  # noqa: F401, fixtures
from tiny import make_base, make_frame, make_tokenizer

from bora_sweep.runs.storage import cache_folder
from bora_sweep.train import checkpoint_times
from bora_sweep.tune import LOOPBACK, QUIET

os.environ |= QUIET | LOOPBACK  # before any test imports Ray, which reads some of it then

SAVE_FIGURE = Figure.savefig


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Function]) -> None:
    """Tests in a browser are slow, all of them."""
    for item in items:
        if "browser" in item.fixturenames:
            item.add_marker("slow")


@pytest.fixture(autouse=True)
def checkpoints_of_short_epochs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each epoch of a test's fit ends with one, for the tests that cut it off."""
    monkeypatch.setattr(checkpoint_times, "FIRST_SECONDS", 0.0)
    monkeypatch.setattr(checkpoint_times, "SPACING", 0.0)


@pytest.fixture(scope="session", autouse=True)
def empty_pictures() -> Iterator[None]:
    """Figures are made, but written as empty files: to render them takes longer than all else that a report does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            Figure,
            "savefig",
            lambda _, file, **__: file.write(b"") if hasattr(file, "write") else Path(file).write_bytes(b""),
        )
        yield


@pytest.fixture(scope="module")
def real_pictures() -> Iterator[None]:
    """Figures are rendered, from here to the end of the module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", SAVE_FIGURE)
        yield


@pytest.fixture(scope="session")
def ray_here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A Ray of two CPUs that this process drives, on loopback alone, for all sweeps that nobody kills."""
    cache = cache_folder()  # of the embedded base model, whose pretraining takes a while
    home = tmp_path_factory.mktemp("home")  # Ray puts a token there
    own = {"RAY_worker_niceness": "0", "HOME": str(home), "BORA_SWEEP_CACHE": str(cache)}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in own.items():
            patch.setenv(name, value)
        import ray

        ray.init(
            "local",
            num_cpus=2,
            num_gpus=0,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.CRITICAL,
        )
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small OPT and its tokenizer as `save_pretrained` writes them."""
    folder = tmp_path_factory.mktemp("model")
    make_base("opt", dtype=torch.float32).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def corpus_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Parquet file of four tasks of unlike sizes."""
    path = tmp_path_factory.mktemp("data") / "speeches.parquet"
    make_frame({"ann": 40, "bob": 24, "cid": 16, "dot": 12}).to_parquet(path)
    return path
