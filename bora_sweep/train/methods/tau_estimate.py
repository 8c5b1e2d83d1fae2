"""tau from one shared fit: gradients and Fisher information of the training split, task by task.

Shapes: B rows, T tokens, V vocabulary, S samples, N documents of a task, K tasks, P parameters of one adapter.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import stdtrit
from torch import Tensor
from transformers import PreTrainedModel

from bora_sweep.config import Config
from bora_sweep.data.batches import collate, group_by_length
from bora_sweep.data.tokens import TokenizedCorpus
from bora_sweep.model.adapted import AdaptedModel
from bora_sweep.model.layout import make_layout
from bora_sweep.model.lengths import length_limits
from bora_sweep.model.likelihood import nll_nats
from bora_sweep.model.placement import placed
from bora_sweep.train.device import make_accelerator
from bora_sweep.train.state import Fit

LEVEL = 0.95
"""Confidence level of the intervals."""
NUM_SAMPLES = 4
"""Draws of each document's next tokens; the estimate of tr(F^2) needs at least two."""


@dataclass(frozen=True)
class TauEstimate:
    """tau and the ends of its 95% interval; inf: the data do not show that the tasks differ."""

    tau: float
    low: float
    high: float


@dataclass(frozen=True)
class Curvature:
    """The training split's likelihood around theta_1..K to second order, in nats."""

    nll_K: Tensor
    """-log p(D_k | theta_k)."""
    score_KP: Tensor
    """The gradient of log p(D_k | theta_k)."""
    fisher_KP: Tensor
    """The diagonal of F_k."""
    noise_K: Tensor
    """The trace of the score's covariance, from the scatter of the task's documents; tr F_k if the model is true."""
    trace_square_K: Tensor
    """tr(F_k^2), of the whole matrix."""
    num_tokens_K: Tensor
    """Scored tokens."""


