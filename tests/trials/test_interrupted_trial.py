"""A trial that was cut off goes on at the tau that it was begun with, and begins anew at any other."""

from contextlib import suppress

import pytest
import torch
from tiny import make_base, make_corpus

from bora_sweep.config import Config, load_config
from bora_sweep.process import Interrupted
from bora_sweep.train.checkpoint import load_adapters
from bora_sweep.trials.trial import Trial, run_trial


def config_at(tau: float, method: str) -> Config:
    return load_config([
        "lora.rank=2", "train.device=cpu", "train.batch_size=4", "train.max_epochs=3", "train.learning_rate=0.02",
        f"prior.tau={tau}", f"method={method}",
    ])  # fmt: skip


@pytest.mark.parametrize("method", ["map", "pfedme", "vi"])
def test_a_fit_that_was_cut_off_at_another_tau_begins_anew(method, tmp_path):
    corpus, steps = make_corpus(), []

    def cut_off() -> None:
        steps.append(1)
        if len(steps) > 6:
            raise Interrupted

    for name in ("same", "other"):
        steps.clear()
        with suppress(Interrupted):
            run_trial(Trial("002", config_at(3, method)), corpus, make_base, tmp_path / name, check_stop=cut_off)
        assert list((tmp_path / name / "trials" / "002").glob("checkpoint-*"))
    begun, again = [], config_at(300, method)
    row = run_trial(Trial("002", again), corpus, make_base, tmp_path / "other", on_step=begun.append)
    whole, steps_of_whole = tmp_path / "whole", []
    run_trial(Trial("002", again), corpus, make_base, whole, on_step=steps_of_whole.append)
    assert (row["tau"], row["attempts"], len(begun)) == (300, 1, len(steps_of_whole))
    ours, fresh = (load_adapters(place / "trials" / "002")[0] for place in (tmp_path / "other", whole))
    assert all(torch.equal(ours[name], fresh[name]) for name in fresh)
    begun.clear()
    row = run_trial(Trial("002", config_at(3, method)), corpus, make_base, tmp_path / "same", on_step=begun.append)
    assert row["attempts"] == 2
    assert len(begun) < len(steps_of_whole)
