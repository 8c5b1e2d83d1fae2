"""The configuration: frozen dataclasses are its schema, and the string under each field is its help text.

YAML files, `key=value` and dictionaries are read by the types of the fields. Each value is checked where it is
declared. Derived values are properties. A resolved configuration is plain YAML that reads back to an equal one.
"""

from bora_sweep.config.config import (
    LEARNT_START,
    MERGES,
    ONE_FOR_ALL,
    UNTRAINED,
    Config,
    Method,
    Protocol,
    with_values,
)
from bora_sweep.config.data import DataConfig, SyntheticConfig
from bora_sweep.config.dotted import flatten
from bora_sweep.config.load import (
    PROTOCOLS,
    Setting,
    explicit_settings,
    is_section,
    is_setting,
    load_config,
    read_config,
    settings_of,
)
from bora_sweep.config.metric import ACCURACY, PERPLEXITY, MetricConfig
from bora_sweep.config.model import Groups, LoraConfig, ModelConfig, Parametrization, PriorConfig
from bora_sweep.config.search import Baseline, RayConfig, SearchConfig
from bora_sweep.config.train import Bank, GlobalUpdate, Precision, Solver, TrainConfig, Update

__all__ = [
    "ACCURACY",
    "LEARNT_START",
    "MERGES",
    "ONE_FOR_ALL",
    "PERPLEXITY",
    "PROTOCOLS",
    "UNTRAINED",
    "Bank",
    "Baseline",
    "Config",
    "DataConfig",
    "GlobalUpdate",
    "Groups",
    "LoraConfig",
    "Method",
    "MetricConfig",
    "ModelConfig",
    "Parametrization",
    "Precision",
    "PriorConfig",
    "Protocol",
    "RayConfig",
    "SearchConfig",
    "Setting",
    "Solver",
    "SyntheticConfig",
    "TrainConfig",
    "Update",
    "explicit_settings",
    "flatten",
    "is_section",
    "is_setting",
    "load_config",
    "read_config",
    "settings_of",
    "with_values",
]
