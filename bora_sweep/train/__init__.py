"""Fits, without Ray and Optuna."""

from bora_sweep.train.loop import fit
from bora_sweep.train.state import Fit

__all__ = ["Fit", "fit"]
