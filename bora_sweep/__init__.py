"""Hierarchical low-rank adaptation: one frozen language model, many related tasks, and the tau that ties them.

    results = bora_sweep.sweep("conf/embedded.yaml")   # or read_results("runs/…") of a finished run
    report = bora_sweep.Report(results)
    report.answer, report.overall, report.figures
    bora_sweep.export("runs/…", "adapters/")

Wrong input raises an `InputError`. Its message names the key or file, the value, and how to mend it.
"""

import logging
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bora_sweep.api import add, fit, sweep
    from bora_sweep.config import Config, load_config
    from bora_sweep.errors import InputError
    from bora_sweep.forgetting import forget
    from bora_sweep.report import Comparison, Report
    from bora_sweep.runs.results import Results, read_results
    from bora_sweep.serve.export import export

__version__ = "0.1.0"
__all__ = [
    "Comparison",
    "Config",
    "InputError",
    "Report",
    "Results",
    "__version__",
    "add",
    "export",
    "fit",
    "forget",
    "load_config",
    "read_results",
    "sweep",
]

_MODULES = {
    "Comparison": "report", "Config": "config", "InputError": "errors", "Report": "report", "Results": "runs.results",
    "add": "api", "export": "serve.export", "fit": "api", "forget": "forgetting", "load_config": "config",
    "read_results": "runs.results", "sweep": "api",
}  # fmt: skip


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
