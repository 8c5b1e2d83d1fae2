"""The variance of fits over seeds, pooled over the settings that were fitted with several seeds.

J trials, M settings; values may have further axes before the last one, which is over trials.
"""

from dataclasses import dataclass

import numpy as np

from bora_sweep.report.stats.document_scores import DocumentScores


@dataclass(frozen=True)
class SeedNoise:
    """Variance over seeds of a fit's mean value, in all and after the effect that fits of one seed share."""

    variance: np.ndarray
    degrees: int
    """Degrees of freedom of `variance`."""
    paired_variance: np.ndarray
    """What is left of it in the difference of two fits with the same seed, for each of the two."""
    paired_degrees: int
    num_fits_M: np.ndarray
    """Trials of each setting; 0 where the score depends on no seed."""
    same_seeds: bool
    """All settings with several seeds have the same ones."""
    num_settings: int
    """How many settings had several seeds."""

    def of_setting(self, m: int) -> tuple[np.ndarray, int]:
        """Variance of setting m's mean over its seeds, and its degrees of freedom."""
        fits = self.num_fits_M[m]
        return (self.variance / fits if fits else 0 * self.variance), self.degrees

    def of_difference(self, m: int, reference: int) -> tuple[np.ndarray, int]:
        """The same of the difference of two settings: the effect of a seed cancels where all have the same seeds."""
        fits = self.num_fits_M[[m, reference]]
        if m == reference:
            return 0 * self.variance, self.degrees
        if self.same_seeds and fits.all():
            return self.paired_variance * (1 / fits).sum(), self.paired_degrees
        return self.variance * (1 / fits[fits > 0]).sum(), self.degrees


def estimate_seed_noise(documents: DocumentScores, mean_J: np.ndarray) -> SeedNoise | None:
    """Variance over seeds from the settings with two seeds or more; None where there is no such setting.

    Fits of one seed share an effect (initial values, the order of documents). Where all settings have the same seeds,
    a two-way analysis of variance without replication (Scheffé 1959, section 4.2) separates it from the residual. One
    variance is estimated for all settings, since two or three seeds are too few to estimate one for each.

    Args:
        documents: Scores under J trials, with the setting and the seed of each.
        mean_J: Mean value of each trial, such as nats per token, shape (..., J): of all tasks, or of each task.
    """
    seed_J, setting_J = documents.seed_J, documents.setting_J
    if seed_J is None or setting_J is None or not np.isfinite(seed_J).any():
        return None
    known_J = np.isfinite(seed_J) & np.isfinite(mean_J).all(axis=tuple(range(mean_J.ndim - 1)))
    num_fits_M = np.bincount(setting_J[np.isfinite(seed_J)], minlength=documents.value_NM.shape[1])
    groups = [np.flatnonzero(known_J & (setting_J == m)) for m in range(len(num_fits_M))]
    groups = [trials for trials in groups if len(trials) > 1]
    if not groups:
        return None
    residuals = [mean_J[..., j] - mean_J[..., j].mean(axis=-1, keepdims=True) for j in groups]
    squares = paired_squares = sum((part**2).sum(axis=-1) for part in residuals)
    degrees = paired_degrees = sum(len(trials) - 1 for trials in groups)
    same_seeds = _have_same_seeds([seed_J[trials] for trials in groups])
    if same_seeds:
        by_seed = [part[..., np.argsort(seed_J[j])] for part, j in zip(residuals, groups, strict=True)]
        without_seed_effect = np.stack(by_seed) - np.stack(by_seed).mean(axis=0)
        paired_squares = (without_seed_effect**2).sum(axis=(0, -1))
        paired_degrees = (len(groups) - 1) * (len(groups[0]) - 1)
    return SeedNoise(
        variance=np.asarray(squares / degrees),
        degrees=degrees,
        paired_variance=np.asarray(paired_squares / paired_degrees),
        paired_degrees=paired_degrees,
        num_fits_M=num_fits_M,
        same_seeds=same_seeds,
        num_settings=len(groups),
    )


def _have_same_seeds(seeds: list[np.ndarray]) -> bool:
    """Two settings or more, each with the same seeds, none of them twice."""
    first = np.sort(seeds[0])
    same = all(np.array_equal(np.sort(seeds_of_setting), first) for seeds_of_setting in seeds)
    return len(seeds) > 1 and same and len(set(first)) == len(first)
