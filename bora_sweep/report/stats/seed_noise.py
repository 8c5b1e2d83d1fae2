"""How far fits differ by their seeds alone, pooled over the settings that were fitted with several.

J trials, M settings; values have any shape before the axis of trials.
"""

from dataclasses import dataclass

import numpy as np

from bora_sweep.report.stats.documents import Documents


@dataclass(frozen=True)
class SeedNoise:
    """The variance of a fit's nats per token over seeds, and of what is left of it between two fits of one seed."""

    variance: np.ndarray
    degrees: int
    paired_variance: np.ndarray
    paired_degrees: int
    num_fits_M: np.ndarray
    """Trials of each setting; 0 where what is scored depends on no seed."""
    same_seeds: bool
    settings: int
    """How many had several seeds."""

    def of_level(self, m: int) -> tuple[np.ndarray, int]:
        """Variance of setting m's mean over its seeds, and the degrees of freedom that it is known with."""
        fits = self.num_fits_M[m]
        return (self.variance / fits if fits else 0 * self.variance), self.degrees

    def of_difference(self, m: int, reference: int) -> tuple[np.ndarray, int]:
        """The same of the difference of two settings: where all have the same seeds, what they share cancels."""
        fits = self.num_fits_M[[m, reference]]
        if m == reference:
            return 0 * self.variance, self.degrees
        if self.same_seeds and fits.all():
            return self.paired_variance * (1 / fits).sum(), self.paired_degrees
        return self.variance * (1 / fits[fits > 0]).sum(), self.degrees


def seed_noise(documents: Documents, nats_per_token_J: np.ndarray) -> SeedNoise | None:
    """From settings with two seeds or more; None where there is none.

    A seed's effect that all settings share (initial values, the order of documents) is told from what is left, if each
    of them has the same seeds: two-way analysis of variance without replication. One variance is taken to hold for all
    settings, since two or three seeds tell too little of each.
    """
    seed_J = documents.seed_J
    if seed_J is None or documents.setting_J is None or not np.isfinite(seed_J).any():
        return None
    known_J = np.isfinite(seed_J) & np.isfinite(nats_per_token_J).all(axis=tuple(range(nats_per_token_J.ndim - 1)))
    num_fits_M = np.bincount(documents.setting_J[np.isfinite(seed_J)], minlength=documents.nats_NM.shape[1])
    fits_m = [np.flatnonzero(known_J & (documents.setting_J == m)) for m in range(len(num_fits_M))]
    fits_m = [j for j in fits_m if len(j) > 1]
    if not fits_m:
        return None
    left = [nats_per_token_J[..., j] - nats_per_token_J[..., j].mean(axis=-1, keepdims=True) for j in fits_m]
    squares, degrees = sum((part**2).sum(axis=-1) for part in left), sum(len(j) - 1 for j in fits_m)
    seeds = [np.sort(seed_J[j]) for j in fits_m]
    same = len(fits_m) > 1 and all(np.array_equal(s, seeds[0]) for s in seeds) and len(set(seeds[0])) == len(seeds[0])
    paired, paired_degrees = squares, degrees
    if same:
        ordered = np.stack([part[..., np.argsort(seed_J[j])] for part, j in zip(left, fits_m, strict=True)])
        paired = ((ordered - ordered.mean(axis=0)) ** 2).sum(axis=(0, -1))
        paired_degrees = (len(fits_m) - 1) * (len(seeds[0]) - 1)
    variance, paired_variance = np.asarray(squares / degrees), np.asarray(paired / paired_degrees)
    return SeedNoise(variance, degrees, paired_variance, paired_degrees, num_fits_M, same, len(fits_m))
