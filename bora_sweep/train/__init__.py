"""Fits, without Ray and Optuna."""

from bora_sweep.train.trainer import Fit, fit

__all__ = ["Fit", "fit"]
