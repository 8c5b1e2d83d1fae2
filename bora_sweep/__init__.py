"""Hierarchical low-rank adaptation: one frozen language model, many related tasks, and the tau that ties them.

    results = bora_sweep.sweep("conf/embedded.yaml")   # or read_results("runs/…") of a finished run
    report = bora_sweep.Report(results)
    report.answer, report.overall, report.figures
    model = results.adapter("romeo")                   # a PeftModel
    bora_sweep.export("runs/…", "adapters/")

Wrong input raises an `InputError`. Its message names the key or file, the value, and how to mend it.
"""

import logging
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bora_sweep.api import add, fit, sweep
    from bora_sweep.config import (
        Config,
        DataConfig,
        LoraConfig,
        MetricConfig,
        ModelConfig,
        PriorConfig,
        RayConfig,
        SearchConfig,
        TrainConfig,
        load_config,
    )
    from bora_sweep.errors import InputError
    from bora_sweep.forgetting import forget
    from bora_sweep.packing import pack
    from bora_sweep.report import Comparison, Report
    from bora_sweep.run_results import Results, read_results
    from bora_sweep.serve.export import export
    from bora_sweep.steering import stop, try_tau
    from bora_sweep.task_groups import groups
    from bora_sweep.views import describe, generate, status

__version__ = "0.1.0"
__all__ = [
    "Comparison",
    "Config",
    "DataConfig",
    "InputError",
    "LoraConfig",
    "MetricConfig",
    "ModelConfig",
    "PriorConfig",
    "RayConfig",
    "Report",
    "Results",
    "SearchConfig",
    "TrainConfig",
    "__version__",
    "add",
    "describe",
    "export",
    "fit",
    "forget",
    "generate",
    "groups",
    "load_config",
    "pack",
    "read_results",
    "status",
    "stop",
    "sweep",
    "try_tau",
]

_MODULES = {
    **dict.fromkeys(
        ("Config", "DataConfig", "LoraConfig", "MetricConfig", "ModelConfig", "PriorConfig", "RayConfig",
         "SearchConfig", "TrainConfig", "load_config"), "config",
    ),
    "Comparison": "report", "InputError": "errors", "Report": "report", "Results": "run_results", "add": "api",
    "describe": "views",
    "export": "serve.export", "fit": "api", "forget": "forgetting", "generate": "views",
    "groups": "task_groups", "pack": "packing",
    "read_results": "run_results", "status": "views", "stop": "steering", "sweep": "api", "try_tau": "steering",
}  # fmt: skip


logging.getLogger(__name__).addHandler(logging.NullHandler())
# PEFT imports bitsandbytes where it is installed. It would say then that kernels of others are missing, which are not
# used, and at every pass that int8 rounds its inputs by way of float16.
for _name in ("bitsandbytes.backends.cpu.ops", "bitsandbytes.autograd._functions"):
    logging.getLogger(_name).setLevel(logging.ERROR)


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: pandas, torch and Ray take seconds to import."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