def tau_by_scores(shared: Curvature) -> TauEstimate:
    """tau from one shared fit: a step of Fisher scoring on the evidence as a function of 1/tau, from 1/tau = 0.

    The step (Lin 1997) is 1/tau = sum_d (||s_d||^2 - tr F_d) / sum_d tr(F_d^2), with three changes. First, the scores'
    common part belongs to Theta: s_d is replaced by c_d = s_d - w_d sum_e s_e, where w_d is the task's share of the
    tokens. Second, the noise tr F_d, which assumes the model, is replaced by v_d, estimated from the documents. Third,
    terms have weight 1 / w_d, so that the tasks with most text do not dominate:

        1/tau = sum_d x_d / w_d  /  sum_d y_d / w_d,
        x_d = ||c_d||^2 - (1 - 2 w_d) v_d - w_d^2 sum_e v_e,    y_d = (1 - 2 w_d) tr(F_d^2) + w_d^2 sum_e tr(F_e^2).

    If the F_d differ only by factors, the estimate of 1/tau is unbiased at any Theta and tau. Only traces of F are
    needed, so that correlations of parameters are included. The interval is Student's, from the scatter of the tasks'
    terms. docs/method.md derives it.
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


def estimate_tau(config: Config, corpus: TokenizedCorpus, base: PreTrainedModel, shared: Fit) -> TauEstimate:
    """tau and its interval from one fit at tau = inf (`tau_by_scores`). Costs about three epochs of training.

    Args:
        config: Of the fit.
        corpus: The tokenised text.
        base: The base model.
        shared: The fit at tau = inf.
    """
    return tau_by_scores(curvature(config, corpus, base, shared.theta_KP))


def curvature(
    config: Config, corpus: TokenizedCorpus, base: PreTrainedModel, theta_KP: Tensor, num_samples: int = NUM_SAMPLES
) -> Curvature:
    """The training split's likelihood to second order around theta_1..K.

    F is the true Fisher information. Each next token is drawn from the model, given the document's own earlier tokens.
    The gradients of such draws have mean 0 and covariance F. Memory holds those of one task at a time, S N P numbers.

    Args:
        config: Of the fit; its batch size bounds the rows of a pass, its seed the draws.
        corpus: The tokenised text.
        base: The base model.
        theta_KP: Where the likelihood is expanded.
        num_samples: S.
    """
    device = make_accelerator(config).device
    adapted = AdaptedModel(placed(base, device), make_layout(base, config.lora))
    generator = torch.Generator(device).manual_seed(config.train.seed)
    train = corpus.split("train")
    task_N = corpus.documents["task"].to_numpy()[train]
    size = config.train.micro_batch_size or config.train.batch_size
    limits = length_limits(base, corpus.shortest, corpus.longest)
    parts = []
    try:
        for task, theta_P in enumerate(theta_KP.to(device)):
            document_N = train[task_N == task]
            groups = group_by_length(corpus, document_N, limits)
            batches = [group_N[i : i + size] for group_N in groups for i in range(0, len(group_N), size)]
            document_N = np.concatenate(batches)
            pieces = [
                _gradients(adapted, corpus, batch_B, theta_P=theta_P, num_samples=num_samples, generator=generator)
                for batch_B in batches
            ]
            nll_N1, score_NP, draw_SNP = (torch.cat(column, dim=-2) for column in zip(*pieces, strict=True))
            num_tokens_N = torch.from_numpy(corpus.documents["num_tokens"].to_numpy()[document_N]).to(device)
            fisher_P = draw_SNP.square().mean(0).sum(0)
            noise = noise_trace(score_NP, num_tokens_N) if len(document_N) > 1 else fisher_P.sum()
            sums = (nll_N1.sum(), score_NP.sum(0), fisher_P, noise, trace_of_square(draw_SNP), num_tokens_N.sum())
            parts.append([value.cpu() for value in sums])
    finally:
        adapted.remove_hooks()
    return Curvature(*(torch.stack(column) for column in zip(*parts, strict=True)))


def _gradients(
    adapted: AdaptedModel,
    corpus: TokenizedCorpus,
    document_B: np.ndarray,
    *,
    theta_P: Tensor,
    num_samples: int,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor, Tensor]:
    """nll_B1 and score_BP of one task's documents, and score_SBP of S draws of their next tokens from the model.

    Each row has its own copy of the adapter, so that one backward pass gives the gradient of each document.
    """
    batch = collate(corpus, document_B)
    tokens_BT, scored_BT = (torch.from_numpy(a).to(theta_P.device) for a in (batch.tokens_BT, batch.scored_BT))
    theta_BP = theta_P.repeat(len(tokens_BT), 1).requires_grad_()
    logits_BTV = adapted(tokens_BT, theta_BP)

    def nll_and_score(target_BT: Tensor) -> tuple[Tensor, Tensor]:
        nll_B = nll_nats(logits_BTV, target_BT, scored_BT)
        return nll_B.detach()[:, None], -torch.autograd.grad(nll_B.sum(), theta_BP, retain_graph=True)[0]

    draws = [nll_and_score(draw_tokens(logits_BTV.detach(), generator))[1] for _ in range(num_samples)]
    return *nll_and_score(tokens_BT), torch.stack(draws)


def draw_tokens(logits_BTV: Tensor, generator: torch.Generator) -> Tensor:
    """tokens_BT whose token i + 1 is drawn from the model's distribution after token i; the first has no meaning."""
    flat_NV = logits_BTV.float().softmax(-1).flatten(0, 1)
    return torch.multinomial(flat_NV, 1, generator=generator).view(logits_BTV.shape[:2]).roll(1, dims=1)


def noise_trace(score_NP: Tensor, num_tokens_N: Tensor) -> Tensor:
    """An estimate of the trace of the covariance of s = sum_n s_n, sum_n ||s_n - p_n s||^2 / (1 - sum_n p_n^2).

    Here p_n is a document's share of the tokens. The estimate is unbiased if mean and covariance of s_n are
    proportional to the document's number of tokens.
    """
    share_N = num_tokens_N / num_tokens_N.sum()
    return (score_NP - share_N[:, None] * score_NP.sum(0)).square().sum() / (1 - share_N.square().sum())


def trace_of_square(draw_SNP: Tensor) -> Tensor:
    """An unbiased estimate of tr(F^2), F = sum_n F_n, from S draws of N documents' scores, each with covariance F_n.

    For independent draws x and y of the scores of documents n and m, E (x'y)^2 = tr(F_n F_m). So only pairs from two
    different samples are used.
    """
    S, N, _ = draw_SNP.shape
    flat_MP = draw_SNP.flatten(0, 1)
    square_SS = (flat_MP @ flat_MP.T).double().square().view(S, N, S, N).sum((1, 3))
    return (square_SS.sum() - square_SS.trace()) / (S * (S - 1))
