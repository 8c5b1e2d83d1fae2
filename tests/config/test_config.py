"""The configuration: merging, bounds, messages, and YAML that reads back."""

import math

import pytest

from bora_sweep.config import load_config, with_values
from bora_sweep.errors import InputError


def test_the_resolved_yaml_reads_back_to_an_equal_configuration(tmp_path):
    config = load_config(["prior.tau=inf", "search.taus=[0,1e2,inf]", "lora.target_modules=[a,b]", "data.path=ø.csv"])
    (tmp_path / "config.yaml").write_text(config.to_yaml(), encoding="utf-8")
    assert load_config([str(tmp_path / "config.yaml")]) == config


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("prior.tua=3", "'tau'"),
        ("priors.tau=3", "priors"),
        ("prior.tau=-1", "0 to inf"),
        ("prior.tau=nan", "0 to inf"),
        ("prior.tau=many", "many"),
        ("train.learning_rate=0", "above 0"),
        ("train.solver=sgd", "sgd"),
        ("lora.rank=0", "at least 1"),
        ("search.tau_low=0", "tau_low"),
        ("search.pack=0", "at least 1"),
        ("search.pack=many", "or auto"),
        ("search.baselines=[shared]", "independent"),
        ("data.train_fraction=0.9", "sum to 1"),
        ("data.source=hub", "data.path"),
        ("missing.yaml", "no such file"),
        ("speeches.csv", ".yaml"),
    ],
)
def test_wrong_settings_are_refused_by_key_value_and_mend(setting, says):
    with pytest.raises(InputError) as caught:
        load_config([setting])
    message = str(caught.value)
    assert setting.split("=")[0].split(".")[-1] in message
    assert says in message
    assert "\n" not in message


@pytest.mark.parametrize("other", ["train.precision=fp16", "search.mode=path"])
@pytest.mark.parametrize("pack", ["4", "auto"])
def test_a_pack_of_what_cannot_be_packed_is_refused(other, pack):
    with pytest.raises(InputError, match=f"search.pack={pack}"):
        load_config([other, f"search.pack={pack}"])


def test_the_learning_rate_is_coupled_to_tau_in_centered_coordinates_alone():
    centered = load_config(["prior.parametrization=centered", "train.lr_per_tau=1e-5", "train.learning_rate=1e-4"])
    rates = [with_values(centered, prior={"tau": tau}).learning_rate for tau in (0.0, 1.0, 1e3, math.inf)]
    assert rates == pytest.approx([1e-4, 1e-5, 1e-2, 1e-4])
    with pytest.raises(InputError, match="centered"):
        load_config(["train.lr_per_tau=1e-5"])


def test_the_solver_follows_the_parametrization_where_it_is_left_out():
    assert load_config([]).solver == "proximal"
    assert load_config(["prior.parametrization=centered"]).solver == "adamw"
    with pytest.raises(InputError, match="solver"):
        load_config(["prior.parametrization=centered", "train.solver=proximal"])


@pytest.mark.parametrize("protocol", ["paper", "published_code"])
def test_the_papers_numbers_are_in_float32_on_a_gpu_too(protocol):
    assert load_config([f"protocol={protocol}"]).model.dtype == "float32"
