"""Hierarchical low-rank adaptation: one frozen language model, many related tasks, and the tau that ties them."""

__version__ = "0.1.0"
