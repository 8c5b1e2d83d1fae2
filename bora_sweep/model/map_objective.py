"""The objective of a MAP fit.

Shapes: K adapters (one per task), G groups, P parameters of one adapter.
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


def three_level_objective(
    nll: Tensor,
    theta_KP: Tensor,
    theta_GP: Tensor,
    mean_P: Tensor | float,
    group_K: Tensor,
    taus: tuple[float, float],
    num_tokens: int,
) -> Tensor:
    """J of tasks in groups: theta_d ~ N(Theta_g, I/tau), Theta_g ~ N(Theta, I/tau_2); else as `map_objective`.

    Args:
        nll: As for `map_objective`.
        theta_KP: The tasks' adapters.
        theta_GP: The groups' adapters, Theta_g.
        mean_P: Theta.
        group_K: The group of each task.
        taus: tau and tau_2, 0 <= both < inf.
        num_tokens: N.

    Returns:
        A scalar, in nats per scored token.
    """
    tau, tau_2 = taus
    of_tasks, of_groups = log_prior(theta_KP, theta_GP[group_K], tau), log_prior(theta_GP, mean_P, tau_2)
    return (nll - of_tasks - of_groups) / num_tokens
