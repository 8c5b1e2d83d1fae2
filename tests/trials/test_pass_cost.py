"""`train.pass_tokens=auto`: a / b of passes that take a + b n seconds, kept in the run."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import make_base, make_corpus

import bora_sweep
from bora_sweep.config import load_config
from bora_sweep.errors import InputError
from bora_sweep.trials import pass_cost
from bora_sweep.trials.pack_size import step_seconds
from bora_sweep.trials.pass_cost import about_pass, fixed_tokens, with_measured_pass


@given(st.floats(1e-4, 1.0), st.floats(1e-7, 1e-3), st.integers(1, 1000), st.integers(2, 50))
def test_the_fixed_part_of_a_line_is_found_to_two_digits(fixed, per_token, few, factor):
    many = few * factor
    found = fixed_tokens((few, fixed + per_token * few), (many, fixed + per_token * many))
    expected = min(fixed / per_token, many)
    assert (found is None and expected < 1.01) or found == pytest.approx(expected, rel=0.06, abs=1)


def test_tokens_that_cost_nothing_are_never_worth_a_pass():
    assert fixed_tokens((100, 1.0), (400, 1.0)) == 400
    assert fixed_tokens((100, 1.0), (400, 0.9)) == 400


def test_a_clock_that_other_work_disturbs_tells_nothing():
    assert fixed_tokens((100, 1.0), (400, 4.0)) is None
    assert fixed_tokens((100, 1.0), (400, 5.0)) is None


def test_it_is_measured_once_and_only_where_it_is_asked_for():
    config = load_config(["train.device=cpu", "lora.rank=2", "train.pass_tokens=auto", "train.batch_size=8"])
    corpus, base = make_corpus(), make_base()
    measured = with_measured_pass(config, corpus, base)
    assert measured.train.pass_tokens is None or 1 <= measured.train.pass_tokens <= 8 * corpus.longest
    assert with_measured_pass(measured, corpus, base) is measured


@pytest.mark.parametrize("rate", ["auto", "0.01"])
def test_it_and_the_size_of_a_pack_are_measured_before_a_rate_is_chosen(rate, monkeypatch):
    monkeypatch.setattr(pass_cost, "fixed_tokens", lambda *_: 7)
    config = load_config(["train.device=cpu", "lora.rank=2", "train.pass_tokens=auto", f"train.learning_rate={rate}"])
    corpus, base = make_corpus(), make_base()
    measured = with_measured_pass(config, corpus, base)
    assert (measured.train.pass_tokens, measured.train.learning_rate) == (7, config.train.learning_rate)
    assert step_seconds(measured, corpus, base, 2, repeats=1) > 0


def test_what_cannot_be_measured_is_as_by_default_and_said(monkeypatch):
    config = load_config(["train.device=cpu", "lora.rank=2", "train.pass_tokens=auto", "train.batch_size=8"])
    tried = []
    monkeypatch.setattr(pass_cost, "fixed_tokens", lambda *points: tried.append(points))
    base = make_base()
    measured = with_measured_pass(config, make_corpus(), base)
    assert measured.train.pass_tokens is None
    assert len(tried) == pass_cost.TRIES
    assert "default" in about_pass(measured)
    assert not any(module._forward_hooks for module in base.modules())


@pytest.mark.parametrize("value", ["0", "-3", "many", "1.5"])
def test_other_values_are_refused(value):
    with pytest.raises(InputError, match=r"train\.pass_tokens"):
        load_config([f"train.pass_tokens={value}"])


def test_a_fit_keeps_what_it_measured(corpus_file, model_folder, tmp_path):
    bora_sweep.fit(
        data={"path": corpus_file}, model={"name": model_folder, "max_tokens": 16}, lora={"rank": 2},
        train={"max_epochs": 1, "device": "cpu", "pass_tokens": "auto"}, output=tmp_path / "run",
    )  # fmt: skip
    assert load_config([tmp_path / "run" / "config.yaml"]).train.pass_tokens != "auto"
