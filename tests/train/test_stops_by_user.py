"""A fit that another terminal asks to end: it is the fit of the epochs that had ended, and others do not notice."""

import math
from pathlib import Path

import pytest
import torch
from tiny import make_base, make_corpus
from two_processes import assert_same, found, run_in_two

from bora_sweep.config import Config, load_config
from bora_sweep.process import Interrupted
from bora_sweep.runs import requests
from bora_sweep.runs.requests import STOP_TRIAL_FILE
from bora_sweep.train.fit import fit, fit_pack
from bora_sweep.train.state import Fit, FitSpec, StepReport

SETTINGS = [
    "lora.rank=2", "lora.target_modules=[q_proj,v_proj]", "train.device=cpu", "train.batch_size=4",
    "train.max_epochs=6", "train.learning_rate=0.02", "train.patience=6",
]  # fmt: skip
PRESENT = ["prior.tau=30", "train.bank=host", "train.tasks_per_batch=2"]


@pytest.fixture(autouse=True)
def at_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requests, "POLL_SECONDS", 0.0)


def make_config(*settings: str) -> Config:
    return load_config([*SETTINGS, *settings])


def asking(folder: Path, epoch: int, batch: int):
    """A callback that asks the fit to end after this step."""

    def after_step(report: StepReport) -> None:
        if (report.epoch, report.batch) == (epoch, batch):
            folder.mkdir(exist_ok=True)
            (folder / STOP_TRIAL_FILE).touch()

    return after_step


def assert_ended_after(done: Fit, config: Config, epochs: int) -> None:
    """It is the fit that had no more than these epochs, but for why it ended."""
    whole = fit(load_config([config, f"train.max_epochs={epochs}"]), make_corpus(), make_base())
    assert (done.stopped_by, done.state.epoch) == ("user", epochs)
    assert_same({**found(done), "stopped_by": None}, {**found(whole), "stopped_by": None})


@pytest.mark.parametrize("settings", [["prior.tau=0"], ["prior.tau=30"], ["prior.tau=inf"], PRESENT])
@pytest.mark.parametrize(("epoch", "batch"), [(2, 1), (3, 2)])
def test_a_fit_that_is_stopped_is_the_fit_of_the_epochs_that_had_ended(settings, epoch, batch, tmp_path):
    config = make_config(*settings)
    done = fit(config, make_corpus(), make_base(), tmp_path, on_step=asking(tmp_path, epoch, batch))
    assert_ended_after(done, config, epoch - 1)
    assert done.state.notes == [f"stopped by the user in epoch {epoch}, which does not count"]


def test_a_fit_of_a_pack_stops_and_the_others_go_on_as_they_would(tmp_path):
    configs = [make_config(f"prior.tau={tau}") for tau in (1, 100, math.inf)]
    corpus, base = make_corpus(), make_base()
    whole = dict(fit_pack([FitSpec(config) for config in configs], corpus, base))
    specs = [FitSpec(config, tmp_path / str(place)) for place, config in enumerate(configs)]
    packed = dict(fit_pack(specs, corpus, base, on_step=asking(tmp_path / "1", 3, 2)))
    assert_ended_after(packed[1], configs[1], 2)
    for place in (0, 2):
        assert packed[place].stopped_by == whole[place].stopped_by
        torch.testing.assert_close(packed[place].theta_KP, whole[place].theta_KP, rtol=0, atol=1e-9)


def test_a_request_that_a_lost_process_did_not_see_ends_the_fit_that_is_resumed(tmp_path):
    config, corpus, base = make_config("prior.tau=30"), make_corpus(), make_base()
    steps = []

    def interrupt() -> None:
        if len(steps) == 8:
            raise Interrupted

    with pytest.raises(Interrupted):
        fit(config, corpus, base, tmp_path, on_step=steps.append, check_stop=interrupt)
    (tmp_path / STOP_TRIAL_FILE).touch()
    done = fit(config, corpus, base, tmp_path)
    assert_ended_after(done, config, steps[-1].epoch - 1)


def stopped(rank: int, folder: Path) -> dict:
    """Rank 0 alone sees the folder."""
    requests.POLL_SECONDS = 0.0
    own = folder / f"trial-{rank}"
    own.mkdir()
    config = make_config("prior.tau=30", "ray.workers_per_trial=2")
    ask = asking(own, 3, 2) if rank == 0 else (lambda _: None)
    return found(fit(config, make_corpus(), make_base(), own, on_step=ask))


@pytest.mark.slow
def test_both_processes_of_a_fit_stop_at_the_same_step(tmp_path):
    one, other = run_in_two(stopped, tmp_path)
    alone = found(fit(make_config("prior.tau=30", "train.max_epochs=2"), make_corpus(), make_base()))
    assert one["stopped_by"] == other["stopped_by"] == "user"
    assert_same({**one, "stopped_by": None}, {**alone, "stopped_by": None})


def test_a_fit_that_is_stopped_in_its_first_epoch_is_as_it_began(tmp_path):
    config = make_config("prior.tau=30")
    done = fit(config, make_corpus(), make_base(), tmp_path, on_step=asking(tmp_path, 1, 1))
    zero_shot = fit(make_config("method=zero_shot"), make_corpus(), make_base())
    assert (done.stopped_by, done.state.epoch, done.state.best_epochs) == ("user", 0, [0])
    for split, nll in zero_shot.nll_nats.items():
        assert done.nll_nats[split] == pytest.approx(nll, rel=1e-12)
