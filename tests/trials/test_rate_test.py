"""`train.learning_rate=auto`: the rate that short fits at tau = inf choose, and that a run keeps."""

import math
import os
import signal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import make_base, make_corpus

import bora_sweep
from bora_sweep.cli import main
from bora_sweep.config import load_config
from bora_sweep.errors import InputError
from bora_sweep.process import Interrupted
from bora_sweep.runs.requests import STOP_FILE
from bora_sweep.trials import rate_test
from bora_sweep.trials.rate_test import choose_rate, rate_of, vertex, with_chosen_rate
from bora_sweep.tune.worker import with_measured

SETTINGS = ["train.device=cpu", "lora.rank=2", "train.batch_size=8", "train.learning_rate=auto"]


def stub(monkeypatch, nats_at, calls=None):
    """Fits whose validation nats are a function of log10 rate, and of the steps if it takes them."""

    class Fits:
        num_batches, num_tokens, base_nats = 8, 0, 5.0
        best_of = rate_test._Fits.best_of

        def __init__(self, _config, _pack, _check_stop):
            self.nats = {}

        def _advance(self, places, steps):
            for place in places:
                self.nats[place] = nats_at(math.log10(rate_of(place)))
                if calls is not None:
                    calls.append((place, steps))

    monkeypatch.setattr(rate_test, "_Fits", Fits)


@given(st.floats(0.1, 10), st.floats(-0.5, 0.5), st.floats(-5, 5))
def test_the_lowest_point_of_a_parabola_is_found(bend, lowest, least):
    below, nats, above = (least + bend * (x - lowest) ** 2 for x in (-1, 0, 1))
    assert vertex(below, nats, above) == pytest.approx(lowest, abs=1e-6)


def test_where_the_middle_is_not_lowest_it_stays():
    assert vertex(1.0, 2.0, 3.0) == 0
    assert vertex(2.0, 2.0, 2.0) == 0
    assert vertex(math.inf, 2.0, math.inf) == 0 or math.isnan(vertex(math.inf, 2.0, math.inf))


@pytest.mark.parametrize("best", [-5.2, -4.0, -2.7, -2.25, -1.6, -0.8, 0.3])
def test_the_best_of_a_convex_curve_is_found_wherever_it_lies(monkeypatch, best):
    """Also beyond the ends of the first grid, 1e-3 to 3e-2."""
    stub(monkeypatch, lambda log_rate: 2 + 0.1 * (log_rate - best) ** 2)
    found = choose_rate(load_config(SETTINGS), make_corpus(), make_base())
    assert math.log10(found.rate) == pytest.approx(best, abs=0.03)  # two digits


def test_rates_that_diverge_are_left_for_lower_ones(monkeypatch):
    stub(monkeypatch, lambda log_rate: 2 + 0.1 * (log_rate + 4.5) ** 2 if log_rate < -4 else math.inf)
    found = choose_rate(load_config(SETTINGS), make_corpus(), make_base())
    assert 1e-5 <= found.rate <= 1e-4
    assert found.tried[rate_of(-5)] == math.inf


def test_only_the_best_three_have_all_steps(monkeypatch):
    calls = []
    stub(monkeypatch, lambda log_rate: (log_rate + 2) ** 2, calls)
    choose_rate(load_config(SETTINGS), make_corpus(), make_base())
    steps = [steps for _, steps in calls]
    assert steps == [6] * 4 + [16] * 3  # of two passes of eight batches
    assert {place for place, steps in calls if steps == 16} == {-5, -4, -3}


def test_a_curve_without_a_lowest_point_ends_and_is_told(monkeypatch):
    stub(monkeypatch, lambda log_rate: 6 + log_rate / 100)
    found = choose_rate(load_config(SETTINGS), make_corpus(), make_base())
    assert found.rate == pytest.approx(rate_of(rate_test.LOWEST))
    assert "says little" in str(found)


def test_it_is_the_same_twice_and_the_best_of_the_grid_by_the_same_steps():
    config, corpus, base = load_config(SETTINGS), make_corpus(), make_base()
    first, second = choose_rate(config, corpus, base), choose_rate(config, corpus, base)
    assert first == second
    best = min(first.tried, key=lambda rate: first.tried[rate])
    assert best / 2 <= first.rate <= 2 * best
    assert not any(module._forward_hooks for module in base.modules())
    numbered, said = with_chosen_rate(config, corpus, base)
    assert numbered.train.learning_rate == first.rate
    assert f"{first.rate:g}" in said
    assert first.num_tokens > 0


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["train.learning_rate=fast"], "need a number or auto"),
        (["train.learning_rate=0"], "above 0"),
        (["train.learning_rate=auto", "prior.parametrization=centered"], "noncentered"),
        (["train.learning_rate=auto", "prior.parametrization=centered", "train.lr_per_tau=1e-5"], "noncentered"),
        (["train.learning_rate=auto", "init_from=adapters"], "init_from"),
        (["train.learning_rate=auto", "method=zero_shot"], "method=zero_shot"),
        (["train.learning_rate=auto", "train.precision=fp16"], "fp16"),
        (["train.learning_rate=auto", "train.padding=scored"], "train.padding"),
        (["train.learning_rate=auto", "train.shard_base=true", "ray.workers_per_trial=2"], "shard_base"),
    ],
)
def test_what_it_does_not_go_with_is_refused(settings, said):
    with pytest.raises(InputError, match=r"train\.learning_rate|padding") as error:
        load_config(settings)
    assert said in str(error.value)


