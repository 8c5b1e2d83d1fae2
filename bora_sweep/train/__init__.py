"""Fits, without Ray and Optuna."""
