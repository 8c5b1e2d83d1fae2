"""The objective of a MAP fit.

Shapes: K adapters (one per task), P parameters of one adapter.
"""

from torch import Tensor

from bora_sweep.model.prior import log_prior


def map_objective(
    nll: Tensor, theta_KP: Tensor, mean_P: Tensor | float, tau: float | Tensor, num_tokens: int
) -> Tensor:
    """J = (nll - log p(theta_1..K | Theta, tau)) / N, the negative log of Eq. 6 of Eide & Frigessi 2025 per token.

    A step descends this function without calling it: autograd gives the gradient of the first term, and the optimiser's
    step has the second (`bora_sweep.train.step`). `tests/train/test_step.py` holds the two together. Theta has a flat
    hyperprior, and the constants of the prior are left out (`log_prior`).

    Args:
        nll: -log p(D | theta_1..K) of the training split in nats, a scalar (`bora_sweep.model.likelihood.nll_nats`).
        theta_KP: The tasks' adapters; or their deviations from Theta, with `mean_P` 0.
        mean_P: Theta.
        tau: The precision, one for all coordinates or one for each, tau_P; 0 <= tau < inf.
        num_tokens: N, the scored tokens of the training split.

    Returns:
        A scalar, in nats per scored token.
    """
    return (nll - log_prior(theta_KP, mean_P, tau)) / num_tokens
