"""Metrics beside perplexity, scored on validation and test at the best epoch of a fit."""
