"""tau by a diagonal Fisher information, to compare with `bora_sweep.train.methods.tau_estimate`.

Laplace's evidence and MacKay's fixed point, with F_k replaced by its diagonal. `docs/method.md` says why the product
does not use them.

Shapes: K tasks, P parameters of one adapter.
"""

import math
from collections.abc import Callable

from scipy.optimize import brentq
from scipy.special import stdtrit
from torch import Tensor, log1p

from bora_sweep.train.methods.tau_estimate import LEVEL, Curvature, TauEstimate

LOG_TAU_RANGE = (-50.0, 50.0)
"""Bounds on log tau within which a fixed point is sought."""


def log_evidence_ratio(tau: float, score_KP: Tensor, fisher_KP: Tensor) -> Tensor:
    """log p(D_k | tau) - log p(D_k | inf) of each task, to second order around delta = 0 with F diagonal.

    Args:
        tau: Precision of the prior; 0 < tau < inf.
        score_KP: The gradient of log p(D_k | theta_k) at delta = 0.
        fisher_KP: The diagonal of F_k.

    Returns:
        Nats, shape K.
    """
    return 0.5 * (score_KP.square() / (fisher_KP + tau) - log1p(fisher_KP / tau)).sum(-1)


def laplace_log_evidence(tau: float, at_map: Curvature, delta_KP: Tensor) -> Tensor:
    """log p(D_k | Theta, tau) of each task by Laplace's method with F diagonal, around its MAP deviation.

    Args:
        tau: Precision of the prior; 0 < tau < inf.
        at_map: The likelihood to second order at the MAP.
        delta_KP: theta_k - Theta at the MAP.

    Returns:
        Nats, shape K.
    """
    # With the constants: P/2 log(tau / 2 pi) of the prior and P/2 log(2 pi) of Laplace's method.
    occam_K = 0.5 * log1p(at_map.fisher_KP / tau).sum(-1)
    return -at_map.nll_K - 0.5 * tau * delta_KP.square().sum(-1) - occam_K


def tau_by_diagonal_evidence(score_KP: Tensor, fisher_KP: Tensor) -> TauEstimate:
    """The tau that maximises the sum of `log_evidence_ratio`, with a normal interval for log tau from its information.

    The evidence is stationary in log tau where sum h / (h + tau) = tau ||delta||^2. Here h = diag F, and
    delta = s / (h + tau) is the MAP deviation at that tau. This is MacKay's fixed point with deviations that move with
    tau. If ||s||^2 <= sum h there is none: the evidence rises up to tau = inf, and the interval is for 1/tau there.
    """
    s2, h, z = score_KP.double().square(), fisher_KP.double(), stdtrit(math.inf, 0.5 + LEVEL / 2)
    excess = (s2.sum() - h.sum()).item()
    if excess <= 0:
        square = h.square().sum().item()
        highest = excess + z * math.sqrt(2 * square)
        return TauEstimate(math.inf, square / highest if highest > 0 else math.inf, math.inf)
    tau = _root(lambda tau: (h / (h + tau) - tau * s2 / (h + tau).square()).sum())
    factor = math.exp(z / math.sqrt(0.5 * (h / (h + tau)).square().sum()))
    return TauEstimate(tau, tau / factor, tau * factor)


def tau_by_mackay(delta_KP: Tensor, fisher_KP: Tensor) -> float:
    """The fixed point of tau <- gamma / ||delta||^2 with gamma = sum h / (h + tau), both from one fit (MacKay 1992)."""
    d2, h = delta_KP.double().square().sum(), fisher_KP.double()
    return _root(lambda tau: (h / (h + tau)).sum() - tau * d2) if d2 > 0 else math.inf


def _root(excess: Callable[[float], Tensor]) -> float:
    """The tau at which `excess` is 0."""
    return math.exp(brentq(lambda log_tau: excess(math.exp(log_tau)).item(), *LOG_TAU_RANGE))  # type: ignore[arg-type]
