"""The prior that ties the tasks' adapters to Theta, on whole banks, and the precisions of groups of parameters.

Shapes: K adapters (one per task), P parameters of one adapter, G groups of parameters or of tasks.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from bora_sweep.config import Groups, PriorConfig
from bora_sweep.errors import InputError
from bora_sweep.model.layout import Layout


def log_prior(theta_KP: Tensor, mean_P: Tensor | float, tau: float | Tensor) -> Tensor:
    """sum_k log N(theta_k; Theta, I/tau), Eq. 5 of Eide & Frigessi 2025, without its constant K P/2 log(tau / 2 pi).

    Args:
        theta_KP: The tasks' adapters; or their deviations from Theta, with `mean_P` 0.
        mean_P: Theta.
        tau: The precision, one for all, one for each coordinate, tau_P, or one for each task, tau_K1; 0 <= tau < inf.
            At 0 the prior is flat.

    Returns:
        A scalar in nats.
    """
    return -0.5 * (tau * (theta_KP - mean_P).square()).sum()


def distance_to_global(theta_KP: Tensor, mean_P: Tensor) -> Tensor:
    """||theta_k - Theta||_2 for each task, shape K; the vertical axis of Figure 4 in Eide & Frigessi 2025."""
    return torch.linalg.vector_norm(theta_KP - mean_P, dim=-1)


def group_names(prior: PriorConfig, layout: Layout, tasks: Sequence[str]) -> list[str]:
    """Names of what has a tau of its own, of parameters or tasks; empty if there is one tau for all.

    Raises:
        InputError: `prior.group_scales` names a group that does not exist.
    """
    if prior.groups == "all":
        return []
    names = list(tasks) if prior.groups == "task" else layout.parameter_groups(prior.groups)[0]
    if unknown := sorted(prior.group_scales.keys() - set(names)):
        few = f"{', '.join(names[:10])}{', …' if len(names) > 10 else ''}"
        raise InputError(f"prior.group_scales={unknown}: no such group of prior.groups={prior.groups}; there are {few}")
    return names


def group_precisions(
    tau: float, scale_G: Sequence[float], groups: Groups, layout: Layout, tasks: slice, like: Tensor
) -> Tensor | None:
    """The precisions where groups have a tau of their own (`prior.groups`).

    Args:
        tau: Of the fit.
        scale_G: Each group's tau divided by `tau`, in the order of `group_names`.
        groups: What the groups are.
        layout: The parameters of an adapter.
        tasks: Those of this process.
        like: Has the device and precision of the result.

    Returns:
        tau_P of groups of parameters, tau_K1 of tasks; None if there is one tau for all, or no prior acts (tau = 0 or
        inf).
    """
    if groups == "all" or tau in (0, math.inf):
        return None
    tau_G = tau * torch.tensor(scale_G, device=like.device, dtype=like.dtype)
    if groups == "task":
        return tau_G[tasks, None]
    return tau_G[layout.parameter_groups(groups)[1].to(like.device)]
