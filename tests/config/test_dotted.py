"""Dotted keys and nested sections are the same values."""

from bora_sweep.config import Config, load_config
from bora_sweep.config.dotted import flatten, nest


def test_nested_values_are_flattened_by_dotted_key():
    values = {"prior": {"tau": 1.0, "group_scales": {"A": 2.0}}, "output": None}
    assert flatten(values) == {"prior.tau": 1.0, "prior.group_scales.A": 2.0, "output": None}
    assert nest("prior.group_scales.A", 2.0) == {"prior": {"group_scales": {"A": 2.0}}}


def test_a_flat_configuration_reads_back():
    config = load_config(["prior.tau=7", "data.synthetic.seed=3", "train.max_epochs=2"])
    assert load_config([nest(key, value) for key, value in flatten(config.to_dict()).items()], Config()) == config
