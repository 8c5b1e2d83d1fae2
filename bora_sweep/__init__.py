"""Hierarchical low-rank adaptation: one frozen language model, many related tasks, and the tau that ties them."""

from bora_sweep.results import Results, read_results

__version__ = "0.1.0"
__all__ = ["Results", "__version__", "read_results"]
