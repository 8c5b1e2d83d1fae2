"""The prior that ties the tasks' adapters to Theta, on whole banks, and the precisions of groups of parameters.

Shapes: K adapters (one per task), P parameters of one adapter, G groups of parameters.
"""

import math

import torch
from torch import Tensor

from bora_sweep.config import PriorConfig
from bora_sweep.errors import InputError
from bora_sweep.model.layout import Layout


def log_prior(theta_KP: Tensor, mean_P: Tensor | float, tau: float | Tensor) -> Tensor:
    """sum_k log N(theta_k; Theta, I/tau), Eq. 5 of Eide & Frigessi 2025, without its constant K P/2 log(tau / 2 pi).

    Args:
        theta_KP: The tasks' adapters; or their deviations from Theta, with `mean_P` 0.
        mean_P: Theta.
        tau: The precision, one for all coordinates or one for each, tau_P; 0 <= tau < inf. At 0 the prior is flat.

    Returns:
        A scalar in nats.
    """
    return -0.5 * (tau * (theta_KP - mean_P).square()).sum()


def distance_to_global(theta_KP: Tensor, mean_P: Tensor) -> Tensor:
    """||theta_k - Theta||_2 for each task, shape K; the vertical axis of Figure 4 in Eide & Frigessi 2025."""
    return torch.linalg.vector_norm(theta_KP - mean_P, dim=-1)


def refuse_unknown_groups(prior: PriorConfig, layout: Layout) -> list[str]:
    """Names of the groups of parameters with their own tau; empty if all parameters share one tau.

    Raises:
        InputError: `prior.group_scales` names a group that has no parameters.
    """
    names = [] if prior.groups == "all" else layout.parameter_groups(prior.groups)[0]
    if unknown := sorted(prior.group_scales.keys() - set(names)):
        raise InputError(f"prior.group_scales={unknown}: no parameter is in such a group; there are {', '.join(names)}")
    return names


def group_precisions(prior: PriorConfig, layout: Layout, device: torch.device, dtype: torch.dtype) -> Tensor | None:
    """The precision of each coordinate, if groups of parameters have their own tau (`prior.groups`).

    Args:
        prior: tau, the kind of groups and their scales.
        layout: The parameters of an adapter.
        device: Where the result is used.
        dtype: Its precision.

    Returns:
        tau_P; None if all parameters share one tau, or no prior acts (tau = 0 or inf).

    Raises:
        InputError: As in `refuse_unknown_groups`.
    """
    names = refuse_unknown_groups(prior, layout)
    if prior.groups == "all" or prior.tau in (0, math.inf):
        return None
    tau_G = prior.tau * torch.tensor([prior.group_scales.get(name, 1.0) for name in names], device=device, dtype=dtype)
    return tau_G[layout.parameter_groups(prior.groups)[1].to(device)]