@pytest.fixture
def settings(corpus_file, model_folder, tmp_path) -> list[str]:
    return [
        f"data.path={corpus_file}", f"model.name={model_folder}", "model.max_tokens=16", "lora.rank=2",
        "train.max_epochs=1", "train.device=cpu", "train.learning_rate=auto", f"output={tmp_path / 'run'}",
    ]  # fmt: skip


def test_a_run_keeps_what_was_chosen_and_resumes_with_it(settings, tmp_path, capsys):
    run = tmp_path / "run"
    assert main(["fit", *settings]) == 0
    assert "train.learning_rate=auto:" in capsys.readouterr().err
    rate = load_config([run / "config.yaml"]).train.learning_rate
    assert isinstance(rate, float)
    assert bora_sweep.read_results(run).trials["learning_rate"].tolist() == [rate]
    assert main(["fit", "--resume", *settings]) == 0
    assert "train.learning_rate=auto:" not in capsys.readouterr().err
    assert load_config([run / "config.yaml"]).train.learning_rate == rate


def counted_steps(monkeypatch, after_third) -> list[int]:
    """The steps of a test from here on; calls `after_third` after the third."""
    done, step = [], rate_test.step

    def counted(*arguments):
        result = step(*arguments)
        done.append(len(done) + 1)
        if len(done) == 3:
            after_third()
        return result

    monkeypatch.setattr(rate_test, "step", counted)
    return done


def test_it_may_end_after_each_step_and_each_scored_batch():
    """Wherever it is told to stop it does, and the base is as it was."""
    config, corpus, base = load_config(SETTINGS), make_corpus(), make_base()
    calls = []
    whole = choose_rate(config, corpus, base, lambda: calls.append(1))
    assert len(calls) > 2 * 16  # steps of all rates, and their scoring
    for last in (1, 3, len(calls)):
        left = iter(range(last - 1))

        def stop(left=left) -> None:
            if next(left, None) is None:
                raise Interrupted

        with pytest.raises(Interrupted):
            choose_rate(config, corpus, base, stop)
        assert not any(module._forward_hooks for module in base.modules())
    assert choose_rate(config, corpus, base) == whole


@pytest.mark.parametrize("asked_by", ["signal", "file"])
def test_a_run_that_is_stopped_in_it_begins_it_anew(settings, asked_by, tmp_path, capsys, monkeypatch):
    run = tmp_path / "run"

    def ask() -> None:
        if asked_by == "signal":
            os.kill(os.getpid(), signal.SIGINT)
        else:
            (run / STOP_FILE).touch()

    monkeypatch.setattr("bora_sweep.runs.requests.POLL_SECONDS", 0)
    with monkeypatch.context() as patched:
        steps = counted_steps(patched, ask)
        assert main(["fit", *settings]) == 130
        assert steps == [1, 2, 3]
    said = capsys.readouterr().err
    assert ("stopping after this step" in said) == (asked_by == "signal")
    assert "--resume" in said
    assert load_config([run / "config.yaml"]).train.learning_rate == "auto"
    assert not (run / "trials").exists()

    assert main(["fit", "--resume", f"output={run}"]) == 0
    assert main(["fit", *settings[:-1], f"output={tmp_path / 'whole'}"]) == 0
    rates = [load_config([tmp_path / name / "config.yaml"]).train.learning_rate for name in ("run", "whole")]
    assert isinstance(rates[0], float)
    assert rates[0] == rates[1]


def test_the_process_that_measures_for_a_sweep_ends_where_the_run_is_to_stop(tmp_path, monkeypatch):
    monkeypatch.setattr("bora_sweep.tune.worker.cached_base", lambda *_: make_base())
    config, corpus = load_config(SETTINGS), make_corpus()
    assert with_measured(config, corpus, str(tmp_path), 1) is not None
    (tmp_path / STOP_FILE).touch()
    assert with_measured(config, corpus, str(tmp_path), 1) is None
