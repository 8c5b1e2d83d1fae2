"""The hierarchical prior, Eq. 5, on whole banks, and the two coordinate systems of the same posterior.

Shapes: K adapters (one per task), P parameters of one adapter, B rows.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from bora_sweep.config import PriorConfig
from bora_sweep.errors import InputError
from bora_sweep.model.layout import Layout


def log_prior(theta_KP: Tensor, mean_P: Tensor | float, tau: float | Tensor) -> Tensor:
    """sum_k log N(theta_k; Theta, I/tau), Eq. 5, in nats, without the constant K P/2 log(tau / 2 pi).

    With tau_P each coordinate has a precision of its own. At tau = 0 the prior is flat: 0 everywhere.
    """
    return -0.5 * (tau * (theta_KP - mean_P).square()).sum()


def tensor_norms(theta_KP: Tensor, mean_P: Tensor | float, sizes: Sequence[int]) -> Tensor:
    """||theta_kt - Theta_t||_2 for each task and tensor t, those whose parameters lie end to end in P; shape K x t."""
    parts = (theta_KP - mean_P).split(list(sizes), dim=-1)
    return torch.stack([torch.linalg.vector_norm(part, dim=-1) for part in parts], dim=-1)


def tensor_norm_gradient(delta_KP: Tensor, tau: float, sizes: Sequence[int]) -> Tensor:
    """That of tau times the sum of `tensor_norms` at theta - Theta: tau along each tensor's own direction, 0 at 0."""
    norm_Kt = tensor_norms(delta_KP, 0.0, sizes)
    inverse_Kt = torch.where(norm_Kt > 0, tau / norm_Kt, 0.0)
    return delta_KP * inverse_Kt.repeat_interleave(torch.tensor(sizes, device=delta_KP.device), dim=-1)


def distance_to_global(theta_KP: Tensor, mean_P: Tensor) -> Tensor:
    """||theta_k - Theta||_2 for each task, the ordinate of the paper's Figure 4; shape K."""
    return torch.linalg.vector_norm(theta_KP - mean_P, dim=-1)


def refuse_unknown_groups(prior: PriorConfig, layout: Layout) -> list[str]:
    """The groups of parameters that have a tau of their own; none where one tau serves all.

    Raises:
        InputError: `prior.group_scales` names a group that has no parameters.
    """
    names = [] if prior.groups == "all" else layout.group_of(prior.groups)[0]
    if unknown := sorted(prior.group_scales.keys() - set(names)):
        raise InputError(f"prior.group_scales={unknown}: no parameter is in such a group; there are {', '.join(names)}")
    return names


def group_precisions(prior: PriorConfig, layout: Layout, device: torch.device, dtype: torch.dtype) -> Tensor | None:
    """tau_P where groups of parameters have a tau of their own, `prior.groups`; None where one tau serves all.

    Raises:
        InputError: As in `refuse_unknown_groups`.
    """
    names = refuse_unknown_groups(prior, layout)
    if prior.groups == "all" or prior.tau in (0, math.inf):
        return None
    tau_G = prior.tau * torch.tensor([prior.group_scales.get(name, 1.0) for name in names], device=device, dtype=dtype)
    return tau_G[layout.group_of(prior.groups)[1].to(device)]
