"""Which tau the training text itself asks for: the evidence p(D | Theta, tau), with the deviations integrated out.

To second order in its deviation delta from Theta a task's log likelihood is l_d + s_d' delta - delta' F_d delta / 2,
with s_d its score (gradient) and F_d its Fisher information at Theta. Under delta ~ N(0, I/tau), Eq. 5,

    log p(D | tau) - log p(D | inf) = sum_d [ s_d' (F_d + tau I)^-1 s_d - log det(I + F_d / tau) ] / 2,

and s_d ~ N(0, F_d + F_d^2 / tau): the more the tasks differ, the further their scores stick out of F_d, the noise of a
finite text. docs/method.md derives what follows.

Shapes: K tasks, P parameters of one adapter.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from scipy.optimize import brentq
from scipy.special import stdtrit
from torch import Tensor

LEVEL = 0.95
"""Of the intervals."""
LOG_TAU = (-50.0, 50.0)
"""Where fixed points are looked for."""


@dataclass(frozen=True)
class TauEstimate:
    """tau and the ends of its 95% interval; inf: the tasks need not differ."""

    tau: float
    low: float
    high: float


@dataclass(frozen=True)
class Curvature:
    """The likelihood of the training split around theta_1..K to second order, in nats."""

    nll_K: Tensor
    """-log p(D_k | theta_k)."""
    score_KP: Tensor
    """The gradient of log p(D_k | theta_k)."""
    fisher_KP: Tensor
    """The diagonal of F_k."""
    noise_K: Tensor
    """Trace of the score's covariance by the scatter of the task's documents; tr F_k where the model is true."""
    trace_square_K: Tensor
    """tr(F_k^2), of the whole matrix."""
    num_tokens_K: Tensor
    """Scored tokens."""


def tau_by_scores(shared: Curvature) -> TauEstimate:
    """tau from one `shared` adapter: a step of Fisher scoring on the evidence over 1/tau, from tau = inf.

    The step is 1/tau = sum_d (||s_d||^2 - tr F_d) / sum_d tr(F_d^2), with three changes. What the scores have in common
    is a matter of Theta: c_d = s_d - w_d sum_e s_e, w_d a task's share of the tokens, takes the place of s_d. The noise
    is not tr F_d, the model's word, but v_d, what the documents show. And terms weigh 1 / w_d, so that the tasks with
    most text do not decide alone:

        1/tau = sum_d x_d / w_d  /  sum_d y_d / w_d,
        x_d = ||c_d||^2 - (1 - 2 w_d) v_d - w_d^2 sum_e v_e,    y_d = (1 - 2 w_d) tr(F_d^2) + w_d^2 sum_e tr(F_e^2).

    Where the F_d differ in size alone the mean of the estimated 1/tau is the true one, whatever Theta and tau. Only
    traces of F are taken, so that no correlation of parameters is left out. The interval is Student's, from the scatter
    of the tasks' own terms.
    """
    w_K = shared.num_tokens_K.double() / shared.num_tokens_K.sum()
    score_KP, noise_K, square_K = shared.score_KP.double(), shared.noise_K.double(), shared.trace_square_K.double()
    apart_KP = score_KP - w_K[:, None] * score_KP.sum(0)
    x_K = (apart_KP.square().sum(-1) - (1 - 2 * w_K) * noise_K - w_K.square() * noise_K.sum()) / w_K
    y_K = ((1 - 2 * w_K) * square_K + w_K.square() * square_K.sum()) / w_K
    variance = (x_K.sum() / y_K.sum()).item()
    freedom = len(w_K) - 1
    scatter = (x_K - variance * y_K).square().sum() * len(w_K) / freedom
    half = (stdtrit(freedom, 0.5 + LEVEL / 2) * scatter.sqrt() / y_K.sum()).item()
    return TauEstimate(*(1 / v if v > 0 else math.inf for v in (variance, variance + half, variance - half)))


def log_evidence_ratio(tau: float, score_KP: Tensor, fisher_KP: Tensor) -> Tensor:
    """log p(D | tau) - log p(D | inf) of each task, with F diagonal and the score at delta = 0; shape K, in nats."""
    return 0.5 * (score_KP.square() / (fisher_KP + tau) - torch.log1p(fisher_KP / tau)).sum(-1)


def laplace_log_evidence(tau: float, at_map: Curvature, delta_KP: Tensor) -> Tensor:
    """log p(D | Theta, tau) of each task by Laplace's method with F diagonal, around its MAP deviation; shape K."""
    occam_K = 0.5 * torch.log1p(at_map.fisher_KP / tau).sum(
        -1
    )  # the constants P/2 log(tau / 2 pi), P/2 log 2 pi within
    return -at_map.nll_K - 0.5 * tau * delta_KP.square().sum(-1) - occam_K


def tau_by_diagonal_evidence(score_KP: Tensor, fisher_KP: Tensor) -> TauEstimate:
    """The tau of highest diagonal evidence, and a normal interval for log tau by its information.

    Where the evidence is stationary in log tau, sum h / (h + tau) = tau ||delta||^2 with delta = s / (h + tau) the MAP
    deviation at that tau and h = diag F: MacKay's fixed point, the deviations moving along. Without one, that is where
    ||s||^2 <= sum h, the evidence rises up to tau = inf; the interval is then one for 1/tau there.
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
    return math.exp(brentq(lambda log_tau: excess(math.exp(log_tau)).item(), *LOG_TAU))  # type: ignore[arg-type]
