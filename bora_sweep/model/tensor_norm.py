"""`prior.penalty=tensor_norm`: the published code's prior, whose distances are not squared.

Shapes: K adapters (one per task), P parameters of one adapter, t tensors of an adapter.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from bora_sweep.model.hierarchy import Hierarchy


class TensorNormHierarchy(Hierarchy):
    """A hierarchy under `tensor_norm_penalty` instead of the prior of Eq. 5.

    Args:
        initial_P: As for `Hierarchy`.
        tensor_sizes: Parameters of each tensor of an adapter, in their order along P.
        arguments: All others of `Hierarchy`.
    """

    def __init__(self, initial_P: Tensor, *, tensor_sizes: Sequence[int], **arguments: Any) -> None:
        super().__init__(initial_P, **arguments)
        self.tensor_sizes = tensor_sizes

    def _log_density(self) -> Tensor:
        return -tensor_norm_penalty(self.delta_KP(), self.tau, self.tensor_sizes)

    def _pull_KP(self, num_tokens: int | Tensor) -> Tensor:
        assert isinstance(num_tokens, int)  # separate fits have the squared distance
        return tensor_norm_penalty_gradient(self.delta_KP(), self.tau / num_tokens, self.tensor_sizes)


def tensor_norm_penalty(delta_KP: Tensor, tau: float, tensor_sizes: Sequence[int]) -> Tensor:
    """tau sum_k sum_t ||delta_kt||_2, the unsquared distances of the published code (`prior.penalty=tensor_norm`).

    Args:
        delta_KP: theta_k - Theta of each task.
        tau: The penalty's weight.
        tensor_sizes: Parameters of each tensor t, in their order along P.

    Returns:
        A scalar.
    """
    return tau * _norm_of_each_tensor(delta_KP, tensor_sizes).sum()


def tensor_norm_penalty_gradient(delta_KP: Tensor, tau: float, tensor_sizes: Sequence[int]) -> Tensor:
    """The gradient of `tensor_norm_penalty`: tau delta_kt / ||delta_kt|| for each tensor, 0 where delta_kt = 0.

    Arguments as in `tensor_norm_penalty`.
    """
    norm_Kt = _norm_of_each_tensor(delta_KP, tensor_sizes)
    factor_Kt = torch.where(norm_Kt > 0, tau / norm_Kt, 0.0)
    sizes_t = torch.tensor(tensor_sizes, device=delta_KP.device)
    # Without the size of the result a device would be waited for.
    return delta_KP * factor_Kt.repeat_interleave(sizes_t, dim=-1, output_size=delta_KP.shape[-1])


def _norm_of_each_tensor(delta_KP: Tensor, tensor_sizes: Sequence[int]) -> Tensor:
    """||delta_kt||_2 for each task and tensor, norm_Kt."""
    tensors = delta_KP.split(list(tensor_sizes), dim=-1)
    return torch.stack([torch.linalg.vector_norm(tensor, dim=-1) for tensor in tensors], dim=-1)
